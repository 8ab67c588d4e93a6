"""The end of a run: what was trained is saved first, and measured after, row by row.

Each step leaves its outcome in result.json, so that a run that is killed here goes on with what is
missing. A measurement that fails costs its row, and the same command tries it again.
"""

import gc
import sys
import time

import keras

from amdim_tf.config import fields
from amdim_tf.errors import InputError, Stopped
from amdim_tf.evaluation.classifiers import classify
from amdim_tf.evaluation.features import RAW_SIZE, encode, raw_pixels
from amdim_tf.evaluation.rows import ROWS, measure_row
from amdim_tf.files import replacing, write_json
from amdim_tf.objectives.probes import NAMES
from amdim_tf.serving.saved_model import export, write_card
from amdim_tf.training.building import build_encoder
from amdim_tf.training.callbacks import on_signals
from amdim_tf.training.run_directory import environment, load_model
from amdim_tf.training.run_files import read_result

EXPORT = "export"
NOT_YET = "not measured yet"


def wanted(data, baselines):
    """The rows of `rows.ROWS` that a run on `data` is measured by."""
    if not data.test or not data.class_names:
        return ()
    return tuple(ROWS) if baselines else ("beside", "frozen")


def missing(result, rows):
    """What of `rows`, and the export, a `result` of a run does not have yet, {name: why}."""
    if not result:
        return dict.fromkeys([EXPORT, *rows], NOT_YET)
    known = result.get("missing", {})
    unmeasured = [row for row in rows if row not in result["accuracy"]]
    lacking = [EXPORT] * (EXPORT in known) + unmeasured
    return {name: known.get(name, NOT_YET) for name in lacking}


def finish(run, config, data, steps, rows, started):
    """Saves and measures the trained encoder of `run`, as far as that is not done yet.

    Args:
        run: the `RunDirectory`, with a checkpoint of the last step.
        config: its config.
        data: its `Data`.
        steps: of the training.
        rows: which to measure, see `wanted`.
        started: when this process began with the run, by `time.time`.

    Returns:
        What result.json holds; `missing` has what could not be done, and why.

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

    def fill(row):
        print(f"Measuring: {ROWS[row]} ...", flush=True)
        accuracy, note = getattr(measure, row)()
        measured = result["accuracy"] | {row: accuracy}
        result["accuracy"] = {name: measured[name] for name in ROWS if name in measured}
        result.setdefault("notes", {})[row] = note

    encoder_path = run.path / "encoder.keras"
    if not encoder_path.exists():
        with replacing(encoder_path) as path:
            measure.model.encoder.save(path)
    record()
    with on_signals(_stop):
        for name in list(lacking):
            try:
                publish() if name == EXPORT else fill(name)
                del lacking[name]
            except Stopped:
                raise
            except Exception as error:  # noqa: BLE001  whatever it is, the rest is kept
                kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
                lacking[name] = " ".join(f"{kind}{error}".split())
                print(f"{name} is left out: {lacking[name]}", file=sys.stderr, flush=True)
            record()
    return result


def _stop():
    raise Stopped("Stopped while measuring: the same command goes on with what is missing.")


class Rows:
    """Measures the rows of the table, each by the method of its name, to (accuracy, note).

    Accuracies {"linear", "mlp", "knn"} are on all test images, or as the note says. What is fitted
    on features learns from at most `probe_images` training images.

    Args:
        run, config, data: see `finish`.
    """

    def __init__(self, run, config, data):
        self.run, self.config, self.data = run, config, data
        self.classes = len(data.class_names)
        self._model = self._test = None

    @property
    def model(self):
        """The trained model, without optimiser; it is loaded when it is needed."""
        self._model = self._model or load_model(self.run.path)[0]
        return self._model

    def beside(self):
        found = classify(self.model.probes, self._test_features())
        return {name: found[name].accuracy() for name in NAMES}, self._note()

    def frozen(self):
        test = self._test_features()
        accuracy = self._measured(self._encode(self.model.encoder, self._known()), test)
        note = self._note()
        self._model = self._test = None
        return accuracy, note

    def untrained(self):
        self._model = self._test = None
        gc.collect()
        keras.utils.set_random_seed(self.config.seed)
        encoder = build_encoder(self.config, "float32")
        features = [self._encode(encoder, split) for split in (self._known(), self.data.test)]
        return self._measured(*features), self._note(features[1])

    def raw_pixels(self):
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
        """How many test images a row is measured on, if those are not all."""
        used = len(self._test_features() if test is None else test)
        return f"{used} test images" if used < self.data.test.size else ""

    def _measured(self, known, test):
        return measure_row(known, test, self.classes, self.config)
