"""The run directory: everything a run is, and what it needs to go on after a stop.

config.json     what is trained
classes.json    names of the classes, in order of their labels
metrics.jsonl   one line per measurement, with its step
tensorboard/    the same for TensorBoard
checkpoints/    weights, optimiser and random state
encoder.keras   the encoder for Keras
export/1/       the encoder for TF Serving
result.json     accuracies and how they were obtained; written last
"""

import json
import os
import pathlib
import platform
import sys

import keras
import tensorflow as tf

from amdim_tf.config import MEANS, fields, load_config
from amdim_tf.errors import InputError
from amdim_tf.model import build_model

KEPT_CHECKPOINTS = 2
# Of an export: what it was exported from.
METADATA = "assets.extra/amdim.json"


class RunDirectory:
    """Opens or creates `path` for a run of `config`.

    Raises:
        InputError: the directory belongs to another configuration, holds other files, or cannot be
            written.
    """

    def __init__(self, path, config):
        self.path = pathlib.Path(path)
        config_path = self.path / "config.json"
        config = fields(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not config_path.exists():
                if any(not path.name.endswith(".unfinished") for path in self.path.iterdir()):
                    raise InputError(
                        "workdir must be new, empty, or a run of the same configuration. "
                        f"Received: workdir={path}, which holds other files"
                    )
                write_json(config_path, config)
        except OSError as error:
            raise InputError(
                f"workdir cannot be used: {error}. Received: workdir={path}"
            ) from error
        existing = read_config(path)
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

    def checkpoints(self, model):
        """A manager that saves `model`, compiled and built, and its optimiser."""
        return tf.train.CheckpointManager(
            tf.train.Checkpoint(
                encoder=values(model.encoder),
                model=values(model),
                optimizer=values(model.optimizer),
            ),
            str(self.path / "checkpoints"),
            max_to_keep=KEPT_CHECKPOINTS,
        )

    def forget_metrics_after(self, step):
        """Drops the lines of metrics.jsonl later than `step`, which will be measured again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if is_whole(line) and json.loads(line)["step"] <= step]
            write_text(path, "".join(kept))


def read_config(path):
    """The flat config of the run in `path`, as `config.fields` gives it."""
    try:
        config = json.loads((pathlib.Path(path or "") / "config.json").read_text())
        if not isinstance(config, dict):
            raise ValueError("config.json holds no fields")
        return config
    except (OSError, ValueError) as error:
        raise InputError(
            f"workdir must be a run directory with its config.json. Received: workdir={path}"
        ) from error


def run_config(path):
    """The config of the run in `path`."""
    return to_config(read_config(path))


def to_config(own):
    """The config of which `own` are the fields, as JSON has them."""
    config = load_config(own["dataset"], own["size"], own["variant"])
    config.update_from_flattened_dict(
        {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    )
    return config


def read_class_names(path):
    """Names of the classes of the run in `path`; none if its data has none."""
    try:
        return tuple(json.loads((pathlib.Path(path) / "classes.json").read_text()))
    except (OSError, ValueError) as error:
        raise InputError(
            f"workdir must be a run directory with its classes.json. Received: workdir={path}"
        ) from error


def read_result(path):
    """The result of the run in `path` if it is finished, else None."""
    path = pathlib.Path(path) / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def latest_checkpoint(path):
    """The prefix of the last checkpoint of the run in `path`, if it has one."""
    return tf.train.latest_checkpoint(str(pathlib.Path(path) / "checkpoints"))


def load_model(path, dtype="float32"):
    """The model of the run in `path` at its last checkpoint, and its training step.

    Args:
        path: the run directory.
        dtype: of weights and computation, but for batch norm after trunk and phi and the
            classifiers, which are of float32 at least.

    Raises:
        InputError: no run, or one without a checkpoint.
    """
    config = run_config(path)
    checkpoint = latest_checkpoint(path)
    if checkpoint is None:
        raise InputError(
            f"workdir must hold a checkpoint, which training writes after each epoch and when it "
            f"stops. Received: workdir={path}"
        )
    model = build_model(config, len(read_class_names(path)), "float32")
    saved = tf.train.Checkpoint(model=values(model))
    saved.restore(checkpoint).expect_partial().assert_existing_objects_matched()
    if dtype != "float32":
        exact, model = model, build_model(config, len(read_class_names(path)), dtype)
        for variable, value in zip(model.variables, exact.variables, strict=True):
            variable.assign(value)
    return model, int(checkpoint.rsplit("-", 1)[1])


def values(owner):
    """TensorFlow's variables of a Keras object, in order, but for its metrics.

    TensorFlow would not find those of layers that Keras keeps in lists by itself.
    """
    metrics = {id(variable) for variable in getattr(owner, "metrics_variables", ())}
    return [variable.value for variable in owner.variables if id(variable) not in metrics]


def environment():
    """What a result was obtained with: hardware, versions and command."""
    return {
        "hardware": hardware(),
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "command": sys.argv,
    }


def hardware():
    """The processor's name, number of cores and accelerators."""
    try:
        names = pathlib.Path("/proc/cpuinfo").read_text().split("model name\t: ")
        processor = names[1].splitlines()[0]
    except (OSError, IndexError):
        processor = platform.processor() or platform.machine()
    accelerators = [
        tf.config.experimental.get_device_details(device).get("device_name", device.name)
        for device in tf.config.list_physical_devices("GPU")
    ]
    return ", ".join([f"{os.cpu_count()} cores of {processor}", *accelerators])


def is_whole(line):
    return line.endswith("}\n")


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path, text):
    """Replaces `path` by `text` so that a crash leaves either the old file or the new one."""
    beside = path.with_name(f".{path.name}.unfinished")
    beside.write_text(text)
    os.replace(beside, path)
