import functools
import re

import numpy as np
import pytest
import skimage.data
import tensorflow as tf
import tensorflow_datasets as tfds
from long import most_long

from amdim_tf.config import load_config
from amdim_tf.data import photographs, pipeline, sources, views
from amdim_tf.data.views import Policy
from amdim_tf.errors import InputError

SHAPES = {
    "made_square": (32, 32, 3),
    "made_any": (None, None, 3),
    "made_gray": (32, 32, 1),
    "made_transparent": (32, 32, 4),
    "made_deep": (32, 32, 3),
    "made_unlabelled": (32, 32, 3),
}


def made(name, tmp_path, file_format=None, **fields):
    """Prepares a TFDS set of a few drawn images, and loads it by its name."""
    dtype = np.uint16 if name == "made_deep" else np.uint8
    image = tfds.features.Image(shape=SHAPES[name], dtype=dtype, encoding_format="png")
    features = {"image": image, "label": tfds.features.ClassLabel(names=["a", "b", "c"])}
    if name == "made_unlabelled":
        del features["label"]
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            split: list(enumerate(examples(name, count)))
            for split, count in (("train", 20), ("test", 7))
        },
        data_dir=tmp_path,
        file_format=file_format,
    )
    config = load_config("cifar10")
    config.dataset, config.batch_size = name, 4
    config.update(fields)
    return sources.load(config, str(tmp_path)), config


def examples(name, count):
    generator = np.random.default_rng(count)
    for i in range(count):
        shape = [size or 40 + 3 * i for size in SHAPES[name]]
        dtype = np.uint16 if name == "made_deep" else np.uint8
        image = {"image": generator.integers(0, 256, shape).astype(dtype)}
        yield image if name == "made_unlabelled" else image | {"label": i % 3}


@pytest.fixture(scope="module")
def photos():
    return photographs.photo_patches()


def decoded(data, split):
    """All images and labels of a split."""
    examples = [(data.decode(record).numpy(), int(label)) for record, label in split.examples]
    return zip(*examples, strict=True)


def test_photo_patches(photos):
    images, labels = map(np.array, decoded(photos, photos.train))
    assert images.shape == (photos.train.size, 32, 32, 3) and images.dtype == np.uint8
    assert photos.train.size > 4000 and 0.95 * 14 * 60 <= photos.test.size <= 14 * 60
    np.testing.assert_array_equal(photos.train.labels(), labels)
    assert np.bincount(labels).max() == 300 and len(np.bincount(labels)) == 14
    assert len(photos.class_names) == 14

    # The same patches every time, and none of the test patches among the training patches.
    again = next(iter(photographs.photo_patches().train.examples))[0]
    np.testing.assert_array_equal(images[0], again)
    seen = {image.tobytes() for image in images}
    assert not any(image.tobytes() in seen for image in next(decoded(photos, photos.test)))


def test_tfds_images_and_labels_arrive_whole(tmp_path):
    data, config = made("made_square", tmp_path)
    assert (data.train.size, data.test.size, data.image_shape) == (20, 7, (32, 32))
    assert data.class_names == ("a", "b", "c") and data.note == "" and data.probe is data.train
    expected = next(examples("made_square", 7))["image"]
    assert any((image == expected).all() for image in next(decoded(data, data.test)))

    batches = list(pipeline.test_batches(data, data.test, config).as_numpy_iterator())
    places, images, labels = map(np.concatenate, zip(*batches, strict=True))
    assert list(places) == list(range(7)) and sorted(labels) == [0, 0, 0, 1, 1, 2, 2]
    pixels = images * np.float32(config.std) + np.float32(config.mean)
    assert any(np.allclose(255 * image, expected, atol=1e-2) for image in pixels)


def test_part_of_a_split(tmp_path):
    fields = {"train_split": "train[:10]", "probe_split": "train[:4]"}
    data, _ = made("made_square", tmp_path, **fields)
    assert data.train.size == len(list(data.train.examples)) == 10
    assert data.probe.size == len(data.probe.labels()) == 4


def test_subset_of_a_split(photos):
    chosen = np.flatnonzero(photos.test.labels() == 3)
    subset = photos.test.subset(chosen)
    assert subset.size == len(chosen) and (subset.labels() == 3).all()


def test_gray_images_are_converted_and_said_to_be(tmp_path):
    data, _ = made("made_gray", tmp_path)
    assert "grey images, repeated to three channels" in data.note
    images, _ = decoded(data, data.train)
    assert images[0].shape == (32, 32, 3)
    np.testing.assert_array_equal(images[0][..., 0], images[0][..., 2])


@pytest.mark.parametrize(
    "name, shape", [("made_transparent", "32, 32, 4"), ("made_deep", "uint16")]
)
def test_other_images_are_refused(name, shape, tmp_path):
    with pytest.raises(InputError, match=rf"1 or 3 channels of 8 bits.*{name}.*{shape}"):
        made(name, tmp_path)


def test_unknown_names_splits_and_folders(tmp_path):
    config = load_config("cifar11")
    with pytest.raises(
        InputError, match="cifar10, .*imagenet2012, .*photo_patches.*nearest.*'cifar11'"
    ):
        sources.load(config)
    with pytest.raises(InputError, match="train, test.*Received: 'validation'"):
        made("made_square", tmp_path, test_split="validation")
    with pytest.raises(InputError, match="existing folder.*nowhere"):
        sources.load(config, str(tmp_path / "nowhere"))


def test_what_cannot_be_downloaded_is_said_where_it_was_sought(tmp_path):
    # ImageNet's archives have to be fetched by hand, so this needs no network to fail.
    config = load_config("imagenet2012")
    with pytest.raises(InputError) as error:
        sources.load(config, str(tmp_path))
    message = str(error.value)
    assert str(tmp_path) in message and "tfds build imagenet2012" in message and "\n" not in message


@pytest.mark.parametrize(
    "dataset", ["cifar10:2.*.*", "cifar10/3.0.2", "cifar10:3.0.2:1", "cifar10/", "a b", "cifar10:x"]
)
def test_versions_and_configs_that_do_not_exist_are_refused_in_one_sentence(dataset, tmp_path):
    config = load_config("cifar10")
    config.dataset = dataset
    with pytest.raises(InputError) as error:
        sources.load(config, str(tmp_path))
    assert "dataset must be" in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith(f"Received: dataset={dataset!r}")


@pytest.mark.parametrize("dataset", ["cifar10:3.0.2", "cifar10:3.*.*", "imagenet2012:5.1.0"])
def test_a_pinned_version_has_the_config_of_its_set(dataset):
    pinned, plain = load_config(dataset), load_config(dataset.partition(":")[0])
    assert {k for k in plain if pinned[k] != plain[k]} == {"dataset"}


@pytest.mark.parametrize("split", ["train[:0]", "train[5:2]", "train[200%:]", "train[", ""])
def test_splits_without_images_are_refused(split, tmp_path):
    with pytest.raises(InputError, match="split.*Received: '" + re.escape(split)):
        made("made_square", tmp_path, train_split=split)


@pytest.mark.parametrize("name, labels", [("made_unlabelled", "auto"), ("made_square", "none")])
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_sets_without_classes_are_for_the_encoder_alone(name, labels, file_format, tmp_path):
    data, config = made(name, tmp_path, file_format, labels=labels, test_split="none")
    assert data.class_names == () and data.probe is None and data.test is None
    assert ("no label of classes" in data.note) == (name == "made_unlabelled")
    (_, labels), *_ = steps(data, config, 0, 5)
    assert list(labels) == [-1] * 4


@pytest.mark.long
def test_array_records_are_the_same_data(tmp_path):
    data, config = made("made_square", tmp_path / "a", "array_record")
    expected, _ = made("made_square", tmp_path / "b")

    def content(split):
        return sorted(
            (image.tobytes(), label) for image, label in zip(*decoded(data, split), strict=True)
        )

    for name in ("train", "test"):
        assert content(getattr(data, name)) == content(getattr(expected, name))
    train = data.train
    assert train.digest not in (expected.train.digest, data.test.digest)
    places = np.arange(3, 20, 4)
    np.testing.assert_array_equal(train.subset(places).labels(), train.labels()[places])
    assert train.sample(7).size == len(train.sample(7).labels()) == 7
    rest = [label for _, label in train.examples_from(5).as_numpy_iterator()]
    np.testing.assert_array_equal(rest, train.labels()[5:])
    for ours, theirs in zip(
        steps(data, config, 7, 12), steps(data, config, 0, 12)[7:], strict=True
    ):
        tf.nest.map_structure(np.testing.assert_array_equal, ours, theirs)
    epochs = [np.concatenate([x[1] for x in steps(data, config, i, i + 5)]) for i in (0, 5)]
    assert sorted(epochs[0]) == sorted(train.labels()) and (epochs[0] != epochs[1]).any()
    sliced, _ = made("made_square", tmp_path / "c", "array_record", train_split="train[10:]")
    np.testing.assert_array_equal(sliced.train.labels(), train.labels()[10:])


# Folders


def folder(path, train=("cat", "dog"), val=("cat", "dog"), images=3):
    generator = np.random.default_rng(0)
    for split, names in (("train", train), ("val", val)):
        for name in names:
            (path / split / name / "more").mkdir(parents=True)
            for i in range(images):
                shape = (20 + i, 30, 3)
                image = tf.io.encode_png(generator.integers(0, 256, shape).astype("uint8"))
                place = path / split / name / ("more" if i else "") / f"{i}.PNG"
                tf.io.write_file(str(place), image)
            (path / split / name / "notes.txt").write_text("not an image")
    config = load_config("image_folder")
    config.batch_size = 4
    return config


def test_a_folder_of_classes(tmp_path):
    config = folder(tmp_path)
    data = sources.load(config, str(tmp_path))
    assert (data.class_names, data.train.size, data.test.size) == (("cat", "dog"), 6, 6)
    images, labels = decoded(data, data.train)
    assert {image.shape for image in images} == {(20, 30, 3), (21, 30, 3), (22, 30, 3)}
    assert sorted(labels) == [0, 0, 0, 1, 1, 1] and sorted(labels) != list(labels)
    (x1, _), labels = next(iter(pipeline.train_batches(data, config, 0, 1)))
    assert x1.shape == (4, 128, 128, 3) and labels.shape == (4,)


def test_a_folder_without_classes_is_for_the_encoder_alone(tmp_path):
    config = folder(tmp_path, train=[""], val=[])
    (tmp_path / "train" / "more").rename(tmp_path / "elsewhere")
    data = sources.load(config, str(tmp_path))
    assert data.class_names == () and data.probe is None and data.test is None
    assert list(data.train.labels()) == [-1]


@pytest.mark.parametrize(
    "made, expected",
    [
        ({"val": ["cat", "cow", "dog"]}, "same classes.*Received: 2 and 3.*cow"),
        ({"val": []}, "same classes.*Received: 2 and 0.*cat, dog"),
        ({"images": 0}, "end in .jpg.*cat, which holds none"),
        ({"train": [], "val": []}, "data_dir must name a folder with train/<class>/"),
    ],
)
def test_folders_that_do_not_fit_are_refused(made, expected, tmp_path):
    config = folder(tmp_path, **made)
    with pytest.raises(InputError, match=expected):
        sources.load(config, str(tmp_path))


# Batches


def steps(data, config, first, last):
    return list(pipeline.train_batches(data, config, first, last).as_numpy_iterator())


@pytest.mark.parametrize(
    "name, size, geometry",
    most_long([("made_square", 32, "translate"), ("made_any", 64, "crop")], 2),
)
def test_batches_are_a_function_of_seed_and_step(name, size, geometry, tmp_path):
    data, config = made(name, tmp_path, image_size=size)
    config.views.geometry = geometry
    whole = steps(data, config, 0, 12)  # 5 steps an epoch
    assert len(whole) == 12
    (x1, x2), labels = whole[0]
    assert x1.shape == x2.shape == (4, size, size, 3) and labels.shape == (4,)
    assert np.abs(x1 - x2).mean() > 0.01

    resumed = steps(data, config, 7, 12)
    for ours, theirs in zip(resumed, whole[7:], strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, ours, theirs)

    # Each epoch sees every image once, in another order.
    epochs = [np.concatenate([labels for _, labels in whole[i : i + 5]]) for i in (0, 5)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and (epochs[0] != epochs[1]).any()
    config.seed = 1
    other = steps(data, config, 0, 1)
    assert np.abs(other[0][0][0] - x1).max() > 0.1


@pytest.mark.parametrize("extension, worst", [("jpg", 4.0), ("png", 1e-3)])
def test_windows_give_the_views_of_whole_images(extension, worst, tmp_path):
    photograph = skimage.data.astronaut()[:150, :200]
    encode = tf.io.encode_jpeg if extension == "jpg" else tf.io.encode_png
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        tf.io.write_file(str(tmp_path / split / "a" / f"a.{extension}"), encode(photograph))
    data = sources.load(load_config("image_folder"), str(tmp_path))
    record, _ = next(iter(data.train.examples))
    policy, areas = Policy(geometry="crop"), []
    for step in range(5):
        draws = views.draw((0, step), 1)
        boxes_of = functools.partial(views.crop_boxes, draws)
        part, boxes = data.decode_window(record, boxes_of)
        ours = views.crop_one(part, boxes, 64, policy, draws)
        theirs = views.reframe(data.decode(record)[None], 64, policy, draws)[:, 0]
        # At the borders of its window, JPEG's coarser colours lack a neighbour to be smoothed with.
        assert np.abs(ours - theirs).max() <= worst and np.abs(ours - theirs).mean() <= 0.01
        areas.append(len(part) * len(part[0]) / (150 * 200))
    assert 0.3 <= min(areas) < 0.9 and max(areas) <= 1


def test_a_batch_larger_than_the_data_set_is_refused(tmp_path):
    data, config = made("made_square", tmp_path, batch_size=21)
    with pytest.raises(InputError, match="at most the 20 training images.*batch_size=21"):
        pipeline.steps_per_epoch(data, config)


def test_test_batches_of_images_of_any_shape(tmp_path):
    data, config = made("made_any", tmp_path, image_size=64)
    _, images, labels = next(iter(pipeline.test_batches(data, data.test, config)))
    assert images.shape == (7, 64, 64, 3) and labels.shape == (7,)
