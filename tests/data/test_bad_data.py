"""Images that are none: each is converted, or left out and accounted for."""

import io
import itertools
import re
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from amdim_tf.config import load_config
from amdim_tf.data import pipeline, sources, tfds_sets
from amdim_tf.data.decoding import MAX_PIXELS
from amdim_tf.data.failures import SHOWN
from amdim_tf.errors import InputError
from amdim_tf.evaluation.evaluation import evaluate
from amdim_tf.evaluation.rows import ROWS
from amdim_tf.runs.training import train
from amdim_tf.training.building import check_config

BATCH = 26


def photograph(mode="RGB", size=(40, 30), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), "uint8")
    return PIL.Image.fromarray(pixels, "RGBA").convert(mode)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def truncated(kind, part=0.6):
    return lambda seed: cut(encoded(photograph("P" if kind == "GIF" else "RGB"), kind), part, seed)


def cut(contents, part, seed):
    return contents[: int(part * len(contents)) - seed]


def corrupted(kind):
    """A file with the header of its kind and random bytes behind it."""

    def make(seed):
        start = encoded(photograph(), kind)[:24]
        return start + np.random.default_rng(seed).bytes(500)

    return make


def huge_png(seed):
    """A few bytes that promise 2**31 pixels and more."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 2**16 + seed, 2**15, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + bytes(100)


def huge_jpeg(seed):
    """A JPEG whose header promises more than it has, 60000 x 60000 pixels."""
    contents = bytearray(encoded(photograph(), "JPEG"))
    place = contents.index(b"\xff\xc0") + 5
    contents[place : place + 4] = struct.pack(">HH", 60000, 60000 - seed)
    return bytes(contents)


def deep(seed):
    pixels = np.random.default_rng(seed).integers(0, 2**16, (30, 40, 3)).astype("uint16")
    return tf.io.encode_png(pixels).numpy()


BAD = {
    "truncated.jpg": truncated("JPEG"),
    "truncated.png": truncated("PNG"),
    "truncated.gif": truncated("GIF"),
    "truncated.bmp": truncated("BMP"),
    "header.jpg": truncated("JPEG", 0.05),
    "empty.jpg": lambda seed: b"",
    "zeros.png": lambda seed: bytes(100 + seed),
    "text.jpg": lambda seed: b"not found" * (seed + 1),
    "huge.png": huge_png,
    "huge.jpg": huge_jpeg,
    "magic.png": lambda seed: b"\x88" + encoded(photograph(), "PNG")[1:],
    "tiff.jpg": lambda seed: encoded(photograph(), "TIFF"),
    "corrupted.jpg": corrupted("JPEG"),
    "corrupted.png": corrupted("PNG"),
    "random.bmp": lambda seed: np.random.default_rng(seed).bytes(300),
    "random.gif": lambda seed: b"GIF89a" + np.random.default_rng(seed).bytes(300),
}
UNUSUAL = {
    "grey.jpg": lambda seed: encoded(photograph("L"), "JPEG"),
    "cmyk.jpg": lambda seed: encoded(photograph("CMYK"), "JPEG"),
    "progressive.jpg": lambda seed: encoded(photograph(), "JPEG", progressive=True),
    "grey.png": lambda seed: encoded(photograph("L"), "PNG"),
    "bits.png": lambda seed: encoded(photograph("1"), "PNG"),
    "palette.png": lambda seed: encoded(photograph("P"), "PNG"),
    "deep.png": deep,
    "transparent.png": lambda seed: encoded(photograph("RGBA"), "PNG"),
    "grey_transparent.png": lambda seed: encoded(photograph("LA"), "PNG"),
    "palette.gif": lambda seed: encoded(photograph("P"), "GIF"),
    "plain.bmp": lambda seed: encoded(photograph(), "BMP"),
    "thin.jpg": lambda seed: encoded(photograph(size=(1, 50 + seed)), "JPEG"),
    "flat.png": lambda seed: encoded(photograph(size=(50 + seed, 1)), "PNG"),
    "long.png": lambda seed: encoded(photograph(size=(3000, 1)), "PNG"),
    "one.jpg": lambda seed: encoded(photograph(size=(1, 1)), "JPEG"),
    "one.png": lambda seed: encoded(photograph(size=(1, 1)), "PNG"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """200 malformed, 32 unusual and 80 good images of two classes; and a few for testing."""
    path = tmp_path_factory.mktemp("folder")
    good = {"good.jpg": lambda seed: encoded(photograph(seed=seed), "JPEG")}
    for kinds, count in ((BAD, 200), (UNUSUAL, 32), (good, 80)):
        for i, (name, make) in zip(range(count), itertools.cycle(kinds.items()), strict=False):
            write(
                path / "train" / "ab"[i // len(kinds) % 2], f"{i:03d}-{name}", make(i // len(kinds))
            )
    # Of class a black images, of class b white ones, and bad ones between them.
    for label, pixel in (("a", 0), ("b", 255)):
        for i in range(4):
            image = PIL.Image.new("RGB", (40 + i, 30), (pixel,) * 3)
            write(path / "val" / label, f"{i}.png", encoded(image, "PNG"))
            write(path / "val" / label, f"{i}.jpg", b"bad")
    return path


def write(folder, name, contents):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(contents)


def load(folder, **fields):
    config = load_config("image_folder")
    config.update({"image_size": 64, "batch_size": BATCH, **fields})
    return sources.load(config, str(folder)), config


@pytest.mark.long
@pytest.mark.parametrize("geometry", ["translate", "crop"])
def test_200_malformed_images_among_good_ones(geometry, folder, capfd):
    data, config = load(folder, bad_images=0.7)
    config.views.geometry = geometry
    steps = list(pipeline.train_batches(data, config, 0, 12).as_numpy_iterator())
    assert len(steps) == 12 and data.train.size == 12 * BATCH
    bad = {str(file) for file in (folder / "train").rglob("*") if file.name[4:] in BAD}
    assert len(bad) == len(data.failures.names) == 200
    assert set(data.failures.names) == bad

    labels = np.concatenate([labels for _, labels in steps])
    assert (labels == -1).sum() == len(bad) and set(labels) == {-1, 0, 1}
    for (x1, x2), _ in steps:
        assert x1.shape == x2.shape == (BATCH, 64, 64, 3)
        assert np.isfinite(x1).all() and np.isfinite(x2).all()

    data.failures.check()
    shown = capfd.readouterr().err
    assert shown.count("Skipped a bad image") == SHOWN
    assert data.failures.names[0] in shown


@pytest.mark.long
def test_the_same_steps_from_anywhere_with_bad_images(folder):
    def steps(first):
        data, config = load(folder)
        batches = pipeline.train_batches(data, config, first, 4, lambda *both: both)
        return list(batches.as_numpy_iterator())

    whole = steps(0)
    for ours, theirs in zip(steps(2), whole[2:], strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, ours, theirs)
    for (images, _), labels in whole:
        good = images[labels >= 0]
        for image in images[labels < 0]:
            assert (image == good).all((1, 2, 3, 4)).any()  # another of the batch


def test_unusual_images_are_converted(folder):
    data, _ = load(folder)
    for name in UNUSUAL:
        file = next((folder / "train").rglob(f"*-{name}"))
        image = data.decode(str(file)).numpy()
        shape = PIL.Image.open(io.BytesIO(file.read_bytes())).size[::-1]
        assert image.shape == (*shape, 3) and image.dtype == np.uint8, name
    grey = data.decode(str(next((folder / "train").rglob("*-grey.jpg")))).numpy()
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


def test_too_many_bad_images_are_refused_in_one_sentence(folder):
    data, config = load(folder, bad_images=0.01)
    data.failures.check()
    list(pipeline.train_batches(data, config, 0, 1, lambda *both: both))
    with pytest.raises(InputError) as error:
        data.failures.check()
    message = str(error.value)
    assert re.search(r"bad_images=0.01 .* 312 training images .* Received: \d+ that", message)
    assert data.failures.names[0] in message and "\n" not in message
    config.bad_images = 1.5
    with pytest.raises(InputError, match="bad_images must lie in 0..1.*1.5"):
        check_config(config)


@pytest.mark.long
def test_a_batch_of_nothing_but_bad_images_is_one_without_labels(tmp_path):
    for split, name in itertools.product(("train", "val"), "ab"):
        for i in range(2):
            write(tmp_path / split / name, f"{i}.jpg", b"bad")
    data, config = load(tmp_path, batch_size=4)
    (((images, _), labels),) = pipeline.train_batches(data, config, 0, 1, lambda *both: both)
    assert images.shape == (4, 2, 64, 64, 3) and list(labels) == [-1] * 4
    ((places, images, labels),) = pipeline.test_batches(data, data.test, config)
    assert list(places) == list(labels) == [-1] * 4 and not np.any(images)
    assert len(data.failures.names) == 8


def test_bad_test_images_leave_with_their_labels(folder, monkeypatch):
    monkeypatch.setattr(pipeline, "TEST_BATCH", 3)
    data, config = load(folder)
    for _ in range(2):
        batches = list(pipeline.test_batches(data, data.test, config).as_numpy_iterator())
        assert all(images.shape == (3, 64, 64, 3) for _, images, _ in batches)
        places, images, labels = map(np.concatenate, zip(*batches, strict=True))
        assert sorted(labels) == [-1] * 10 + [0] * 4 + [1] * 4  # of 16, in batches of 3
        np.testing.assert_array_equal(places >= 0, labels >= 0)
        for place, image, label in zip(places, images, labels, strict=True):
            assert (image > 0).all() == (label == 1) and (image == 0).all() == (place < 0)
    assert len(data.failures.names) == 8 and all("val" in name for name in data.failures.names)


def test_no_image_is_decoded_that_memory_may_not_hold(folder):
    data, _ = load(folder)
    assert 60000**2 > MAX_PIXELS
    for file in (folder / "train").rglob("*-huge.*"):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"1 to {MAX_PIXELS} pixels"):
            data.decode(str(file))
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"1 to {MAX_PIXELS} pixels"):
            data.decode_window(str(file), lambda height, width: ([0, 0, 1, 1], [[0, 0, 1, 1]] * 2))


def test_bad_images_and_labels_of_tfds(tmp_path, monkeypatch):
    features = {
        "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
    }
    examples = [
        {"image": io.BytesIO(encoded(photograph(size=(32, 32), seed=i), "PNG")), "label": i % 3}
        for i in range(12)
    ]
    examples[4]["image"] = io.BytesIO(b"bad")
    examples[6]["image"] = io.BytesIO(encoded(photograph(), "PNG"))  # of another shape
    tfds.dataset_builders.store_as_tfds_dataset(
        name="made_bad",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": list(enumerate(examples)), "test": [(0, examples[0])]},
        data_dir=tmp_path,
    )
    config = load_config("cifar10")
    config.update({"dataset": "made_bad", "batch_size": 12})

    def labels():
        data = sources.load(config, str(tmp_path))
        ((_, labels),) = pipeline.train_batches(data, config, 0, 1, lambda *both: both)
        return sorted(labels.numpy()), data.failures.names

    found, names = labels()
    assert found == [-1, -1, *3 * [0], *3 * [1], *4 * [2]]
    assert len(names) == 2 and any(name.startswith("3 bytes with SHA-256 ") for name in names)

    (label_file,) = tmp_path.rglob("label.labels.txt")
    label_file.write_text("a\nb\n")
    with pytest.raises(InputError, match="in -1..1. Received: 4 others in .* train, .* first .* 2"):
        labels()
    # Where there are too many to be read before.
    monkeypatch.setattr(tfds_sets, "SMALL_BYTES", 0)
    found, names = labels()
    assert found == [*6 * [-1], *3 * [0], *3 * [1]] and len(names) == 6


SMALL = {"image_size": 32, "ndf": 4, "nrkhs": 16, "ndepth": 1, "batch_size": 4, "steps": 2}
SMALL |= {"probe_images": 20, "probe_epochs": 1, "bad_images": 0.5}


@pytest.mark.long
@pytest.mark.parametrize("good", [0, pytest.param(1, marks=pytest.mark.release)])
def test_runs_whose_test_images_are_bad(good, tmp_path, capfd):
    """Without one to measure by, nothing is measured and the reason is said; one is enough."""
    for name in "ab":
        for i in range(4):
            write(tmp_path / "train" / name, f"{i}.png", encoded(photograph(seed=i), "PNG"))
        write(tmp_path / "val" / name, "\udcff.png", b"bad")
    write(tmp_path / "val" / "b", "0.png", encoded(photograph(), "PNG") if good else b"bad")
    config = load_config("image_folder")
    config.update(SMALL)
    run = tmp_path / "run"
    result = train(config, run, str(tmp_path))
    names = (run / "bad_images.txt").read_bytes().splitlines()
    assert len(names) == 3 - good and all(line.endswith(b"\tno image") for line in names)
    assert any(b"/\xff.png\t" in line for line in names)
    if good:
        assert set(result["accuracy"]) == set(ROWS) and not result["missing"]
        assert set(result["notes"].values()) == {"1 test images"}
        found = evaluate(run, config, ("linear", "knn"), str(tmp_path))
        for each in found.values():
            assert each["test_images"] == 1 and each["accuracy"]["top1"] in (0, 1)
            assert each["accuracy"]["per_class"]["a"] is None
    else:
        assert not result["accuracy"] and set(result["missing"]) == set(ROWS)
        expected = "Measuring needs at least one image .* Received: 3 images, and none can be used"
        for why in result["missing"].values():
            assert re.fullmatch(expected, why)
        for fast in (False, True):
            with pytest.raises(InputError, match=expected):
                evaluate(run, config, ("knn", "linear", "mlp"), str(tmp_path), fast)
