"""Images of other than three channels, from files to a run, its export and what loads it."""

import io

import numpy as np
import pytest
import skimage.data
import tensorflow as tf
import tensorflow_datasets as tfds
import tifffile
from long import most_long
from PIL import Image

from amdim_tf import load_encoder, load_preprocess
from amdim_tf.config import load_config
from amdim_tf.data import pipeline, sources
from amdim_tf.data.channels import decode, reason, scaled
from amdim_tf.data.preprocess import Preprocess
from amdim_tf.data.statistics import pixel_statistics
from amdim_tf.data.views import Policy, draw, two_views
from amdim_tf.errors import InputError
from amdim_tf.runs.training import train
from amdim_tf.serving.bulk import Job, embed
from amdim_tf.training.building import build_encoder, check_config

GENERATOR = np.random.default_rng(0)
DEEP = GENERATOR.integers(0, 65536, (9, 7, 1), "uint16")
BANDS = GENERATOR.integers(0, 65536, (9, 7, 5), "uint16")


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **{"photometric": "minisblack"} | options)
    return file.getvalue()


def png(array):
    return tf.io.encode_png(array).numpy()


def pillow(array, kind):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, lossless=True)
    return file.getvalue()


COLOUR = skimage.data.astronaut()[:9, :7]
LUMA = (COLOUR * np.array([0.299, 0.587, 0.114])).sum(-1, keepdims=True)
SMALL = np.uint8(BANDS // 256)
READ = {
    "a PNG of 16 bits": (png(DEEP), DEEP / 257),
    "a PNG of 8 bits": (png(SMALL[..., :1]), SMALL[..., :1]),
    "a colour PNG": (png(COLOUR), LUMA),
    "a PNG of four channels": (png(SMALL[..., :4]), SMALL[..., :4]),
    "a grey WebP": (pillow(np.repeat(SMALL[..., :1], 3, -1), "WEBP"), SMALL[..., :1]),
    "a TIFF of 8 bits": (tiff(SMALL[..., 0]), SMALL[..., :1]),
    "a TIFF of 16 bits": (tiff(DEEP[..., 0]), DEEP / 257),
    "a big-endian TIFF": (tiff(DEEP[..., 0], byteorder=">", bigtiff=True), DEEP / 257),
    "a deflated TIFF": (tiff(DEEP[..., 0], compression="zlib"), DEEP / 257),
    "a TIFF where 0 is white": (tiff(DEEP[..., 0], photometric="miniswhite"), 255 - DEEP / 257),
    "a TIFF of floats": (tiff(np.float32(DEEP[..., 0] / 65535)), DEEP / 257),
    "a TIFF of doubles": (tiff(DEEP[..., 0] / 65535), DEEP / 257),
    "bands side by side": (tiff(BANDS, planarconfig="contig"), BANDS / 257),
    "bands one by one": (
        tiff(np.moveaxis(BANDS, -1, 0), planarconfig="separate"),
        BANDS / 257,
    ),
    "bands as pages": (tiff(np.moveaxis(BANDS, -1, 0)), BANDS / 257),
    "a row of bands": (tiff(BANDS[:1], planarconfig="contig"), BANDS[:1] / 257),
}
REFUSED = {
    "an image of 5-channel pixels, not of 4": (tiff(BANDS, planarconfig="contig"), 4),
    "an image of 3-channel pixels, not of 4": (pillow(COLOUR, "JPEG"), 4),
    "an image of 1-channel pixels, not of 2": (png(DEEP), 2),
    "an image of 5-channel pixels, not of 1": (tiff(BANDS, planarconfig="contig"), 1),
    "beyond 0..1": (tiff(np.float32(DEEP[..., 0])), 1),
    "pixels that are not finite": (tiff(np.full((5, 4), np.nan, "float32")), 1),
    "pixels of the kind int16": (tiff(np.int16(DEEP[..., 0] // 2)), 1),
    "no image of": (tiff(np.zeros((2, 3, 5, 4), "uint8")), 1),
    "a TIFF that cannot be read": (tiff(DEEP[..., 0])[:40], 1),
    "of a palette": (
        tiff(SMALL[..., 0], photometric="palette", colormap=np.zeros((3, 256), "uint16")),
        1,
    ),
    "broken or truncated": (png(DEEP)[:60], 1),
    "no image": (b"no image at all", 1),
    "empty": (b"", 5),
}


@pytest.mark.parametrize("name", most_long(READ, 3))
def test_pixels_keep_their_precision(name):
    contents, expected = READ[name]
    channels = expected.shape[-1]
    for read in (decode, tf.function(decode)):
        found = read(tf.constant(contents), channels)
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert reason(contents, channels) == ""


@pytest.mark.parametrize("why", REFUSED)
def test_refused_in_words(why):
    contents, channels = REFUSED[why]
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(tf.constant(contents), channels)
    assert why in reason(contents, channels)


REFLECTANCE = np.int16(GENERATOR.integers(-50, 12000, (9, 7, 5)))
AS_WHITE = {
    "a TIFF of signed numbers": tiff(REFLECTANCE, planarconfig="contig"),
    "a TIFF of floats": tiff(np.float32(REFLECTANCE), planarconfig="contig"),
}


@pytest.mark.parametrize("name", AS_WHITE)
def test_a_white_of_ones_own(name):
    """What is whiter is white, and what is below black is black."""
    expected = np.clip(REFLECTANCE / 10000, 0, 1) * 255
    found = decode(tf.constant(AS_WHITE[name]), 5, white=10000)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(scaled(REFLECTANCE, 5, 10000.0), expected, atol=1e-3)
    assert reason(AS_WHITE[name], 5, 10000) == ""
    assert reason(AS_WHITE[name], 5) != ""


def test_white_of_pngs_and_arrays():
    camera = np.minimum(DEEP // 8, 4095)
    expected = camera / 4095 * 255
    np.testing.assert_allclose(decode(tf.constant(png(camera)), 1, 4095), expected, atol=1e-3)
    half = decode(tf.constant(png(SMALL[..., :1])), 1, white=510)
    np.testing.assert_allclose(half, SMALL[..., :1] / 2, atol=1e-3)
    images = np.repeat(np.repeat(camera, 5, 0), 5, 1)[None]
    prepare = Preprocess(32, (0.5,), (0.25,), white=4095)
    again = prepare(np.float32(images) / 4095 * 255)
    np.testing.assert_allclose(prepare(tf.constant(images)), again, atol=1e-4)


@pytest.mark.parametrize("broken", [np.nan, 2.0])
def test_arrays_beyond(broken):
    pixels = np.full((5, 4, 2), 0.5, "float32")
    pixels[1, 1, 0] = broken
    with pytest.raises(tf.errors.InvalidArgumentError, match="white says otherwise"):
        scaled(pixels, 2)


def test_a_promise_of_too_many_numbers(monkeypatch):
    monkeypatch.setattr("amdim_tf.data.channels.MAX_NUMBERS", BANDS.size - 1)
    assert "at most 314 numbers" in reason(tiff(BANDS, planarconfig="contig"), 5)


@pytest.mark.parametrize("geometry", ["translate", "crop"])
@pytest.mark.parametrize("channels", [1, 4])
def test_views_of_other_channels(channels, geometry):
    """As of three, in geometry, brightness and contrast; hue, saturation and grey are left out."""
    policy = Policy(geometry, jitter_probability=1.0, gray_probability=1.0)
    images = GENERATOR.uniform(60, 180, (6, 40, 40, channels)).astype("float32")
    draws = draw((0, 1), 6)
    found = two_views(images, 32, policy, draws)
    assert found.shape == (2, 6, 32, 32, channels)
    for c in range(channels):
        alone = two_views(images[..., c : c + 1], 32, policy, draws)
        np.testing.assert_allclose(found[..., c : c + 1], alone, atol=1e-3)
    plain = Policy(geometry, jitter_probability=0.0, gray_probability=0.0)
    assert np.abs(found - two_views(images, 32, plain, draws)).max() > 5


def test_grey_in_one_channel_or_three():
    """Where no colour operation needs three, a grey image has the same views in one channel."""
    policy = Policy(hue=0.0, jitter_probability=1.0)
    images = GENERATOR.integers(40, 200, (8, 36, 36, 1)).astype("float32")
    draws = draw((0, 2), 8)
    three = two_views(np.repeat(images, 3, -1), 32, policy, draws)
    np.testing.assert_allclose(two_views(images, 32, policy, draws), three[..., :1], atol=0.6)


def folder_of(path, channels, count=24):
    """A folder of images whose class is the brightness of the last channel."""
    generator = np.random.default_rng(channels)
    for split, images in (("train", count), ("val", 12)):
        for i in range(images):
            folder = path / split / ("dark", "light")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 2**15, (36 + i % 3, 40, channels)).astype("uint16")
            pixels[..., -1] += 2**14 * (i % 2)
            if channels == 1 and i % 3 == 0:
                (folder / f"{i}.png").write_bytes(png(pixels))
            else:
                planar = {"planarconfig": "contig"} if channels > 1 else {}
                (folder / f"{i}.tif").write_bytes(tiff(pixels.squeeze(), **planar))
    return path


def config_of(channels, **fields):
    config = load_config("image_folder", "small")
    config.update({"image_size": 32, "ndf": 4, "nrkhs": 32, "ndepth": 1, "batch_size": 8})
    config.update({"steps": 3, "log_every": 1, "probe_epochs": 1, "channels": channels} | fields)
    return config


@pytest.mark.long
@pytest.mark.parametrize("channels", [pytest.param(1, marks=pytest.mark.release), 5])
def test_a_run(channels, tmp_path, capsys):
    """Trained, measured, exported, loaded and embedded, the images in their own channels."""
    data = folder_of(tmp_path / "data", channels)
    config = config_of(channels)
    how = {"baselines": False, "strategy": "none", "xla": "off"}
    result = train(config, tmp_path / "run", data, **how)
    said = capsys.readouterr().out
    assert "no hue, saturation or grey" in said
    assert not result.get("missing") and result["train_images"] == 24
    mean, std = result["config"]["mean"], result["config"]["std"]
    assert len(mean) == len(std) == channels
    assert mean[-1] == pytest.approx(0.25 + 0.125 * (channels > 0), abs=0.02)

    # Again over the first run, with numbers that are to be measured once more.
    train(config_of(channels), tmp_path / "run", data, **how)
    assert "nothing to do" in capsys.readouterr().out

    preprocess, encoder = (load(tmp_path / "run") for load in (load_preprocess, load_encoder))
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 40, 50, channels)).astype("float32")
    f1 = encoder(preprocess(pixels))["f1"]
    served = tf.saved_model.load(str(tmp_path / "run/export/1")).signatures
    found = served["serving_default"](images=tf.constant(pixels))["f1"]
    np.testing.assert_allclose(found, f1, atol=1e-5 * np.abs(f1).max())
    assert ("encoded" in served) == (channels == 1)
    if channels == 1:
        file = png(np.uint16(pixels[0] * 257))
        by_file = served["encoded"](bytes=tf.constant([file]))["f1"]
        np.testing.assert_allclose(by_file[0], f1[0], atol=1e-2 * np.abs(f1).max())

    job = Job(str(tmp_path / "run"), str(tmp_path / "out"), "tfrecord", "folder", str(data / "val"))
    assert embed(job) == []
    (path,) = (tmp_path / "out").glob("*.tfrecord")
    assert len(list(tf.data.TFRecordDataset(str(path)))) == 12


def test_another_channel_count_is_a_bad_image(tmp_path):
    data_dir = folder_of(tmp_path, 5)
    tifffile.imwrite(tmp_path / "train/dark/other.tif", np.zeros((40, 40), "uint8"))
    config = config_of(5, bad_images=1.0)
    config.mean = config.std = (0.5,) * 5
    data = sources.load(config, tmp_path)
    ((_, _, labels),) = pipeline.test_batches(data, data.train, config)
    assert np.sum(labels.numpy() == -1) == 1
    ((name, why),) = data.failures.reasons.items()
    assert name.endswith("other.tif") and why == "an image of 1-channel pixels, not of 5"
    assert data_dir == tmp_path


def test_three_channels_pass_tiffs_over(tmp_path):
    folder_of(tmp_path, 1)
    with pytest.raises(InputError, match="labels=none|tif files"):
        for split in ("train", "val"):
            for path in (tmp_path / split).rglob("*.png"):
                path.unlink()
        sources.load(config_of(3), tmp_path)


def made(tmp_path, channels, dtype, key="image"):
    """A TFDS set of images with that many channels; a `key` other than image is an array."""
    generator = np.random.default_rng(0)
    dtype = np.dtype(dtype).type
    white = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    images = (white * generator.random((12, 32, 32, channels))).astype(dtype)
    if key == "image":
        image = tfds.features.Image(shape=(32, 32, channels), dtype=dtype, encoding_format="png")
    else:
        image = tfds.features.Tensor(shape=(32, 32, channels), dtype=dtype)
    label = tfds.features.ClassLabel(names=["a", "b"])
    tfds.dataset_builders.store_as_tfds_dataset(
        name="made",
        version="1.0.0",
        features=tfds.features.FeaturesDict({key: image, "label": label}),
        split_datasets={
            split: [(i, {key: x, "label": i % 2}) for i, x in enumerate(images)]
            for split in ("train", "test")
        },
        data_dir=tmp_path,
    )
    return images * (255 / white)


@pytest.mark.long
@pytest.mark.parametrize(
    "found, wanted, dtype, key",
    [
        (1, 1, "uint16", "image"),
        (3, 1, "uint8", "image"),
        (4, 4, "uint16", "image"),
        (1, 1, "float32", "image"),
        (13, 13, "float32", "sentinel2"),
        (5, 5, "uint16", "bands"),
    ],
)
def test_tfds_sets(found, wanted, dtype, key, tmp_path):
    images = made(tmp_path, found, dtype, key)
    config = config_of(wanted)
    config.update({"source": "tfds", "dataset": "made", "test_split": "test", "batch_size": 4})
    check_config(config)
    data = sources.load(config, tmp_path)
    config.mean, config.std = pixel_statistics(data, config)
    if found == wanted:
        np.testing.assert_allclose(config.mean, images.mean((0, 1, 2)) / 255, atol=0.02)
        np.testing.assert_allclose(config.std, images.std((0, 1, 2)) / 255, atol=0.02)
        order = [data.decode(record).numpy() for record, _ in data.train.examples]
        assert any(np.allclose(order[0], image, atol=1e-2) for image in images)
    ((x1, x2), _), *_ = pipeline.train_batches(data, config, 0, 1)
    assert x1.shape == x2.shape == (4, 32, 32, wanted)


@pytest.mark.parametrize("found, wanted", [(4, 3), (3, 4), (1, 5)])
def test_tfds_sets_of_other_channels(found, wanted, tmp_path):
    made(tmp_path, found, "uint8")
    config = config_of(wanted, source="tfds", dataset="made")
    with pytest.raises(InputError, match=f"3\\d, {found}\\) uint8, and channels={wanted}"):
        sources.load(config, tmp_path)


def test_tfds_sets_of_other_numbers(tmp_path):
    """Of a type without a white of its own, they need one from the config."""
    images = made(tmp_path, 2, "int16", key="bands")
    config = config_of(2, source="tfds", dataset="made", test_split="test")
    with pytest.raises(InputError, match="white of any numbers.*bands .32, 32, 2. int16"):
        sources.load(config, tmp_path)
    config.white = 10000.0
    data = sources.load(config, tmp_path)
    record = next(iter(data.train.examples))[0]
    found = data.decode(record).numpy()
    scaled_images = np.clip(images / 255 * np.iinfo("int16").max / 10000, 0, 1) * 255
    assert any(np.allclose(found, image, atol=1e-2) for image in scaled_images)


@pytest.mark.parametrize("name", most_long(["mobilenetv3small", "efficientnetb0", "resnet50"], 3))
def test_encoders_of_other_channels(name):
    """Built in or of three channels: such a normalisation is left out."""
    config = config_of(4, encoder=name)
    check_config(config)
    encoder = build_encoder(config)
    assert encoder.channels == 4
    assert encoder(np.zeros((1, 32, 32, 4), "float32"))["f1"].shape == (1, encoder.nrkhs)
    assert (encoder.normalisation is None) == (name != "efficientnetb0")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"channels": 0}, "channels must be at least 1"),
        ({"channels": 4, "mean": (0.5, 0.5)}, "mean must be 4 numbers"),
        ({"channels": 3, "std": (0.5,)}, "std must be 3 numbers"),
        ({"channels": 1, "views.autoaugment": "cifar10"}, "needs images of 3 channels"),
        ({"white": 10000.0}, "white is for images of other than 3 channels"),
        ({"channels": 5, "white": -1.0}, "white must be at least 0"),
        ({"mean": (-1.0, 0.0, 0.0)}, "mean must be one number per channel"),
    ],
)
def test_invalid_fields(fields, message):
    config = load_config("photo_patches")
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError, match=message):
        check_config(config)


def test_photographs_have_three_channels():
    config = load_config("photo_patches")
    config.channels = 1
    with pytest.raises(InputError, match="channels must be 3 for photo_patches"):
        sources.load(config)


def test_images_of_16_bits_are_prepared_as_those_of_8():
    pixels = GENERATOR.integers(0, 256, (2, 40, 50, 3), "uint8")
    prepare = Preprocess(32, (0.5,) * 3, (0.25,) * 3)
    deep = prepare(tf.constant(np.uint16(pixels) * 257))
    np.testing.assert_allclose(deep, prepare(pixels), atol=1e-5)
