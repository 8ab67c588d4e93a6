"""Files of features: Parquet and TFRecord, by name of the image; and files of text.

Rows come in batches (names (N,) bytes, f1 (N,D) float32), and go to any file system that TensorFlow
knows.
"""

import io
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from amdim_tf.errors import InputError, one_line
from amdim_tf.files import local, printable, replacing

# Batches of rows that are a row group of a Parquet file.
GROUP = 16


def write_complete(path: str, write: Callable, *contents: Any) -> None:
    """Calls `write(*contents, path)` such that a crash leaves no `path` that is incomplete."""
    with replacing(path) as unfinished:
        write(*contents, str(unfinished))


def write_text(text: str, path: str) -> None:
    """Writes `text`, which may hold names of files, to `path`."""
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(os.fsencode(text))


def write_parquet(rows: Iterable[tuple], path: str) -> None:
    """Writes a Parquet file with the columns name (string) and f1 (list of float32), by groups."""
    schema = pa.schema({"name": pa.string(), "f1": pa.list_(pa.float32())})

    def grouped():
        group = []
        for row in rows:
            group.append(row)
            if len(group) == GROUP:
                yield group
                group = []
        if group:
            yield group

    with tf.io.gfile.GFile(path, "wb") as file, pq.ParquetWriter(_Sink(file), schema) as writer:
        for group in grouped():
            names, f1 = (np.concatenate(column) for column in zip(*group, strict=True))
            offsets = np.arange(len(f1) + 1, dtype="int32") * f1.shape[1]
            lists = pa.ListArray.from_arrays(offsets, f1.ravel())
            writer.write_table(pa.table([list(map(printable, names)), lists], schema))


class _Sink(io.RawIOBase):
    """A file of TensorFlow, as a file of Python."""

    def __init__(self, file):
        self.file = file

    def writable(self):
        return True

    def write(self, data):
        self.file.write(bytes(data))
        return len(data)


def write_tfrecord(rows: Iterable[tuple], path: str) -> None:
    """Writes a TFRecord file of `tf.train.Example`s with name (bytes) and f1 (floats)."""
    with tf.io.TFRecordWriter(path) as records:
        for name, f1 in ((name, f1) for row in rows for name, f1 in zip(*row, strict=True)):
            feature = {
                "name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name])),
                "f1": tf.train.Feature(float_list=tf.train.FloatList(value=f1)),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            records.write(example.SerializeToString())


def read_features(path: str | pathlib.Path) -> tuple[list[str], np.ndarray]:
    """Names and features (N,D) of a Parquet file, a folder of such, or a NumPy array.

    The names of an array are its rows' numbers.

    Raises:
        InputError: there is nothing of the kind.
    """
    path = local(path, "features")
    try:
        if path.suffix == ".npy":
            f1 = np.load(path, mmap_mode="r")
            if f1.ndim != 2:
                raise ValueError(f"an array of shape {f1.shape}")
            return [str(row) for row in range(len(f1))], f1
        table = pq.read_table(path, columns=["name", "f1"])
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise InputError(
            "Features must be Parquet files that amdim_tf.embed wrote, or a .npy file of (N,D) "
            f"numbers. Received: {path} ({one_line(error)})"
        ) from error
    f1 = table["f1"].combine_chunks()
    return table["name"].to_pylist(), f1.flatten().to_numpy().reshape(len(f1), -1)
