"""Features of many images: each once, whatever stopped and started again."""

import collections
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from amdim_tf.config import load_config
from amdim_tf.errors import InputError
from amdim_tf.serving import bulk
from amdim_tf.serving.bulk import Job, embed
from amdim_tf.serving.loading import load_encoder, load_preprocess
from amdim_tf.serving.saved_model import export
from amdim_tf.training.building import build_model

GENERATOR = np.random.default_rng(0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The folder of a tiny export."""
    config = load_config("photo_patches")
    config.update({"ndf": 4, "nrkhs": 16, "ndepth": 1})
    return str(export(build_model(config, 0), config, tmp_path_factory.mktemp("export")))


@pytest.fixture
def few(tmp_path):
    """A folder of six images."""
    folder = tmp_path / "few"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(GENERATOR.integers(0, 256, (8, 8, 3), "uint8")).save(folder / f"{i}.png")
    return folder


def names(folder):
    return sorted(name for name, _ in rows(folder))


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
    tables = [pq.read_table(path).to_pydict() for path in sorted(folder.glob("part-*.parquet"))]
    return [row for table in tables for row in zip(table["name"], table["f1"], strict=True)]


@pytest.mark.long
def test_killed_and_started_again_each_image_counts_once(encoder, images, tmp_path):
    command = [sys.executable, "-m", "amdim_tf.embed", f"--encoder={encoder}"]
    command += [f"--folder={images}", f"--output={tmp_path}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("part-*.parquet"))) < 3 and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("part-*.parquet")}
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
    (tmp_path / "_embedding.json").write_text('{"encoder": "another", "weights": "others"}')
    with pytest.raises(InputError, match="to another job, which differs in .*, source, weights;"):
        embed(Job(encoder, str(tmp_path), "parquet", "folder", images))
    for source, path in (("folder", str(tmp_path)), ("tfrecords", "none*"), ("tfds", "mnist")):
        with pytest.raises(InputError, match=f"{source} must"):
            embed(Job(encoder, str(tmp_path), "parquet", source, path))


@pytest.mark.long
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

    (shard,) = tmp_path.glob("made_unlabelled/**/*.tfrecord*")
    contents = shard.read_bytes()
    for damage in (
        lambda: shard.write_bytes(contents[: len(contents) // 2]),
        lambda: shard.write_bytes(b"no records" * 20),
        lambda: write_records(shard, 3 * [(b"no", b"image")]),
        shard.unlink,
    ):
        damage()
        with pytest.raises(InputError, match="can be read .*Received: made_unlabelled/train"):
            embed(dataclasses.replace(job, output=str(tmp_path / "others")))
        assert not list((tmp_path / "others").glob("part*"))


def write_records(path, records):
    """A TFRecord file of (name, contents), or of bytes as they are."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            if not isinstance(record, bytes):
                feature = {
                    key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                    for key, value in zip((bulk.NAME, bulk.IMAGE), record, strict=True)
                }
                example = tf.train.Example(features=tf.train.Features(feature=feature))
                record = example.SerializeToString()
            writer.write(record)


def test_records_that_are_none_are_named_by_their_places(encoder, few, tmp_path):
    good = (few / "0.png").read_bytes()
    records = [(b"same", good), (b"same", b"broken"), b"no example", (b"caf\xe9", good)]
    write_records(tmp_path / "a.tfrecord", records)
    write_records(tmp_path / "b.tfrecord", 5 * [(b"", good)])
    contents = (tmp_path / "b.tfrecord").read_bytes()
    (tmp_path / "b.tfrecord").write_bytes(contents[:-10])
    (tmp_path / "c.tfrecord").write_bytes(b"no TFRecord at all")
    output = tmp_path / "features"
    broken = embed(Job(encoder, str(output), "parquet", "tfrecords", f"{tmp_path}/*.tfrecord"))
    cut = "and what follows: the file is cut off or damaged"
    assert broken == [
        f"{tmp_path}/a.tfrecord#1",
        f"{tmp_path}/a.tfrecord#2",
        f"{tmp_path}/b.tfrecord#4 {cut}",
        f"{tmp_path}/c.tfrecord#0 {cut}",
    ]
    assert names(output) == sorted(
        ["same", r"caf\xe9", *(f"{tmp_path}/b.tfrecord#{i}" for i in range(4))]
    )


def test_a_folder_of_parquet_files_is_read_as_one_table(encoder, few, tmp_path):
    (few / "bad.png").write_text("no image")
    output = tmp_path / "features"
    assert embed(Job(encoder, str(output), "parquet", "folder", str(few))) == ["bad.png"]
    table = pq.read_table(output)
    assert table.num_rows == 6 and table.schema.names == ["name", "f1"]
    assert not (output / ".lock").exists()


def test_what_is_broken_is_named_before_its_part_is_there(encoder, few, tmp_path, monkeypatch):
    (few / "bad.png").write_text("no image")
    job = Job(encoder, str(tmp_path / "features"), "parquet", "folder", str(few))
    replace, renamed = os.replace, []

    def killed_at_the_part(source, target):
        renamed.append(pathlib.Path(target).name)
        if renamed[-1].startswith("part-"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed_at_the_part)
    with pytest.raises(KeyboardInterrupt):
        embed(job)
    monkeypatch.setattr(os, "replace", replace)
    part = "part-00000-of-00001.parquet"
    assert renamed[-2:] == [f"_{part}.broken.txt", part]
    assert embed(job) == ["bad.png"] and len(rows(tmp_path / "features")) == 6


@pytest.mark.long
def test_files_that_vanish_or_appear_do_not_end_a_job(encoder, few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bulk, "PART_IMAGES", 2)
    (few / "link.png").symlink_to(tmp_path / "nowhere")
    with open(os.fsencode(few) + b"/\xff.png", "wb") as file:
        file.write((few / "0.png").read_bytes())
    job = Job(encoder, str(tmp_path / "features"), "parquet", "folder", str(few))
    write, parts = bulk.write_complete, []

    def stop_at_the_second(path, *arguments):
        parts.extend([path] * ("part-" in path))
        if len(parts) == 2:
            raise KeyboardInterrupt
        write(path, *arguments)

    monkeypatch.setattr(bulk, "write_complete", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        embed(job)
    monkeypatch.setattr(bulk, "write_complete", write)
    (few / "5.png").unlink()
    (few / "6.png").write_bytes((few / "0.png").read_bytes())
    assert embed(job) == ["5.png"]
    assert names(tmp_path / "features") == [*(f"{i}.png" for i in range(5)), r"\xff.png"]
    shown = capsys.readouterr().out
    assert "Found 7 images in" in shown and "passed over: 1 links to nothing" in shown
    assert "1 of them came after the job began" in shown


@pytest.mark.long
def test_other_weights_under_the_same_path_are_another_job(few, tmp_path):
    config = load_config("photo_patches")
    config.update({"ndf": 4, "nrkhs": 16, "ndepth": 1})
    encoders = []
    for name in "ab":
        keras.utils.set_random_seed(ord(name))
        encoders.append(export(build_model(config, 0), config, tmp_path / name))
    path, output = tmp_path / "encoder", tmp_path / "features"
    job = Job(str(path), str(output), "parquet", "folder", str(few))
    for encoder in encoders:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(encoder, path)
        bulk._encoder.cache_clear()  # as in another process
        bulk._functions.cache_clear()
        if encoder == encoders[0]:
            embed(job)
            # The same by another name is the same.
            embed(dataclasses.replace(job, encoder=str(encoder)))
        else:
            with pytest.raises(InputError, match="another job, which differs in weights;"):
                embed(job)


@pytest.mark.long
def test_an_output_of_the_first_version_goes_on(encoder, few, tmp_path):
    output = tmp_path / "features"
    job = Job(encoder, str(output), "parquet", "folder", str(few))
    embed(job)
    claim = json.loads((output / "_embedding.json").read_text())
    del claim["weights"]
    (output / "embedding.json").write_text(json.dumps(claim))
    for name in ("_embedding.json", "_names", "part-00000-of-00001.parquet"):
        (output / name).unlink()
    embed(job)
    assert len(rows(output)) == 6 and pq.read_table(output).num_rows == 6


def test_another_file_system_is_written_and_an_unknown_one_refused(encoder, few):
    embed(Job(encoder, "ram://features", "tfrecord", "folder", str(few)))
    (part,) = tf.io.gfile.glob("ram://features/part-*.tfrecord")
    assert len(list(tf.data.TFRecordDataset(part))) == 6
    with pytest.raises(InputError, match="output must be .*gs://.*output=s4://features"):
        embed(Job(encoder, "s4://features", "tfrecord", "folder", str(few)))


@pytest.mark.long
def test_array_records_of_tfds(encoder, few, tmp_path):
    files = sorted(map(str, few.iterdir()))
    for file_format in ("array_record", "tfrecord"):
        tfds.dataset_builders.store_as_tfds_dataset(
            name="made_square",
            version="1.0.0",
            features=tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(8, 8, 3))}),
            split_datasets={"train": [(i, {"image": file}) for i, file in enumerate(files)]},
            data_dir=tmp_path / file_format,
            file_format=file_format,
        )
        output, data = str(tmp_path / f"from_{file_format}"), str(tmp_path / file_format)
        embed(Job(encoder, output, "parquet", "tfds", "made_square/train", data))
    first, second = (rows(tmp_path / f"from_{name}") for name in ("array_record", "tfrecord"))
    assert [name.partition("__")[2] for name, _ in first] == [str(i) for i in range(6)]
    ours, theirs = (sorted(f1 for _, f1 in found) for found in (first, second))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
