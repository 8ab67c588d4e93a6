"""What the main job holds in memory, at 2,000 images: `benchmarks/imagenet_size.py` has all."""

import json
import weakref

import imagenet_data
import imagenet_size
import numpy as np
import pytest
import tensorflow as tf

from amdim_tf.config import load_config
from amdim_tf.runs import training as command
from amdim_tf.serving import bulk
from amdim_tf.serving.bulk import Job, embed
from amdim_tf.serving.saved_model import export
from amdim_tf.training.building import build_model

pytestmark = pytest.mark.long  # processes that are killed, or measured

TINY = {"ndf": 2, "nrkhs": 16, "ndepth": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Of ImageNet's layout and classes, 2,000 training and test images."""
    folder = tmp_path_factory.mktemp("data")
    counts, files = {"train": 2000, "validation": 2000}, {"train": 8, "validation": 4}
    imagenet_data.make(folder, counts=counts, files=files, sides=(16, 32))
    return folder


def test_memory_is_bounded(data, tmp_path):
    """In GiB; version 0.1.0 took 5.0 to train, for the raw pixels."""
    fields = [f"--config.{name}={value}" for name, value in TINY.items()]
    run = f"--workdir={tmp_path / 'run'}", f"--data_dir={data}"
    evaluate = ["amdim_tf.evaluate", *run, "--label_fraction=0.5", "--config.probe_epochs=1"]
    rows = {
        "train": ["amdim_tf.train", "--dataset=imagenet2012", *run, *fields, "--steps=2"],
        "fast": [*evaluate, "--fast"],
        "on views": [*evaluate, "--protocol=linear"],
    }
    for name, arguments in rows.items():
        row = imagenet_size.run(name, arguments)
        assert row["exit code"] == 0, row
        assert 0.3 < row["peak, GiB"] < 2, row
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["notes"]["raw_pixels"] == "32x32" and not result["missing"]


def test_no_model_and_no_optimiser_are_left_of_the_training(tmp_path, monkeypatch):
    """What measures the encoder has the memory for itself."""
    made, left = [], []

    def build(*arguments):
        model = built(*arguments)
        made.extend([weakref.ref(model), weakref.ref(model.optimizer)])
        return model

    def end(*arguments):
        left.extend(reference() for reference in made)
        return {"seconds": 0.0, "config": {"dataset": "photo_patches"}, "accuracy": {}}

    built = command.build
    monkeypatch.setattr(command, "build", build)
    monkeypatch.setattr(command, "finish", end)
    config = load_config("photo_patches")
    config.update(TINY | {"steps": 2})
    command.train(config, tmp_path)
    assert made and left == [None, None]


def test_the_test_set_is_scored_by_counts_alone(monkeypatch):
    config = load_config("photo_patches")
    config.update(TINY)
    model, shapes = build_model(config, 14), []
    images, labels = np.zeros((50, 32, 32, 3), "float32"), np.arange(50) % 14
    counts = model.counts

    def count(*batch):
        found = counts(*batch)
        shapes.append(tuple(found.shape))
        return found

    monkeypatch.setattr(model, "counts", count)
    places = np.arange(50)
    batches = [(places, images, labels), (places, images, np.where(places < 10, labels, -1))]
    found = model.measure(tuple(map(tf.constant, batch)) for batch in batches)
    assert shapes == [(1, 2, 3)]
    logits = model(images)["linear"]
    correct = np.argmax(logits, 1) == labels
    expected = (correct.sum() + correct[:10].sum()) / 60
    assert found["linear_accuracy"] == pytest.approx(expected)


def test_embedding_reads_each_image_once_and_traces_once(tmp_path, monkeypatch):
    """Not per part, and not again for those that cannot be decoded."""
    config = load_config("photo_patches")
    config.update(TINY)
    encoder = str(export(build_model(config, 0), config, tmp_path / "export"))
    folder, traced, read = tmp_path / "images", [], []
    folder.mkdir()
    for i in range(20):
        pixels = tf.random.stateless_uniform((9, 9, 3), (i, 0), 0, 256, tf.int32)
        tf.io.write_file(str(folder / f"{i:02d}.png"), tf.io.encode_png(tf.cast(pixels, tf.uint8)))
    (folder / "07.png").write_text("no image")
    contents = Job.read

    def counted(job, origin, record):
        traced.append(0)
        note = tf.numpy_function(lambda name: read.append(name), [record], [])
        with tf.control_dependencies([note]):
            return contents(job, origin, tf.identity(record))

    monkeypatch.setattr(Job, "read", counted)
    monkeypatch.setattr(bulk, "PART_IMAGES", 6)
    job = Job(encoder, str(tmp_path / "features"), "parquet", "folder", str(folder))
    assert embed(job) == ["07.png"]
    assert len(list((tmp_path / "features").glob("part-*.parquet"))) == 4
    assert sorted(read) == [f"{i:02d}.png".encode() for i in range(20)] and len(traced) == 1
