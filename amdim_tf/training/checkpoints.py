"""Checkpoints that a crash, a full disk or a damaged file cannot take a run with.

checkpoints/300/        a step: TensorFlow's checkpoint, and the sums of its tensors in digest.json
checkpoints/best.json   the step of the best score, and the score
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import shutil
import sys
import threading
import time

import numpy as np
import tensorflow as tf

from amdim_tf.distribution import current
from amdim_tf.errors import InputError
from amdim_tf.files import (
    UNFINISHED,
    available_memory,
    replacing,
    sync,
    sync_all,
    write_json,
)

KEPT = 2
DIGEST = "digest.json"
PREFIX = "checkpoint"
# TensorFlow's names in a checkpoint: of what objects there are, and of a variable's value.
OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
ATTRIBUTE = ".ATTRIBUTES/VARIABLE_VALUE"
# How much is written to find out how fast a folder is.
SAMPLE_BYTES = 2**26


class Checkpoints:
    """The checkpoints in `folder`.

    A checkpoint is written to a temporary folder, synced and renamed, so that it is complete or
    absent. The last two are kept, and the best.

    Attributes:
        seconds: how long the last one took, None if that is not known.
        spent: the seconds that all took which this object has written.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.seconds = next(filter(None, map(self._recorded_seconds, self.steps())), None)
        self.spent, self._last, self._thread, self._error = 0.0, None, None, None

    def steps(self):
        """Steps of which there are checkpoints, complete or damaged, the newest first."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir())
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def save(self, step, parts, score=None, overlapped=False):
        """Writes the values that `parts` {name: [variable]} have now as the checkpoint of `step`.

        One that is still being written is waited for.

        Args:
            score: the higher the better, if known.
            overlapped: whether the values are copied, if there is memory for that, and written
                while the caller goes on; `wait` tells when they are on the disk.

        Raises:
            InputError: this one or the one before cannot be written, since the disk is full or the
                folder is not writable.
        """
        self.wait()
        if step == self._last:
            return
        started, self._last = time.perf_counter(), step
        if overlapped and byte_size(parts) < available_memory() / 2:
            parts = {name: [_copied(x) for x in variables] for name, variables in parts.items()}
            arguments = step, parts, score, started
            self._thread = threading.Thread(target=self._write, args=arguments, daemon=True)
            self._thread.start()
        else:
            self._write(step, parts, score, started)
            self.wait()

    @property
    def writing(self):
        """Whether a checkpoint is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self):
        """Returns when what was saved is on the disk; returns its step, or raises as `save`."""
        if self._thread:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if isinstance(error, (OSError, tf.errors.OpError)):
            raise InputError(f"A checkpoint cannot be written to {self.folder}: {error}") from error
        if error:
            raise error
        return self._last

    def _write(self, step, parts, score, started):
        target = self.folder / str(step)
        try:
            if not complete(target):
                # What a process that was killed has left, of whatever step.
                for leftover in (target, *self.folder.glob(".*unfinished*")):
                    shutil.rmtree(leftover, ignore_errors=True)
                self.folder.mkdir(parents=True, exist_ok=True)
                with replacing(target) as unfinished:
                    self._fill(unfinished, parts, started)
            if score is not None and score > self.best()[1]:
                write_json(self.folder / "best.json", {"step": step, "score": score})
            for old in {*self.steps()[KEPT:]} - {self.best()[0]}:
                shutil.rmtree(self.folder / str(old))
        except Exception as error:  # noqa: BLE001  for `wait`, since this may be another thread
            self._error, self._last = error, None
        self.seconds = time.perf_counter() - started
        self.spent += self.seconds

    def _fill(self, folder, parts, started):
        """Writes a checkpoint to the new `folder`."""
        folder.mkdir()
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            sums = executor.submit(_sums, parts)
            with tf.device("CPU"):
                saved = {name: list(map(_variable, part)) for name, part in parts.items()}
            tf.train.Checkpoint(**saved).write(str(folder / PREFIX))
            sync_all(folder)  # its time counts
            digest = {"tensors": sums.result(), "files": _sizes(folder)}
        digest["seconds"] = round(time.perf_counter() - started, 3)
        write_json(folder / DIGEST, digest)

    def best(self):
        """The step of the best score so far, and the score."""
        try:
            best = json.loads((self.folder / "best.json").read_text())
            return best["step"], best["score"]
        except (OSError, ValueError):
            return None, float("-inf")

    def newest(self):
        """The newest complete checkpoint as (step, prefix), or (0, None) if there never was one.

        Damaged ones are reported, and passed over.

        Raises:
            InputError: all are damaged.
        """
        steps = self.steps()
        for step in steps:
            folder = self.folder / str(step)
            if complete(folder):
                return step, str(folder / PREFIX)
            print(f"The checkpoint {folder} is damaged; using the one before it.", file=sys.stderr)
        if steps:
            raise InputError(
                f"All checkpoints in {self.folder} are damaged; restore one of them, or remove the "
                f"folder to start anew. Received: those of the steps {steps}"
            )
        return 0, None

    def expected_seconds(self, size):
        """About how long a checkpoint of `size` bytes will take, by the last one or by a try."""
        if self.seconds is not None:
            return self.seconds
        sample, path = min(size, SAMPLE_BYTES), self.folder.parent / f"{UNFINISHED}sample"
        contents, started = os.urandom(sample), time.perf_counter()
        path.write_bytes(contents)
        sync(path)
        seconds = time.perf_counter() - started
        path.unlink()
        return seconds * size / max(sample, 1)

    def _recorded_seconds(self, step):
        try:
            return json.loads((self.folder / str(step) / DIGEST).read_text()).get("seconds")
        except (OSError, ValueError):
            return None


def byte_size(parts):
    """The bytes of all variables in `parts` {name: [variable]}."""
    return sum(x.dtype.size * x.shape.num_elements() for part in parts.values() for x in part)


def complete(folder):
    """Whether the checkpoint in `folder` is what was written."""
    try:
        digest = json.loads((folder / DIGEST).read_text())
        if "tensors" not in digest:  # version 0.1.0 had the sums of the files
            return digest == _file_sums(folder)
        if digest["files"] != _sizes(folder):
            return False
        reader = tf.train.load_checkpoint(str(folder / PREFIX))
        reader.get_tensor(OBJECTS)
        return all(
            _sum(reader.get_tensor(f"{name}/{ATTRIBUTE}")) == total
            for name, total in digest["tensors"].items()
        )
    except (OSError, ValueError, TypeError, RuntimeError, tf.errors.OpError):
        return False


def _copied(variable):
    """The value of a variable in memory of its own, which no later update changes."""
    value = current(variable)
    with tf.device("CPU"):
        return tf.raw_ops.DeepCopy(x=value)


def _variable(x):
    """What a checkpoint can hold: a variable, or one made of a copy."""
    return tf.Variable(x, trainable=False) if isinstance(x, tf.Tensor) else x


def _sums(parts):
    """{"name/i": SHA-256} of the values in `parts` {name: [variable or tensor]}."""
    return {
        f"{name}/{i}": _sum(current(x).numpy())
        for name, part in parts.items()
        for i, x in enumerate(part)
    }


def _sum(array):
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view("uint8")).hexdigest()


def _sizes(folder):
    """{name: bytes} of the files in `folder`."""
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != DIGEST}


def _file_sums(folder):
    """{name: SHA-256} of the files in `folder`."""
    sums = {}
    for path in sorted(folder.iterdir()):
        if path.name != DIGEST:
            sums[path.name] = total = hashlib.sha256()
            with path.open("rb") as file:
                while part := file.read(2**20):
                    total.update(part)
    return {name: total.hexdigest() for name, total in sums.items()}
