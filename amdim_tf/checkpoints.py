"""Checkpoints that a crash, a full disk or a damaged file cannot take a run with.

checkpoints/300/        a step: TensorFlow's checkpoint, and digest.json with the sums of its files
checkpoints/best.json   the step of the best score, and the score
"""

import hashlib
import json
import pathlib
import shutil
import sys

import tensorflow as tf

from amdim_tf.errors import InputError
from amdim_tf.files import sync, sync_all, write_json

KEPT = 2
DIGEST = "digest.json"


class Checkpoints:
    """The checkpoints in `folder`.

    A checkpoint is written beside, synced and renamed, so that it is whole or absent. The last two
    are kept, and the best.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def steps(self):
        """Steps of which there are checkpoints, whole or damaged, the newest first."""
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir())
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def save(self, step, saved, score=None):
        """Writes `saved`, a `tf.train.Checkpoint`, as that of `step`.

        Args:
            score: the higher the better, if known.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        target = self.folder / str(step)
        beside = self.folder / f".{step}.unfinished"
        try:
            if not whole(target):
                for leftover in (beside, target):
                    shutil.rmtree(leftover, ignore_errors=True)
                beside.mkdir(parents=True)
                saved.write(str(beside / "checkpoint"))
                write_json(beside / DIGEST, digests(beside))
                sync_all(beside)
                beside.rename(target)
                sync(self.folder)
            if score is not None and score > self.best()[1]:
                write_json(self.folder / "best.json", {"step": step, "score": score})
            for old in {*self.steps()[KEPT:]} - {self.best()[0]}:
                shutil.rmtree(self.folder / str(old))
        except (OSError, tf.errors.OpError) as error:
            raise InputError(f"A checkpoint cannot be written to {self.folder}: {error}") from error

    def best(self):
        """The step of the best score so far, and the score."""
        try:
            best = json.loads((self.folder / "best.json").read_text())
            return best["step"], best["score"]
        except (OSError, ValueError):
            return None, float("-inf")

    def newest(self):
        """The newest whole checkpoint as (step, prefix), or (0, None) if there never was one.

        Damaged ones are reported, and passed over.

        Raises:
            InputError: all are damaged.
        """
        steps = self.steps()
        for step in steps:
            folder = self.folder / str(step)
            if whole(folder):
                return step, str(folder / "checkpoint")
            print(f"The checkpoint {folder} is damaged; using the one before it.", file=sys.stderr)
        if steps:
            raise InputError(
                f"All checkpoints in {self.folder} are damaged; restore one of them, or remove the "
                f"folder to start anew. Received: those of the steps {steps}"
            )
        return 0, None


def whole(folder):
    """Whether the files in `folder` are what was written."""
    try:
        return json.loads((folder / DIGEST).read_text()) == digests(folder)
    except (OSError, ValueError):
        return False


def digests(folder):
    """{name: SHA-256} of the files in `folder`."""
    sums = {}
    for path in sorted(folder.iterdir()):
        if path.name != DIGEST:
            sums[path.name] = total = hashlib.sha256()
            with path.open("rb") as file:
                while part := file.read(2**20):
                    total.update(part)
    return {name: total.hexdigest() for name, total in sums.items()}
