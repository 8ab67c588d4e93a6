"""Features of all images of a split, computed once and kept in memory or in files mapped to it.

evaluation/features/NAME/      one for each encoder, step of its training, and split
    f1.npy, labels.npy         (M,D) float32 and (M,) int64, by the image's place in the split
    record.json                what they are computed from, and for how many images so far
"""

import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from amdim_tf import distribution
from amdim_tf.data import pipeline, views
from amdim_tf.data.data import Data
from amdim_tf.data.splits import Split
from amdim_tf.data.statistics import moments
from amdim_tf.distribution import Devices, check_agreement, current
from amdim_tf.errors import InputError
from amdim_tf.files import read_json, replacing, sync, write_json
from amdim_tf.progress import progress
from amdim_tf.typing import Config

# Seconds between records of how far the files are written.
FLUSH_SECONDS = 30
# Rows that are summed at a time.
BLOCK = 8192
# Side of raw pixels: larger images are no better a baseline, and do not fit into memory.
RAW_SIZE = 32


class Features:
    """f1 (N,D) of the N images of a split that have labels (N,), in order.

    Args:
        values: (M,...), for all images by their places in the split; an array or a mapped file.
        labels: (M,), -1 for images that do not count.
        rows: the places of the images that count, in order; by default all with a label.
        prepare: makes features (n,D) float32 from values; by default they are features already.
    """

    def __init__(
        self,
        values: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray | None = None,
        prepare: Callable | None = None,
    ):
        self.values, self.all_labels, self.prepare = values, labels, prepare
        self.rows = np.flatnonzero(labels >= 0) if rows is None else rows
        self.labels = np.asarray(labels[self.rows])
        self.width = self.at(slice(0, 0)).shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, chosen: np.ndarray | slice) -> np.ndarray:
        """The features (n,D) of the images at `chosen` places or in that slice, in memory."""
        values = np.asarray(self.values[self.rows[chosen]])
        return self.prepare(values) if self.prepare else values

    def block(self, start: int, stop: int) -> np.ndarray:
        """The features (n,D) from `start` to `stop`, in memory."""
        return self.at(slice(start, stop))

    def within(self, places: np.ndarray) -> "Features":
        """The `Features` of the images at `places` (n,) of the split."""
        rows = np.intersect1d(self.rows, places)
        return Features(self.values, self.all_labels, rows, self.prepare)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (D,) float32."""
        blocks = (self.block(start, start + BLOCK) for start in range(0, len(self), BLOCK))
        _, mean, deviation = moments(blocks, self.width)
        return mean.astype("float32"), deviation.astype("float32")


def encode(
    encoder: keras.Model,
    data: Data,
    split: Split,
    config: Config,
    devices: Devices | None = None,
    folder: str | pathlib.Path | None = None,
    step: int = 0,
) -> Features:
    """Computes the `Features` f1 of all images of a `split` of `data`, in inference mode.

    Args:
        encoder: an `Encoder`, or another model with an output `f1` (B,nrkhs).
        data, config: see `pipeline.test_batches`.
        devices: `distribution.Devices`, by default one; all replicas share the work.
        folder: keeps the features, and those that are in it are not computed again; by default
            they are kept in memory.
        step: the step of the encoder's training. Features of another step in `folder` are removed,
            since their encoder is gone.

    Raises:
        InputError: the disk has no room for the features.
    """
    devices = devices or Devices(tf.distribute.get_strategy())
    variables = encoder.variables
    f1_of = distribution.region(
        distribution.stateless(lambda images: encoder(images, training=False)["f1"], variables),
        devices.compiled,
    )

    def function(places, images, labels):
        f1 = f1_of([tf.convert_to_tensor(variable.value) for variable in variables], images)
        return tf.cast(f1, tf.float32), labels

    kept = None
    if folder:
        kept = _kept(encoder, split, config, folder, step, devices.worker.chief)
        check_agreement(devices.strategy, f"features of {kept.done} images")
    return Features(*_collect(function, data, split, config, devices, kept))


def kept_features(
    encoder: keras.Model, split: Split, config: Config, folder: str | pathlib.Path, step: int
) -> Features | None:
    """The `Features` that `encode` computed before with these arguments, or None if incomplete."""
    kept = _kept(encoder, split, config, folder, step)
    return Features(kept.values(), kept.labels) if kept.done == split.size else None


def _kept(encoder, split, config, folder, step, writes=False):
    description = {
        "step": step,
        "encoder": digest(encoder),
        "precision": encoder.dtype_policy.name,
        "data": split.digest,
        "images": preparation(config),
    }
    return Kept(pathlib.Path(folder), description, (split.size, encoder.nrkhs), writes)


def preparation(config: Config) -> list:
    """What images are and how they are prepared, as the record of kept features has it."""
    white = [config.white] * (config.white > 0)
    return [config.dataset, config.image_size, *config.mean, *config.std, *white]


def raw_pixels(data: Data, split: Split, config: Config) -> Features:
    """The pixels of all images of a `split` as `Features`, at most `RAW_SIZE` a side.

    They are kept as uint8, and normalised to (N,S*S*C) float32 when they are needed.
    """
    size = min(config.image_size, RAW_SIZE)
    mean, std = (np.tile(np.float32(x), size * size) for x in (config.mean, config.std))

    def prepare(image):
        pixels = tf.cast(tf.round(views.center(image[None], size)[0]), tf.uint8)
        return tf.ensure_shape(pixels, (size, size, data.channels))

    def function(places, images, labels):
        return images, labels

    devices = Devices(tf.distribute.get_strategy())
    pixels, labels = _collect(function, data, split, config, devices, prepare=prepare)
    pixels = pixels.reshape(len(pixels), -1)
    return Features(pixels, labels, prepare=lambda x: (x / np.float32(255) - mean) / std)


def digest(model: keras.Model) -> str:
    """A text that differs if the weights of a `model` differ."""
    total = hashlib.sha256()
    for variable in model.variables:
        total.update(current(variable.value).numpy().tobytes())
    return total.hexdigest()


def _collect(function, data, split, config, devices, kept=None, prepare=None):
    """Values (M,...) of all images of a `split` by place, and labels (M,), -1 for bad images.

    Args:
        function: maps batches of `pipeline.test_batches` to values (B,...) and their labels.
        kept: a `Kept` that holds the values; by default they are in memory.
    """
    values, place = None, kept.done if kept else 0
    labels = kept.labels if kept else np.full(split.size, -1)
    first = place // pipeline.batch_size(split)
    batches = pipeline.test_batches(data, split, config, devices.worker, first, prepare)
    each = distribution.over_batches(function, devices.strategy)
    quiet = not devices.worker.chief
    with progress(split.size, place, leave=False, delay=5, disable=quiet) as bar:
        for rows, known in each(batches) if place < split.size else ():
            rows = rows[: split.size - place]  # without the padding of the last batches
            stop = place + len(rows)
            labels[place:stop] = known[: len(rows)]
            if kept:
                kept.write(place, rows)
            else:
                if values is None:
                    values = np.empty((split.size, *rows.shape[1:]), rows.dtype)
                values[place:stop] = rows
            bar.update(len(rows))
            place = stop
    if kept:
        kept.finish(place)
        check_agreement(devices.strategy, "features are computed")
        values = kept.values()
    if not (labels >= 0).any():
        data.failures.check()
        raise InputError(
            "Measuring needs at least one image that can be decoded and has a label. "
            f"Received: {split.size} images, and none can be used"
        )
    return values, labels


class Kept:
    """Features (M,D) in files; see the docstring of this module.

    Args:
        folder: holds all features of a run.
        description: {name: value}, what the features are computed from.
        shape: M and D.
        writes: whether this process writes the files.

    Attributes:
        done: how many images, from the first on, are in the files.
        labels: (M,) int64, as far as they are known.

    Raises:
        InputError: the disk has no room for the features.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        description: dict[str, Any],
        shape: tuple[int, int],
        writes: bool,
    ):
        text = json.dumps(description, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.description, self.shape, self.writes = description, shape, writes
        record = read_json(self.folder / "record.json")
        self.done = record["done"] if record else 0
        self.labels = np.load(self.folder / "labels.npy") if record else np.full(shape[0], -1)
        self.file: Any = None

    def values(self) -> np.memmap:
        """The features (M,D), as a file that is mapped to memory."""
        return np.load(self.folder / "f1.npy", mmap_mode="r")

    def write(self, place: int, rows: np.ndarray) -> None:
        """Writes `rows` (n,D), the features of the images from `place` on."""
        if not self.writes:
            return
        if not self.file:
            self._open()
        self.file.seek(self.start + place * rows[0].nbytes)
        self.file.write(rows)
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self._flush(place + len(rows))

    def finish(self, place: int) -> None:
        """Makes the features of images before `place` safe from a crash, and closes the file."""
        if self.file:
            self._flush(place)
            self.file.close()

    def _open(self):
        path = self.folder / "f1.npy"
        if not self.done:
            self._make_room()
            np.lib.format.open_memmap(path, "w+", np.float32, self.shape)
        self.start = self.values().offset
        # Writing through the map would end the process if the disk is full.
        self.file = path.open("r+b")
        self._flush(self.done)

    def _make_room(self):
        """Removes features of other steps, and checks that there is room for the new ones."""
        for path in self.folder.parent.glob("*/record.json"):
            if read_json(path).get("step") != self.description["step"]:
                print(f"Removing {path.parent}, features of another step of the training.")
                shutil.rmtree(path.parent)
        self.folder.mkdir(parents=True, exist_ok=True)
        free, size = shutil.disk_usage(self.folder).free, 4 * self.shape[0] * self.shape[1]
        if size > free:
            raise InputError(
                f"The features of {self.shape[0]} images take {size / 1e9:.1f} GB in "
                f"{self.folder}. Received: a disk with {free / 1e9:.1f} GB left"
            )

    def _flush(self, done):
        self.file.flush()
        sync(self.folder / "f1.npy")
        with replacing(self.folder / "labels.npy") as unfinished:
            np.save(unfinished, self.labels)
        write_json(self.folder / "record.json", self.description | {"done": done})
        self.flushed = time.monotonic()
