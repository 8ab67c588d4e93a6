"""The end of a run: saves what was trained, and then measures it, row by row.

Each step writes its outcome to result.json, so that a killed run goes on with what is missing. A
measurement that fails leaves its row out, and the same command tries it again.
"""

import functools
import gc
import sys
import time
from collections.abc import Sequence
from typing import Any

import keras

from amdim_tf.config import fields
from amdim_tf.data import pipeline
from amdim_tf.data.data import Data
from amdim_tf.errors import InputError, Stopped
from amdim_tf.evaluation.classifiers import classify
from amdim_tf.evaluation.features import RAW_SIZE, Features, encode, raw_pixels
from amdim_tf.evaluation.online import F1
from amdim_tf.evaluation.rows import ROWS, measure_row
from amdim_tf.files import replacing, write_json
from amdim_tf.objectives.probes import NAMES
from amdim_tf.runs.starting import first_weights
from amdim_tf.serving.saved_model import export, write_card
from amdim_tf.training.building import build_encoder
from amdim_tf.training.callbacks import on_signals
from amdim_tf.training.health import of_features
from amdim_tf.training.learner import Learner
from amdim_tf.training.run_directory import RunDirectory, environment, load_model
from amdim_tf.training.run_files import read_result
from amdim_tf.typing import Config

EXPORT, HEALTH = "export", "health"
# Images whose f1 is looked at without labels.
HEALTH_IMAGES = 2000
NOT_YET = "not measured yet"


def wanted(data: Data, baselines: bool) -> tuple[str, ...]:
    """The rows, among `rows.ROWS`, to measure for a run on `data`."""
    if not data.test or not data.class_names:
        return ()
    return tuple(ROWS) if baselines else ("beside", "frozen")


def missing(result: dict[str, Any] | None, rows: Sequence[str]) -> dict[str, str]:
    """The `rows`, and the export, that a `result` of a run lacks so far, {name: why}."""
    if not result:
        return dict.fromkeys([EXPORT, HEALTH, *rows], NOT_YET)
    known = result.get("missing", {})
    unmeasured = [row for row in rows if row not in result["accuracy"]]
    lacking = [name for name in (EXPORT, HEALTH) if name in known] + unmeasured
    return {name: known.get(name, NOT_YET) for name in lacking}


def finish(
    run: RunDirectory,
    config: Config,
    data: Data,
    steps: int,
    rows: Sequence[str],
    started: float,
) -> dict[str, Any]:
    """Saves and measures the trained encoder of `run`, as far as that is not done yet.

    Args:
        run: the `RunDirectory`, with a checkpoint of the last step.
        config: its config.
        data: its `Data`.
        steps: number of training steps.
        rows: the rows to measure, see `wanted`.
        started: when this process began with the run, by `time.time`.

    Returns:
        The content of result.json; `missing` says what could not be done, and why.

    Raises:
        Stopped: by SIGINT or SIGTERM; what was measured before is kept.
    """
    before = read_result(run.path)
    lacking, published = missing(before, rows), run.path / "export" / "1"
    result = before or {
        "accuracy": {},
        "notes": {},
        "steps": steps,
        "seconds": 0.0,
        "config": fields(config),
        "train_images": data.train.size,
        "test_images": data.test.size if data.test else 0,
    }
    spent, measure = result["seconds"], Rows(run, config, data)

    def record():
        result["missing"] = dict(lacking)
        result["seconds"] = round(spent + time.time() - started, 1)
        result.update(environment())
        if published.exists():
            write_card(published, result)
        write_json(run.path / "result.json", result)

    def publish():
        if not published.exists():
            export(measure.model, config, published.parent, 1, data.class_names, result)

    def look():
        result[HEALTH] = measure.health()

    def fill(row):
        print(f"Measuring: {ROWS[row]} ...", flush=True)
        accuracy, note = getattr(measure, row)()
        measured = result["accuracy"] | {row: accuracy}
        result["accuracy"] = {name: measured[name] for name in ROWS if name in measured}
        result.setdefault("notes", {})[row] = note

    steps_of = {EXPORT: publish, HEALTH: look}
    encoder_path = run.path / "encoder.keras"
    if not encoder_path.exists():
        with replacing(encoder_path) as path:
            measure.model.encoder.save(path)
    record()
    with on_signals(_stop):
        for name in list(lacking):
            try:
                steps_of.get(name, functools.partial(fill, name))()
                del lacking[name]
            except Stopped:
                raise
            except Exception as error:  # noqa: BLE001  whatever it is, the rest is kept
                kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
                lacking[name] = " ".join(f"{kind}{error}".split())
                print(f"{name} is left out: {lacking[name]}", file=sys.stderr, flush=True)
            record()
            gc.collect()  # its batches of images, before those of the next
    return result


def _stop():
    raise Stopped("Stopped while measuring: the same command goes on with what is missing.")


class Rows:
    """Measures the rows of the table: each has a method of its name, which gives (accuracy, note).

    Accuracies {"linear", "mlp", "knn"} are on all test images, or on as many as the note says.
    Classifiers and neighbours on features learn from at most `probe_images` training images.

    Args:
        run, config, data: see `finish`.
    """

    def __init__(self, run: RunDirectory, config: Config, data: Data):
        self.run, self.config, self.data = run, config, data
        self.classes = len(data.class_names)
        self._model: Learner | None = None
        self._test: Features | None = None

    @property
    def model(self) -> Learner:
        """The trained model, without optimiser; it is loaded when it is needed."""
        self._model = self._model or load_model(self.run.path)[0]
        return self._model

    def health(self) -> dict[str, float]:
        """The health of f1 on test images, or on training images if no others can be used."""
        f1_of = F1(self.model.encoder, self.data)

        def few(split):
            split = split.sample(min(HEALTH_IMAGES, split.size))
            return f1_of(pipeline.test_batches(self.data, split, self.config)).values

        try:
            f1 = few(self.data.test or self.data.train)
        except InputError:
            f1 = few(self.data.train)
        return of_features(f1)

    def beside(self) -> tuple[dict[str, float], str]:
        """The online probes, as training left them."""
        found = classify(self.model.probes, self._test_features())
        return {name: found[name].accuracy() for name in NAMES}, self._note()

    def frozen(self) -> tuple[dict[str, float], str]:
        """Classifiers and neighbours on f1 of the trained encoder."""
        test = self._test_features()
        accuracy = self._measured(self._encode(self.model.encoder, self._known()), test)
        note = self._note()
        self._model = self._test = None
        return accuracy, note

    def untrained(self) -> tuple[dict[str, float], str]:
        """Classifiers and neighbours on f1 of an encoder with its initial weights."""
        self._model = self._test = None
        gc.collect()
        keras.utils.set_random_seed(self.config.seed)
        encoder = build_encoder(self.config, "float32")
        weights = first_weights(self.config)
        if weights:
            encoder.set_weights(weights)
        features = [self._encode(encoder, split) for split in (self._known(), self.data.test)]
        return self._measured(*features), self._note(features[1])

    def raw_pixels(self) -> tuple[dict[str, float], str]:
        """Classifiers and neighbours on the pixels."""
        assert self.data.test, "rows need test images, see `wanted`"
        test = self.data.test.sample(self.config.probe_images)
        known = self._known()
        features = [raw_pixels(self.data, split, self.config) for split in (known, test)]
        side = min(self.config.image_size, RAW_SIZE)
        notes = [f"{side}x{side}"] * (side < self.config.image_size)
        notes += [self._note(features[1])]
        return self._measured(*features), ", ".join(filter(None, notes))

    def _known(self):
        return self.data.probe.sample(self.config.probe_images)

    def _encode(self, encoder, split):
        return encode(encoder, self.data, split, self.config)

    def _test_features(self):
        if self._test is None:
            self._test = self._encode(self.model.encoder, self.data.test)
        return self._test

    def _note(self, test=None):
        """The number of test images that a row is measured on, if it is not all of them."""
        used = len(self._test_features() if test is None else test)
        return f"{used} test images" if used < self.data.test.size else ""

    def _measured(self, known, test):
        return measure_row(known, test, self.classes, self.config)
