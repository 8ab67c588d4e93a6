"""Splits of ArrayRecord files, in which any record can be read by its place."""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from amdim_tf.data.splits import AUTOTUNE, Split, fold, permutation
from amdim_tf.errors import InputError

# Records that one call reads.
TOGETHER = 64
PIXELS = {"image": tf.io.FixedLenFeature((), tf.string)}


def in_array_records(instructions: Sequence[tuple], parse: Callable) -> Split:
    """The `Split` of records in ArrayRecord files, shuffled as one set for training.

    Args:
        instructions, parse: see `splits.in_files`.

    Raises:
        InputError: no array_record is installed.
    """
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise InputError(
            "Sets of ArrayRecord files are read by array_record: pip install array_record. "
            f"Received: {instructions[0][0]}"
        ) from error
    paths, skips, takes, sizes = (np.array(column) for column in zip(*instructions, strict=True))
    ends = np.cumsum(takes)
    names = [os.path.basename(path) for path in paths]
    described = repr([names, skips.tolist(), takes.tolist(), sizes.tolist()]).encode()

    @functools.cache
    def reader(file):
        return ArrayRecordReader(str(paths[file]))

    def read(places):
        """The records (B,) at `places` (B,) of the split."""
        records, files = np.empty(len(places), object), np.searchsorted(ends, places, "right")
        for file in np.unique(files):
            own = np.flatnonzero(files == file)
            inside = places[own] - (ends[file] - takes[file]) + skips[file]
            records[own] = reader(file).read(inside.tolist())
        return records

    def examples(places):
        def batch(places):
            records = tf.numpy_function(read, [places], tf.string)
            return tf.ensure_shape(records, (None,))

        return places.batch(TOGETHER).map(batch, AUTOTUNE).unbatch().map(parse)

    def at(chosen):
        """The `Split` of the records at `chosen`, an array of places."""

        def order(seed, first):
            drawn = tf.gather(chosen, permutation(len(chosen), fold(seed, 0))[first:])
            return examples(tf.data.Dataset.from_tensor_slices(drawn))

        def start(first):
            return examples(tf.data.Dataset.from_tensor_slices(chosen[first:]))

        return Split(
            start(0),
            len(chosen),
            hashlib.sha256(described + chosen.tobytes()).hexdigest(),
            order,
            start,
            lambda count: at(chosen[np.arange(count) * len(chosen) // count]),
            choose=lambda places, folder=None: at(chosen[np.asarray(places)]),
        )

    return at(np.arange(ends[-1]))


def named_images(instructions: Sequence[Any]) -> tf.data.Dataset:
    """The (name, file) of each image, named as TFDS names the records of files of other kinds.

    Args:
        instructions: TFDS's `file_instructions`.
    """
    names = [
        f"{os.path.basename(one.filename)}__{one.skip + i}"
        for one in instructions
        for i in range(one.take)
    ]
    split = in_array_records(
        [(str(one.filename), one.skip, one.take, 0) for one in instructions],
        lambda record: tf.io.parse_single_example(record, PIXELS)["image"],
    )
    return tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(names), split.examples)
