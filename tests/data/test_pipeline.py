"""The order of the data: a function of seed and epoch, which can be entered anywhere."""

import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from long import most_long

from amdim_tf.config import load_config
from amdim_tf.data import pipeline, sources, splits, tfds_sets
from amdim_tf.data.views import DRAWS
from amdim_tf.distribution import Worker

SIZE = 120


def images():
    """Images that are their number."""
    return [np.full((32, 32, 3), i, "uint8") for i in range(SIZE)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a set of TFDS in 12 files."""
    folder = tmp_path_factory.mktemp("tfds")
    label = tfds.features.ClassLabel(num_classes=SIZE)
    image = tfds.features.Image(shape=(32, 32, 3), encoding_format="png")
    examples = [{"image": image, "label": i} for i, image in enumerate(images())]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="made_sharded",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        split_datasets={"train": list(enumerate(examples)), "test": list(enumerate(examples[:12]))},
        data_dir=folder,
        download_config=tfds.download.DownloadConfig(num_shards=12),
    )
    return folder


def in_groups(prepared, monkeypatch, count=3, blocks=4, **fields):
    """The set, of which about a part in `count` fits into memory, and its config."""
    files = prepared.rglob("*train*tfrecord*")
    monkeypatch.setattr(splits, "GROUP_BYTES", sum(map(size_of, files)) // count + 1)
    monkeypatch.setattr(splits, "GROUP_BLOCKS", blocks)
    config = load_config("cifar10")
    config.update({"dataset": "made_sharded", "batch_size": 16, **fields})
    return sources.load(config, str(prepared)), config


def size_of(file):
    return file.stat().st_size


def order(split, seed, first=0):
    """The labels, which are the images' numbers, in the order of `seed` from `first` on."""
    examples = tf.data.Dataset.range(1).flat_map(
        lambda _: split.shuffled(seed, tf.constant(first, tf.int64))
    )
    return [int(label) for _, label in examples]


@pytest.mark.parametrize(
    "source", most_long(["groups", "memory", "one group", "places", "part", "subset"], 3)
)
def test_orders_hold_each_image_once_and_can_be_entered_anywhere(source, prepared, monkeypatch):
    numbers = list(range(SIZE))
    if source == "memory":
        split = splits.in_memory(np.stack(images()), numbers)
    elif source == "one group":
        split = in_groups(prepared, monkeypatch, 1)[0].train
    elif source == "part":
        split = in_groups(prepared, monkeypatch, train_split="train[5:55]+train[61:]")[0].train
        numbers = sorted(split.labels().tolist())
        assert len(numbers) == SIZE - 11
    else:
        split = in_groups(prepared, monkeypatch, blocks=8)[0].train
        if source in ("subset", "places"):
            if source == "places":  # too large for memory
                monkeypatch.setattr(splits, "SUBSET_BYTES", 0)
            chosen = split.labels() % 3 == 0
            split, numbers = split.subset(np.flatnonzero(chosen)), list(range(0, SIZE, 3))
    assert split.size == len(numbers)

    seeds = [(0, 0), (0, 1), (1, 0), (1, 1), (2**31, 0)]
    orders = [order(split, seed) for seed in seeds]
    for drawn in orders:
        assert sorted(drawn) == numbers
        # In a random order a number is followed by the next one once, on average.
        assert sum(b - a == 1 for a, b in zip(drawn[:-1], drawn[1:], strict=True)) < 8
    assert len({tuple(drawn) for drawn in orders}) == len(seeds)
    for first in (0, 1, 47, 48, len(numbers) - 1):
        assert order(split, (0, 1), first) == orders[1][first:]


@pytest.mark.parametrize("train_split", ["train", "train[5:55]+train[61:]"])
def test_a_subset_is_the_same_in_memory_and_in_files(train_split, prepared, monkeypatch, tmp_path):
    """Its records, their order for training, and labels, which are read from the files once."""
    monkeypatch.setattr(tfds_sets, "SMALL_BYTES", 0)  # so no labels are read in advance
    read, read_index = [], splits._read_index
    monkeypatch.setattr(splits, "_read_index", lambda *x: read.append(0) or read_index(*x))
    places, found = np.array([3, 4, 49, 50, 88, 107]), []
    for most in (2**32, 0):
        monkeypatch.setattr(splits, "SUBSET_BYTES", most)
        split = in_groups(prepared, monkeypatch, train_split=train_split)[0].train
        every = [int(label) for _, label in split.examples]
        subset = split.subset(places, tmp_path)
        assert split.labels(tmp_path).tolist() == every
        examples = [(record.numpy(), int(label)) for record, label in subset.examples]
        assert [label for _, label in examples] == [every[place] for place in places]
        found.append((examples, order(subset, (0, 1)), order(subset, (0, 1), 2)))
    assert found[0] == found[1] and len(read) == 1


def test_starting_deep_reads_nothing_before(prepared, monkeypatch, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    data, _ = in_groups(tmp_path / "copy", monkeypatch)
    whole = order(data.train, (0, 0))
    first = 100  # in the last of three groups
    late = set(whole[80:])
    gone = 0
    for file in map(str, (tmp_path / "copy").rglob("*train*tfrecord*")):
        records = tf.data.TFRecordDataset(file)
        held = {
            int(tf.io.parse_single_example(record, splits.LABEL)["label"]) for record in records
        }
        if not held & late:
            pathlib.Path(file).write_bytes(b"nothing")
            gone += 1
    assert gone >= 6
    assert order(data.train, (0, 0), first) == whole[first:]
    with pytest.raises(tf.errors.FailedPreconditionError):
        order(data.train, (0, 0))


@pytest.mark.long
def test_steps_are_the_same_from_anywhere_and_for_any_workers(prepared, monkeypatch):
    data, config = in_groups(prepared, monkeypatch)  # 7 steps an epoch

    def steps(first, worker=None):
        batches = pipeline.train_batches(data, config, first, 16, lambda *both: both, worker)
        return list(batches.as_numpy_iterator())

    whole = steps(0)
    assert len(whole) == 16
    for epoch in (whole[:7], whole[7:14]):
        labels = np.concatenate([labels for _, labels in epoch])
        assert len(set(labels)) == 7 * 16
    for (x, draws), labels in whole:
        np.testing.assert_array_equal(x[:, 5, 5, 0], labels)
        assert draws.shape == (16, DRAWS, 2)
    for first in (1, 6, 7, 13, 15):
        for ours, theirs in zip(steps(first), whole[first:], strict=True):
            tf.nest.map_structure(np.testing.assert_array_equal, ours, theirs)

    parts = [steps(6, Worker(index, local=2, replicas=4)) for index in range(2)]
    for i, theirs in enumerate(whole[6:]):
        mine = [parts[index][2 * i + replica] for index in range(2) for replica in range(2)]
        joined = tf.nest.map_structure(lambda *each: np.concatenate(each), *mine)
        tf.nest.map_structure(np.testing.assert_array_equal, joined, theirs)


def test_rounds_are_alike_however_one_ends():
    rounds = pipeline.Rounds(tf.data.Dataset.range(5).batch(2))
    for _ in range(3):
        assert np.concatenate([batch.numpy() for batch in rounds]).tolist() == [0, 1, 2, 3, 4]
        assert next(iter(rounds)).numpy().tolist() == [0, 1]


@pytest.mark.parametrize("replicas, expected", [(1, 3), (2, 4), (4, 2)])
def test_the_number_of_test_batches_is_known(prepared, monkeypatch, replicas, expected):
    """3 in all: on one replica, on two of one process, and on four of two."""
    monkeypatch.setattr(pipeline, "TEST_BATCH", 50)
    data, config = in_groups(prepared, monkeypatch)
    for number in range(max(1, replicas // 2)):
        worker = Worker(number, min(2, replicas), replicas)
        batches = pipeline.test_batches(data, data.train, config, worker)
        assert len(batches) == len(list(batches)) == expected
