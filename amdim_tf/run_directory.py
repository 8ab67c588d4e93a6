"""The run directory: everything a run is, and what it needs to go on after a stop.

config.json     what is trained
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

import tensorflow as tf

from amdim_tf.config import fields
from amdim_tf.errors import InputError

KEPT_CHECKPOINTS = 2


class RunDirectory:
    """Opens or creates `path` for a run of `config`.

    Raises:
        InputError: the directory belongs to another configuration, holds other files, or cannot be
            written.
    """

    def __init__(self, path, config):
        self.path = pathlib.Path(path)
        self.result_path = self.path / "result.json"
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
            existing = json.loads(config_path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(
                f"workdir cannot be used: {error}. Received: workdir={path}"
            ) from error
        differing = [
            f"{name} is {existing.get(name)} there and {config.get(name)} here"
            for name in sorted(existing.keys() | config.keys())
            if existing.get(name) != config.get(name)
        ]
        if differing:
            raise InputError(
                f"workdir={path} belongs to another configuration ({'; '.join(differing)}); "
                "name another --workdir, or the same configuration to go on"
            )

    def result(self):
        """The result of a finished run, else None."""
        return json.loads(self.result_path.read_text()) if self.result_path.exists() else None

    def checkpoints(self, model):
        """A manager that saves `model`, compiled and built, and its optimiser."""
        checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        return tf.train.CheckpointManager(
            checkpoint, str(self.path / "checkpoints"), max_to_keep=KEPT_CHECKPOINTS
        )

    def forget_metrics_after(self, step):
        """Drops the lines of metrics.jsonl later than `step`, which will be measured again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if is_whole(line) and json.loads(line)["step"] <= step]
            write_text(path, "".join(kept))


def is_whole(line):
    return line.endswith("}\n")


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path, text):
    """Replaces `path` by `text` so that a crash leaves either the old file or the new one."""
    beside = path.with_name(f".{path.name}.unfinished")
    beside.write_text(text)
    os.replace(beside, path)
