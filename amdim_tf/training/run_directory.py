"""The run directory: all that a run leaves on disk, and all that it needs to resume.

config.json     what is trained
classes.json    names of the classes, in order of their labels
data.json       what the run is trained on: class names, number of images and their digests
metrics.jsonl   one line per measurement, with its step
tensorboard/    the same for TensorBoard
checkpoints/    weights, optimiser, metrics so far and random state, see `checkpoints`
starts.jsonl    each start of training: time, step, command and versions
encoder.keras   the encoder for Keras
export/1/       the encoder for TF Serving
bad_images.txt  images that could not be used, if any: name, tab, reason
result.json     accuracies and how they were obtained; written last
"""

import json
import pathlib
import platform
import shutil
import sys
import time

import keras
import tensorflow as tf

from amdim_tf.config import MEANS, base_config, fields
from amdim_tf.distribution import worker
from amdim_tf.errors import InputError
from amdim_tf.files import UNFINISHED, local, read_json, write_json, write_text
from amdim_tf.lock import LOCK
from amdim_tf.processor import processor
from amdim_tf.training.averaging import values
from amdim_tf.training.building import build_model
from amdim_tf.training.checkpoints import Checkpoints, byte_size
from amdim_tf.training.learner import Learner
from amdim_tf.training.run_files import CONFIG, read_class_names, read_config, run_config
from amdim_tf.typing import Config

# The file of an export that says what it was exported from.
METADATA = "assets.extra/amdim.json"
CHECKPOINTS = "checkpoints"


class RunDirectory:
    """Opens or creates `path` for a run of `config`.

    Args:
        path: the directory.
        config: a config, or its fields as JSON stores them.

    Attributes:
        path: the directory.
        checkpoints: its checkpoints.
        restored: the checkpoint that `restore` read, if any.

    Raises:
        InputError: the directory belongs to another configuration, holds other files, or cannot be
            written.
    """

    restored: str | None

    def __init__(self, path: str | pathlib.Path, config: Config | dict):
        self.path = local(path, "workdir")
        self.checkpoints = Checkpoints(self.path / CHECKPOINTS)
        config_path = self.path / CONFIG
        config = fields(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not config_path.exists():
                if any(
                    not path.name.startswith((UNFINISHED, LOCK)) for path in self.path.iterdir()
                ):
                    raise InputError(
                        "workdir must be new, empty, or a run of the same configuration. "
                        f"Received: workdir={path}, which holds other files"
                    )
                write_json(config_path, config)
        except OSError as error:
            raise InputError(
                f"workdir cannot be used: {error}. Received: workdir={path}"
            ) from error
        # A run of an earlier version lacks what has been added since, and did as the defaults do.
        defaults = fields(base_config())
        existing, config = defaults | read_config(path), defaults | config
        differing = [
            f"{name} is {existing.get(name)} there and {config.get(name)} here"
            for name in sorted((existing.keys() | config.keys()).difference(MEANS))
            if existing.get(name) != config.get(name)
        ]
        if differing:
            raise InputError(
                f"workdir={path} belongs to another configuration ({'; '.join(differing)}); "
                "name another --workdir, or the same configuration to go on"
            )

    def claim_data(self, own: dict) -> None:
        """Stores `own`, the record of a `Data`, if the run has none yet.

        Raises:
            InputError: the run was trained on other data.
        """
        known = read_json(self.path / "data.json")
        existing = known or self._known_classes(own)
        differing = [
            _difference(name, existing[name], own[name])
            for name in own
            if existing[name] != own[name]
        ]
        if differing:
            raise InputError(
                f"workdir={self.path} was trained on other data ({'; '.join(differing)}); put the "
                "data back as it was, or name another --workdir"
            )
        if not known:
            write_json(self.path / "classes.json", own["classes"])
            write_json(self.path / "data.json", own)

    def _known_classes(self, own):
        """The record of a run of an earlier version, which stored only the classes."""
        if not (self.path / "classes.json").exists():
            return own
        names = list(read_class_names(self.path))
        if names == [str(label) for label in range(len(own["classes"]))]:
            return own  # a converted checkpoint has no names
        return own | {"classes": names}

    def save(
        self, model: Learner, step: int, score: float | None = None, overlapped: bool = False
    ) -> None:
        """Saves `model`, compiled and built, its optimiser, and its metrics so far.

        Args:
            score, overlapped: see `Checkpoints.save`.
        """
        self.checkpoints.save(step, _content(model), score, overlapped)

    def stop_seconds(self, model: Learner) -> tuple[float, int]:
        """About how long a checkpoint of `model` takes in this folder, and its size in bytes."""
        size = byte_size(_content(model))
        return self.checkpoints.expected_seconds(size), size

    def restore(self, model: Learner) -> int:
        """Loads the newest complete checkpoint, if any, into `model`; returns its step."""
        step, self.restored = self.checkpoints.newest()
        if self.restored:
            content = {name: each for name, each in _content(model).items() if name != "metrics"}
            saved = tf.train.Checkpoint(**content).read(self.restored).expect_partial()
            saved.assert_existing_objects_matched()
        return step

    def restore_metrics(self, model: Learner) -> None:
        """Restores the metrics since the last line, which Keras resets when `fit` begins."""
        metrics = _content(model).get("metrics")
        if self.restored and metrics:
            tf.train.Checkpoint(metrics=metrics).read(self.restored).expect_partial()

    def record_start(self, step: int) -> None:
        """Adds a line to starts.jsonl: the step at which training starts, and the environment."""
        with (self.path / "starts.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "time": time.time()} | environment()) + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Drops the lines of metrics.jsonl later than `step`, which will be measured again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [
                line for line in lines if is_complete(line) and json.loads(line)["step"] <= step
            ]
            write_text(path, "".join(kept))


def erase(path: str | pathlib.Path) -> None:
    """Removes the run in `path`, if there is one, and keeps the folder's lock.

    Raises:
        InputError: the folder holds something that is not a run.
    """
    content = [each for each in pathlib.Path(path).iterdir() if each.name != LOCK]
    if content:
        read_config(path)
    for each in content:
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()


def _difference(name, there, here):
    """The difference between the run's data (there) and the present data (here), in a phrase."""
    if name == "classes":
        removed, added = (sorted(set(a) - set(b)) for a, b in ((there, here), (here, there)))
        if removed or added:
            return (
                f"{len(there)} classes there and {len(here)} here, there without "
                f"{', '.join(added[:5]) or 'none of those'} and here without "
                f"{', '.join(removed[:5]) or 'none of those'}"
            )
        return "the classes are in another order"
    there, here = ((split or {"images": 0})["images"] for split in (there, here))
    if there == here:
        return f"the {there} images of {name} have other names, sizes or labels"
    return f"{name} has {there} images there and {here} here"


def load_model(path: str | pathlib.Path, dtype: str = "float32") -> tuple[Learner, int]:
    """The model of the run in `path` at its last checkpoint, and its training step.

    Its weights are the averages of those that were trained, if the config says so.

    Args:
        path: the run directory.
        dtype: dtype of weights and computation, or a mixed policy; the classifiers, and batch norm
            after trunk and phi, use float32 at least.

    Raises:
        InputError: no run, or a run without a complete checkpoint.
    """
    config = run_config(path)
    step, prefix = Checkpoints(local(path, "workdir") / CHECKPOINTS).newest()
    if prefix is None:
        raise InputError(
            f"workdir must hold a checkpoint, which training writes after each epoch and when it "
            f"stops. Received: workdir={path}"
        )
    classes = len(read_class_names(path))
    # Weights with less precision than the saved ones are cast from them.
    mixed = keras.dtype_policies.get(dtype).variable_dtype == "float32"
    model = build_model(config, classes, dtype if mixed else "float32")
    averaged = config.weight_averaging and config.measured_weights == "averaged"
    saved = tf.train.Checkpoint(**{"averages" if averaged else "model": values(model)})
    saved.read(prefix).expect_partial().assert_existing_objects_matched()
    if not mixed:
        exact, model = model, build_model(config, classes, dtype)
        for variable, value in zip(model.variables, exact.variables, strict=True):
            variable.assign(value)
    return model, step


def _content(model):
    """What a checkpoint holds of `model`."""
    content = {"model": values(model), "optimizer": values(model.optimizer)}
    if model.averages:
        content["averages"] = model.averages.values
    if worker(model.distribute_strategy).alone:  # else reading them would wait for the others
        content["metrics"] = [variable.value for variable in model.metrics_variables]
    return content


def environment() -> dict:
    """Hardware, versions and command of this process, as results record them."""
    return {
        "hardware": hardware(),
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "command": sys.argv,
    }


def hardware() -> str:
    """The processor, see `processor.processor`, and the accelerators."""
    accelerators = [
        tf.config.experimental.get_device_details(device).get("device_name", device.name)
        for device in tf.config.list_physical_devices("GPU")
    ]
    return ", ".join([processor(), *accelerators])


def is_complete(line: str) -> bool:
    """Whether a line of JSON was written to its end."""
    return line.endswith("}\n")
