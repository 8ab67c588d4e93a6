"""Features of many images: each once, whatever stopped and started again."""

import collections
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from amdim_tf import bulk
from amdim_tf.bulk import Job, embed
from amdim_tf.config import load_config
from amdim_tf.errors import InputError
from amdim_tf.export import export
from amdim_tf.loading import load_encoder, load_preprocess
from amdim_tf.model import build_model

GENERATOR = np.random.default_rng(0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The folder of a tiny export."""
    config = load_config("photo_patches")
    config.update({"ndf": 4, "nrkhs": 16, "ndepth": 1})
    return str(export(build_model(config, 0), config, tmp_path_factory.mktemp("export")))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 10,000 images, of which five are no images."""
    folder = tmp_path_factory.mktemp("images")
    pixels = GENERATOR.integers(0, 256, (100, 8, 8, 3), "uint8")
    for i in range(100):
        subfolder = folder / f"{i:02d}"
        subfolder.mkdir()
        for j in range(100):
            Image.fromarray(pixels[(i + j) % 100]).save(subfolder / f"{j:02d}.png")
    for i in range(5):
        (folder / f"{i:02d}" / "00.png").write_text("no image")
    return str(folder)


def rows(folder):
    """[(name, f1)] of all Parquet files in `folder`."""
    tables = [pq.read_table(path).to_pydict() for path in sorted(folder.glob("*.parquet"))]
    return [row for table in tables for row in zip(table["name"], table["f1"], strict=True)]


def test_killed_and_started_again_each_image_counts_once(encoder, images, tmp_path):
    command = [sys.executable, "-m", "amdim_tf.embed", f"--encoder={encoder}"]
    command += [f"--folder={images}", f"--output={tmp_path}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("part-*.parquet"))) < 3 and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert 3 <= len(done) < 10

    broken = embed(Job(encoder, str(tmp_path), "parquet", "folder", images))
    assert broken == [f"{i:02d}/00.png" for i in range(5)]
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())
    found = rows(tmp_path)
    expected = {f"{i:02d}/{j:02d}.png" for i in range(100) for j in range(100)} - set(broken)
    counts = collections.Counter(name for name, _ in found)
    assert set(counts) == expected and set(counts.values()) == {1}
    for name, f1 in found[::999]:
        image = tf.io.decode_image(tf.io.read_file(f"{images}/{name}"))[None]
        values = load_encoder(encoder, "f1")(load_preprocess(encoder)(image))[0]
        np.testing.assert_allclose(f1, values, atol=1e-5)


def test_another_job_is_refused(encoder, images, tmp_path):
    with pytest.raises(InputError, match="An encoder is loaded from"):
        embed(Job("none", str(tmp_path), "parquet", "folder", images))
    assert not list(tmp_path.iterdir())
    (tmp_path / "embedding.json").write_text('{"encoder": "another"}')
    with pytest.raises(InputError, match="belongs to another job, which differs in encoder,"):
        embed(Job(encoder, str(tmp_path), "parquet", "folder", images))
    for source, path in (("folder", str(tmp_path)), ("tfrecords", "none*"), ("tfds", "mnist")):
        with pytest.raises(InputError, match=f"{source} must"):
            embed(Job(encoder, str(tmp_path), "parquet", source, path))


def test_tfrecords_by_beam(encoder, images, tmp_path):
    """TFRecords in and out, with and without names, in a pipeline on the direct runner."""
    pytest.importorskip("apache_beam")
    contents = [pathlib.Path(images, f"50/{i:02d}.png").read_bytes() for i in range(6)]
    for file, start in (("a", 0), ("b", 3)):
        with tf.io.TFRecordWriter(str(tmp_path / f"{file}.tfrecord")) as records:
            for i in range(start, start + 3):
                texts = {bulk.IMAGE: contents[i]}
                if file == "a":
                    texts[bulk.NAME] = f"{i}.png".encode()
                feature = {
                    name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text]))
                    for name, text in texts.items()
                }
                example = tf.train.Example(features=tf.train.Features(feature=feature))
                records.write(example.SerializeToString())
    output = tmp_path / "features"
    job = Job(encoder, str(output), "tfrecord", "tfrecords", f"{tmp_path}/*.tfrecord")
    assert embed(job, "DirectRunner") == []
    found = {}
    for path in output.glob("part-*.tfrecord"):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            feature = tf.train.Example.FromString(record).features.feature
            (name,) = feature["name"].bytes_list.value
            found[name.decode()] = feature["f1"].float_list.value
    second = [f"{tmp_path}/b.tfrecord#{i}" for i in range(3)]
    assert sorted(found) == sorted(["0.png", "1.png", "2.png", *second])
    image = tf.io.decode_image(contents[3])[None]
    values = load_encoder(encoder, "f1")(load_preprocess(encoder)(image))[0]
    np.testing.assert_allclose(found[second[0]], values, atol=1e-5)


def test_images_of_tfds(encoder, images, tmp_path):
    files = [f"{images}/50/{i:02d}.png" for i in range(3)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="made_unlabelled",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(8, 8, 3))}),
        split_datasets={"train": [(i, {"image": file}) for i, file in enumerate(files)]},
        data_dir=tmp_path,
    )
    path, output = "made_unlabelled/train", tmp_path / "features"
    job = Job(encoder, str(output), "parquet", "tfds", path, str(tmp_path))
    assert embed(job) == []
    pixels = np.stack([tf.io.decode_image(tf.io.read_file(file)) for file in files])
    expected = load_encoder(encoder, "f1")(load_preprocess(encoder)(pixels)).numpy()
    found = np.array([f1 for _, f1 in rows(output)])
    np.testing.assert_allclose(np.sort(found, 0), np.sort(expected, 0), atol=1e-5)
