"""Splits: records of a data set in a fixed order, and the order in which training reads them."""

import ctypes
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from amdim_tf.errors import InputError
from amdim_tf.files import replacing
from amdim_tf.typing import Tensor

# Records that are shuffled together in memory, and the places of a larger set they come from.
GROUP_BYTES = 2**30
GROUP_BLOCKS = 16
SHUFFLE_WINDOW = 16384
# A larger subset of records in files is read from the files whenever it is needed.
SUBSET_BYTES = 2**32
# What frames a record in a TFRecord file: its length, and the checksums of length and data.
FRAME_BYTES = 16
LABEL = {"label": tf.io.FixedLenFeature((), tf.int64)}
AUTOTUNE = tf.data.AUTOTUNE


@dataclasses.dataclass(frozen=True)
class Split:
    """Records of a data set, in a fixed order: `examples` yields (record, label () int64).

    Args:
        examples: a dataset of all of them.
        size: their number.
        digest: text that differs for other records.
        order: does what `shuffled` does, for records that can be read from any place.
        start: gives the examples from a place (int) on, if that costs less than to skip.
        sampled: gives a `Split` of at most a number of records from all over this one.
        index: gives the `Index` of records in files, kept in a folder if it is not None.
        choose: gives the `Split` of the records at places (N,); takes a folder as `index` does.
    """

    examples: tf.data.Dataset
    size: int
    digest: str
    order: Callable | None = None
    start: Callable | None = None
    sampled: Callable | None = None
    index: Callable | None = None
    choose: Callable | None = None

    def shuffled(self, seed: Tensor, first: Tensor) -> tf.data.Dataset:
        """The examples from the place `first` on in the order that `seed` draws, once each.

        It must be called in a function that `tf.data` maps.

        Args:
            seed: (2,) int64, such as (seed, epoch).
            first: () int64. With an `order`, no example costs more to start at than another.
        """
        if self.order:
            return self.order(seed, first)
        # The order depends on this function's own seed as well, which would else be the global one.
        tf.compat.v1.set_random_seed(1)
        seed = tf.random.stateless_uniform((), fold(seed, 0), None, None, tf.int64, "philox")
        window = min(SHUFFLE_WINDOW, self.size)
        return self.examples.shuffle(window, seed, reshuffle_each_iteration=False).skip(first)

    def examples_from(self, first: int) -> tf.data.Dataset:
        """The examples from the place `first` on."""
        return self.start(first) if self.start else self.examples.skip(first)

    def sample(self, count: int) -> "Split":
        """At most `count` of the records: the first, or the first few of each file."""
        if count >= self.size:
            return self
        if self.sampled:
            return self.sampled(count)
        return Split(self.examples.take(count), count, f"the first {count} of {self.digest}")

    def labels(self, folder: str | pathlib.Path | None = None) -> np.ndarray:
        """All labels (size,) int64, without decoding an image.

        Args:
            folder: where the labels of a set in files are kept, since to read them takes a while.
        """
        if self.index:
            return self.index(folder).labels
        labels = self.examples.map(lambda _, label: label).batch(4096)
        return np.concatenate(list(labels.as_numpy_iterator()))

    def subset(self, places: np.ndarray, folder: str | pathlib.Path | None = None) -> "Split":
        """The records at `places` (N,), which are in order; for `folder` see `labels`."""
        if self.choose:
            return self.choose(places, folder)
        wanted = np.zeros(self.size, bool)
        wanted[places] = True
        wanted = tf.constant(wanted)
        chosen = self.examples.enumerate().filter(lambda place, _: wanted[place])
        records, labels = zip(*(example for _, example in chosen), strict=True)
        return in_memory(tf.stack(records), tf.stack(labels))


@dataclasses.dataclass(frozen=True)
class Index:
    """Label, place in the list of files, bytes before, and length of each record, in order."""

    labels: np.ndarray
    files: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray


def in_memory(records: Tensor, labels: Tensor, digest: Any = None) -> Split:
    """The `Split` of `records` (N,...) and `labels` (N,), arrays or lists.

    Its `digest` is one of `hashlib`'s, by default that of all records and labels.
    """
    with tf.device("CPU"):
        examples = tf.constant(records), tf.constant(labels, tf.int64)

    def order(seed, first):
        return _shuffled(examples, fold(seed, 0), first, lambda *example: example)

    def choose(places, folder=None):
        return in_memory(*(tf.gather(column, places) for column in examples))

    if not digest:
        digest = hashlib.sha256(examples[1].numpy().tobytes())
        for start in range(0, len(labels), 2**16):
            chunk = examples[0][start : start + 2**16].numpy()
            digest.update(b"\0".join(chunk.ravel()) if chunk.dtype == object else chunk.tobytes())
    return Split(
        tf.data.Dataset.from_tensor_slices(examples),
        len(labels),
        digest.hexdigest(),
        order,
        choose=choose,
    )


def in_files(instructions: Sequence[tuple], parse: Callable) -> Split:
    """The `Split` of records in TFRecord files.

    Its order for training is one of blocks of consecutive records. The blocks are read group by
    group, and the records of a group are shuffled together: to start anywhere is to read one group.
    A set that fits into one group is thus shuffled completely; of a larger set, one group is in
    memory while the next is read. With what the allocator keeps, that takes up to three times
    `GROUP_BYTES`.

    Args:
        instructions: [(file, skip, take, size)]: the `take` records of each file from `skip` on,
            and about how many bytes they have.
        parse: maps a serialised record () string to the example (record, label).
    """
    paths, skips, takes, sizes = (np.array(column) for column in zip(*instructions, strict=True))
    ends, size = np.cumsum(takes), int(takes.sum())
    indexed: list[Index] = []
    names = [os.path.basename(path) for path in paths]
    described = [names, skips.tolist(), takes.tolist(), sizes.tolist()]
    digest = hashlib.sha256(repr(described).encode()).hexdigest()

    def start(first):
        # Files whose records all lie before `first` are not opened.
        left = ends > first
        passed = np.maximum(first - (ends - takes), 0)[left]
        rest = paths[left], skips[left] + passed, takes[left] - passed
        return tf.data.Dataset.from_tensor_slices(rest).flat_map(_records).map(parse)

    def sampled(count):
        shares = np.diff(ends * count // size, prepend=0)
        few = zip(paths, skips, shares, sizes * shares // takes, strict=True)
        return in_files([one for one in few if one[2]], parse)

    def index(folder=None):
        if not indexed:
            path = folder and pathlib.Path(folder) / f"index-{digest[:16]}.npz"
            indexed.append(_kept_index(path, paths, skips, takes))
        return indexed[0]

    def choose(places, folder=None):
        return _chosen(index(folder), places, paths, parse)

    order = _in_groups(paths, skips, takes, sizes, parse)
    return Split(start(0), size, digest, order, start, sampled, index, choose)


def _records(path, skip, take):
    return tf.data.TFRecordDataset(path).skip(skip).take(take)


def _in_groups(paths, skips, takes, sizes, parse):
    """The `Split.order` of records in files, see `in_files`."""
    groups = max(1, -(-int(sizes.sum()) // GROUP_BYTES))
    # What lies before a block has to be skipped, so blocks are as long as a good mixture allows.
    length = takes.sum() / (groups * GROUP_BLOCKS) if groups > 1 else takes.sum()
    blocks = []
    for path, skip, take in zip(paths, skips, takes, strict=True):
        starts = np.linspace(0, take, max(1, round(take / length)) + 1).astype("int64")
        for start, end in zip(starts[:-1], starts[1:], strict=True):
            blocks.append((path, skip + start, end - start))
    columns = [np.array(column) for column in zip(*blocks, strict=True)]
    together = -(-len(blocks) // groups)

    def load(number, group):
        # Which records are neighbours in memory does not matter, but it must always be the same.
        records = tf.data.Dataset.from_tensor_slices(group).interleave(
            _records, cycle_length=GROUP_BLOCKS, num_parallel_calls=AUTOTUNE, deterministic=True
        )
        # A file that lacks records would move all others to other steps.
        count = tf.reduce_sum(group[-1])
        complete = records.apply(tf.data.experimental.assert_cardinality(count)).batch(count)
        return complete.map(lambda records: (number, records))

    def order(seed, first):
        places = permutation(len(blocks), fold(seed, 0))
        drawn = [tf.gather(column, places) for column in columns]
        starts = tf.cumsum(drawn[-1], exclusive=True)[::together]
        group = tf.searchsorted(starts, [first], side="right", out_type=tf.int64)[0] - 1
        return (
            tf.data.Dataset.from_tensor_slices(tuple(drawn))
            .skip(group * together)
            .batch(together)
            .enumerate(group)
            .flat_map(load)
            .prefetch(1)
            .flat_map(
                lambda number, records: _shuffled(
                    [_after_release(records)],
                    fold(seed, number + 1),
                    tf.maximum(first - tf.gather(starts, number), 0),
                    parse,
                )
            )
        )

    return order


def _after_release(records):
    """The tensor `records`, once memory that is free has gone back to the system.

    One thread allocates a record and another frees it, so the C library's heaps would keep the
    memory of several groups that are gone.
    """
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if not release:  # another C library
        return records
    with tf.control_dependencies([tf.numpy_function(lambda: np.int32(release(0)), [], tf.int32)]):
        return tf.identity(records)


def _kept_index(path, paths, skips, takes):
    """The `Index` of these records, from the file `path` if it is there, else written to it."""
    if path and path.exists():
        with np.load(path) as kept:
            return Index(**kept)
    columns = _read_index(paths, skips, takes)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            np.savez(unfinished, **vars(columns))
    return columns


def _read_index(paths, skips, takes):
    """The `Index` of the records; each file is read once, several of them at a time."""

    def of_file(path, skip, take):
        def summary(records):
            parsed = tf.io.parse_example(records, LABEL)
            return parsed["label"], tf.strings.length(records)

        # The bytes before a record are known from the lengths of all records before it.
        batches = tf.data.TFRecordDataset(path).take(skip + take).batch(1024).map(summary)
        return batches.unbatch().batch(skip + take)

    files = tf.data.Dataset.from_tensor_slices((paths, skips, takes))
    read = files.interleave(
        of_file, cycle_length=GROUP_BLOCKS, num_parallel_calls=AUTOTUNE, deterministic=True
    )
    columns = {name: [] for name in ("labels", "files", "offsets", "lengths")}
    for number, (labels, lengths) in enumerate(read.as_numpy_iterator()):
        framed = lengths.astype("int64") + FRAME_BYTES
        columns["labels"].append(labels[skips[number] :])
        columns["files"].append(np.full(takes[number], number, "int32"))
        columns["offsets"].append((np.cumsum(framed) - framed)[skips[number] :])
        columns["lengths"].append(framed[skips[number] :])
    found = sum(map(len, columns["labels"]))
    if found != takes.sum():
        raise InputError(
            f"The files of a split must hold the {takes.sum()} records that their description "
            f"promises. Received: {found} in {paths[0]} and the other files"
        )
    return Index(**{name: np.concatenate(chunks) for name, chunks in columns.items()})


def _chosen(index, places, paths, parse):
    """The `Split` of the records at `places` of those that `index` knows.

    They are kept in memory, or read from their places in the files if they are too large, in the
    same order.
    """
    columns = paths[index.files[places]], index.offsets[places], index.lengths[places]

    def read(path, offset, length):
        records = tf.raw_ops.TFRecordDatasetV2(
            filenames=[path], compression_type="", buffer_size=length, byte_offsets=[offset]
        )
        records = tf.data.experimental.from_variant(records, tf.TensorSpec((), tf.string))
        return parse(records.take(1).get_single_element())

    examples = tf.data.Dataset.from_tensor_slices(columns).map(read, AUTOTUNE)
    if columns[-1].sum() <= SUBSET_BYTES:
        return in_memory(*zip(*examples.as_numpy_iterator(), strict=True))

    def order(seed, first):
        drawn = tf.data.Dataset.from_tensor_slices(permutation(len(places), fold(seed, 0))[first:])
        return drawn.map(lambda place: read(*(tf.gather(x, place) for x in columns)), AUTOTUNE)

    described = [index.labels[places], *columns]
    digest = hashlib.sha256(b"".join(np.array(column).tobytes() for column in described))
    return Split(examples, len(places), digest.hexdigest(), order)


def fold(seed: Tensor, number: Tensor) -> Tensor:
    """A seed (2,) for each `number`; none is the `seed` (2,) itself, which draws the views."""
    return tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int64), number)


def permutation(count: Tensor, seed: Tensor) -> Tensor:
    """The numbers 0 to `count` - 1 in the order that `seed` (2,) draws."""
    places = tf.range(tf.cast(count, tf.int64))
    return tf.random.experimental.stateless_shuffle(places, seed, "philox")


def _shuffled(columns, seed, first, example):
    """The dataset of `example(*row)` from the place `first` of the order of rows on.

    `columns` are tensors (N,...), and a row is an entry of each.
    """
    places = permutation(tf.shape(columns[0])[0], seed)[first:]
    return tf.data.Dataset.from_tensor_slices(places).map(
        lambda place: example(*(tf.gather(column, place) for column in columns))
    )
