"""Checkpoints: a crash, a full disk or a damaged file does not lose the run.

checkpoints/300/        a step: TensorFlow's checkpoint, and its tensors' checksums in digest.json
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
from typing import Any

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

# {name: [variable, or tensor]}: what a checkpoint holds.
Content = dict[str, list[Any]]
KEPT = 2
DIGEST = "digest.json"
PREFIX = "checkpoint"
# Names that TensorFlow uses in a checkpoint, for its list of objects and for a variable's value.
OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
ATTRIBUTE = ".ATTRIBUTES/VARIABLE_VALUE"
# How many bytes are written to measure the speed of a folder.
SAMPLE_BYTES = 2**26


class Checkpoints:
    """The checkpoints in `folder`.

    A checkpoint is written to a temporary folder, synced and renamed, so that it is complete or
    absent. The last two and the best one are kept.

    Args:
        folder: where the checkpoints are; it need not exist.

    Attributes:
        seconds: how long the last checkpoint took; None if that is not known.
        spent: how many seconds all checkpoints took that this object has written.
    """

    def __init__(self, folder: str | pathlib.Path):
        self.folder = pathlib.Path(folder)
        self.seconds: float | None = next(
            filter(None, map(self._recorded_seconds, self.steps())), None
        )
        self.spent = 0.0
        self._last: int | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def steps(self) -> list[int]:
        """The steps with a checkpoint, complete or damaged, newest first."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir())
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def save(
        self, step: int, content: Content, score: float | None = None, overlapped: bool = False
    ) -> None:
        """Writes the present values of `content` as the checkpoint of `step`.

        If the checkpoint before is still being written, `save` waits for it.

        Args:
            score: higher is better; None if not known.
            overlapped: whether the values are copied, if there is memory for that, and written
                while the caller goes on; `wait` returns when they are on the disk.

        Raises:
            InputError: this checkpoint or the one before cannot be written, since the disk is full
                or the folder is not writable.
        """
        self.wait()
        if step == self._last:
            return
        started, self._last = time.perf_counter(), step
        if overlapped and byte_size(content) < available_memory() / 2:
            content = {name: [_copied(x) for x in variables] for name, variables in content.items()}
            arguments = step, content, score, started
            self._thread = threading.Thread(target=self._write, args=arguments, daemon=True)
            self._thread.start()
        else:
            self._write(step, content, score, started)
            self.wait()

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> int | None:
        """Waits until the last checkpoint is on the disk; returns its step, or raises as `save`."""
        if self._thread:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if isinstance(error, (OSError, tf.errors.OpError)):
            raise InputError(f"A checkpoint cannot be written to {self.folder}: {error}") from error
        if error:
            raise error
        return self._last

    def _write(self, step, content, score, started):
        target = self.folder / str(step)
        try:
            if not complete(target):
                # A process that was killed may have left files, of any step.
                for leftover in (target, *self.folder.glob(".*unfinished*")):
                    shutil.rmtree(leftover, ignore_errors=True)
                self.folder.mkdir(parents=True, exist_ok=True)
                with replacing(target) as unfinished:
                    self._fill(unfinished, content, started)
            if score is not None and score > self.best()[1]:
                write_json(self.folder / "best.json", {"step": step, "score": score})
            for old in {*self.steps()[KEPT:]} - {self.best()[0]}:
                shutil.rmtree(self.folder / str(old))
        except Exception as error:  # noqa: BLE001  for `wait`, since this may be another thread
            self._error, self._last = error, None
        self.seconds = time.perf_counter() - started
        self.spent += self.seconds

    def _fill(self, folder, content, started):
        """Writes a checkpoint to the new `folder`."""
        folder.mkdir()
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            sums = executor.submit(_sums, content)
            with tf.device("CPU"):
                saved = {name: list(map(_variable, each)) for name, each in content.items()}
            tf.train.Checkpoint(**saved).write(str(folder / PREFIX))
            sync_all(folder)  # inside the measured time
            digest = {"tensors": sums.result(), "files": _sizes(folder)}
        digest["seconds"] = round(time.perf_counter() - started, 3)
        write_json(folder / DIGEST, digest)

    def best(self) -> tuple[int | None, float]:
        """The step of the best score so far, and the score."""
        try:
            best = json.loads((self.folder / "best.json").read_text())
            return best["step"], best["score"]
        except (OSError, ValueError):
            return None, float("-inf")

    def newest(self) -> tuple[int, str | None]:
        """The newest complete checkpoint as (step, prefix), or (0, None) if there is none at all.

        Damaged ones are reported and skipped.

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
                f"folder to start from scratch. Received: checkpoints of the steps {steps}"
            )
        return 0, None

    def expected_seconds(self, size: int) -> float:
        """About how long a checkpoint of `size` bytes takes, from the last one or a measurement."""
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


def byte_size(content: Content) -> int:
    """The bytes of all variables in `content`."""
    return sum(x.dtype.size * x.shape.num_elements() for each in content.values() for x in each)


def complete(folder: pathlib.Path) -> bool:
    """Whether the checkpoint in `folder` is exactly what was written."""
    try:
        digest = json.loads((folder / DIGEST).read_text())
        if "tensors" not in digest:  # version 0.1.0 stored checksums of the files
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
    """A copy of a variable's value, which later updates do not change."""
    value = current(variable)
    with tf.device("CPU"):
        return tf.raw_ops.DeepCopy(x=value)


def _variable(x):
    """What a checkpoint can hold: a variable, or a new one with the value of a copy."""
    return tf.Variable(x, trainable=False) if isinstance(x, tf.Tensor) else x


def _sums(content):
    """{"name/i": SHA-256} of the values in `content`."""
    return {
        f"{name}/{i}": _sum(current(x).numpy())
        for name, each in content.items()
        for i, x in enumerate(each)
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
                while chunk := file.read(2**20):
                    total.update(chunk)
    return {name: total.hexdigest() for name, total in sums.items()}
