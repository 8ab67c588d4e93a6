"""Fifty malformed folders and sets: each image is used, named as bad or counted as passed over."""

import io
import os
import re
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from long import most_long

from amdim_tf.config import load_config
from amdim_tf.data import pipeline, sources
from amdim_tf.errors import InputError


def image(seed=0, kind="PNG", size=(40, 30), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), "uint8")
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


class Place:
    """A folder of two classes with two images each, for training and for testing: 8 images."""

    def __init__(self, path):
        self.path = path
        for split in ("train", "val"):
            for name in ("a", "b"):
                for i in range(2):
                    self.write(f"{split}/{name}/{i}.png", image(i))

    def write(self, name, contents=None):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image() if contents is None else contents)

    def link(self, name, target):
        (self.path / name).symlink_to(target)

    def remove(self, name):
        path = self.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def move(self, name, other):
        (self.path / other).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).rename(self.path / other)

    def make(self, name):
        (self.path / name).mkdir(parents=True)


def file(name, contents):
    return lambda place: place.write(f"train/a/{name}", contents)


def unlabelled(place):
    for name in ("train/a", "train/b", "val"):
        place.remove(name)
    place.write("train/0.png")
    place.write("train/1.png")


def flat_and_hidden(place):
    unlabelled(place)
    place.write("train/.thumbnails/0.png")


def flat_and_folder(place):
    unlabelled(place)
    place.write("train/more/0.png")
    place.write("val/more/0.png")


def loop(place):
    place.link("train/a/loop", place.path / "train" / "a")


def two_loops(place):
    place.make("train/a/x")
    place.link("train/a/x/up", place.path / "train" / "a")
    place.link("train/a/x/self", ".")


def linked_class(place):
    place.move("train/b", "elsewhere")
    place.link("train/b", place.path / "elsewhere")


def linked_twice(place):
    place.write("elsewhere/0.png")
    place.link("train/a/x", place.path / "elsewhere")
    place.link("train/a/y", place.path / "elsewhere")


def empty_class(place):
    for i in range(2):
        place.remove(f"train/a/{i}.png")


def fifo(place):
    os.mkfifo(place.path / "train" / "a" / "pipe.jpg")


def odd_bytes(place):
    with open(os.fsencode(place.path) + b"/train/a/\xff\xfe.png", "wb") as file:
        file.write(image())


PNG, JPEG = image(), image(kind="JPEG")
USED, BAD, PASSED = (9, 0, 0), (8, 1, 0), (8, 0, 1)
# What is done to the folder, and how many images are then used, bad and passed over; or the error.
FOLDERS = {
    "nothing": (lambda place: None, (8, 0, 0)),
    "empty file": (file("x.png", b""), BAD),
    "truncated PNG": (file("x.png", PNG[:200]), BAD),
    "truncated JPEG": (file("x.jpg", JPEG[: len(JPEG) // 2]), BAD),
    "JPEG without its end": (file("x.jpg", JPEG[:-2]), None),
    "text as JPEG": (file("x.jpg", b"<html>404</html>"), BAD),
    "zeros": (file("x.png", bytes(5000)), BAD),
    "noise behind a header": (file("x.png", PNG[:60] + os.urandom(3000)), BAD),
    "TIFF named PNG": (file("x.png", image(kind="TIFF")), BAD),
    "TIFF": (file("x.tif", image(kind="TIFF")), PASSED),
    "WebP": (file("x.webp", image(kind="WEBP")), USED),
    "PNG named JPEG": (file("x.jpg", PNG), USED),
    "JPEG named BMP": (file("x.BMP", JPEG), USED),
    "JFIF": (file("x.jfif", JPEG), USED),
    "BMP of 1 bit": (file("x.bmp", image(kind="BMP", mode="1")), None),
    "palette BMP": (file("x.bmp", image(kind="BMP", mode="P")), USED),
    "grey with alpha": (file("x.png", image(mode="LA")), USED),
    "CMYK": (file("x.jpg", image(kind="JPEG", mode="CMYK")), USED),
    "one pixel": (file("x.png", image(size=(1, 1))), USED),
    "a line": (file("x.png", image(size=(3000, 1))), USED),
    "no extension": (file("x", PNG), PASSED),
    "backup": (file("x.png~", PNG), PASSED),
    "partial download": (file("x.jpg.part", JPEG), PASSED),
    "archive": (file("images.zip", b"PK\3\4"), PASSED),
    "database of thumbnails": (file("Thumbs.db", b"x"), PASSED),
    "resource fork": (file("._0.png", b"Mac OS X"), PASSED),
    "hidden folder in a class": (file(".cache/0.png", PNG), PASSED),
    "hidden class": (lambda place: place.write("train/.ipynb_checkpoints/0.png"), (8, 0, 0)),
    "class of a NAS": (lambda place: place.write("train/@eaDir/0.png"), (8, 0, 0)),
    "folder named as an image": (lambda place: place.make("train/a/x.png"), (8, 0, 0)),
    "image in a folder named as one": (file("x.png/y.png", PNG), USED),
    "deep": (file("/".join("cdefghijklmnop") + "/x.png", PNG), USED),
    "dangling link": (lambda place: place.link("train/a/x.png", "nowhere.png"), PASSED),
    "link to itself": (lambda place: place.link("train/a/x.png", "x.png"), PASSED),
    "link to a file": (lambda place: place.link("train/a/x.png", "0.png"), USED),
    "loop": (loop, PASSED),
    "two loops": (two_loops, (8, 0, 2)),
    "linked class": (linked_class, (8, 0, 0)),
    "linked twice": (linked_twice, (9, 0, 1)),
    "pipe": (fifo, PASSED),
    "name that is no text": (odd_bytes, USED),
    "doubled": (file("0 (copy).png", PNG), USED),
    "loose image": (lambda place: place.write("train/x.png"), PASSED),
    "loose file": (lambda place: place.write("train/labels.csv", b"x"), (8, 0, 0)),
    "class without images": (lambda place: place.make("train/c"), "same classes"),
    "empty class": (empty_class, "holds none"),
    "class renamed": (lambda place: place.move("val/a", "val/A"), "same classes.*A, a"),
    "class missing": (lambda place: place.remove("val/b"), "same classes"),
    "no test": (lambda place: place.remove("val"), "same classes"),
    "no training": (lambda place: place.remove("train"), "data_dir must name a folder"),
    "class that is a file": (lambda place: place.remove("val/b") or place.write("val/b"), "same"),
    "images without classes": (unlabelled, (2, 0, 0)),
    "images without classes and hidden ones": (flat_and_hidden, (2, 0, 1)),
    "images without classes and a folder": (flat_and_folder, (2, 0, 2)),
}


def use(data, config):
    """How many images can be used, and how many are bad."""
    used = 0
    for split in filter(None, {id(split): split for split in (data.train, data.test)}.values()):
        for places, images, _ in pipeline.test_batches(data, split, config).as_numpy_iterator():
            assert np.isfinite(images).all()
            used += int((places >= 0).sum())
    return used, len(data.failures.names)


def one_sentence(error):
    message = str(error.value)
    assert "Received" in message and "\n" not in message
    return message


@pytest.mark.parametrize("kind", most_long(FOLDERS, 12))
def test_a_malformed_folder(kind, tmp_path):
    change, expected = FOLDERS[kind]
    place = Place(tmp_path)
    change(place)
    config = load_config("image_folder")
    config.update({"image_size": 32, "batch_size": 2})
    if isinstance(expected, str):
        with pytest.raises(InputError) as error:
            sources.load(config, str(tmp_path))
        assert re.search(expected, one_sentence(error))
        return
    data = sources.load(config, str(tmp_path))
    used, bad = use(data, config)
    passed = sum(int(count) for count in re.findall(r"[:,] (\d+) ", f"{data.note} "))
    assert (used, bad, passed) == expected if expected else used + bad + passed == 9
    assert all(data.failures.reasons.values())


def tfds_set(path):
    features = {
        "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["a", "b"]),
    }
    examples = [{"image": np.full((8, 8, 3), i, "uint8"), "label": i % 2} for i in range(8)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="made_malformed",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={name: list(enumerate(examples)) for name in ("train", "test")},
        data_dir=path,
    )
    return path / "made_malformed" / "1.0.0"


def cut(pattern, keep):
    def change(folder):
        (path,) = folder.glob(pattern)
        contents = path.read_bytes()
        path.write_bytes(contents[: int(keep * len(contents))])

    return change


def delete(pattern):
    return lambda folder: next(folder.glob(pattern)).unlink()


def overwrite(pattern, contents):
    return lambda folder: next(folder.glob(pattern)).write_bytes(contents)


SETS = {
    "truncated records": cut("*train*.tfrecord*", 0.6),
    "empty records": cut("*train*.tfrecord*", 0),
    "no records": delete("*train*.tfrecord*"),
    "records of noise": overwrite("*train*.tfrecord*", os.urandom(1000)),
    "no description": delete("dataset_info.json"),
    "truncated description": cut("dataset_info.json", 0.5),
    "no features": delete("features.json"),
    "features of another kind": overwrite("features.json", b"[]"),
    "too few classes": overwrite("label.labels.txt", b"a\n"),
}


def test_classes_without_names_have_numbers(tmp_path):
    delete("label.labels.txt")(tfds_set(tmp_path))
    config = load_config("cifar10")
    config.update({"dataset": "made_malformed", "batch_size": 4})
    assert sources.load(config, str(tmp_path)).class_names == ("0", "1")


@pytest.mark.parametrize("kind", SETS)
def test_a_malformed_set(kind, tmp_path):
    SETS[kind](tfds_set(tmp_path))
    config = load_config("cifar10")
    config.update({"dataset": "made_malformed", "batch_size": 4})
    with pytest.raises(InputError) as error:
        sources.load(config, str(tmp_path))
    assert re.search("made_malformed|Labels|" + re.escape(str(tmp_path)), one_sentence(error))


def test_there_are_fifty():
    assert len(FOLDERS) + len(SETS) >= 50
