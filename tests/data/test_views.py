"""Operations against torchvision's on PIL images, and the statistics of the draws."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from golden_values import GOLDEN
from long import most_long

from amdim_tf.config import load_config
from amdim_tf.data import color, views
from amdim_tf.data.filters import blur, solarize
from amdim_tf.data.policy import GEOMETRIES
from amdim_tf.data.views import Policy, draw, two_views
from amdim_tf.distribution import compiled
from amdim_tf.errors import InputError

PLAIN = Policy("none", jitter_probability=0.0, gray_probability=0.0)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "augmentation.npz"))


@pytest.fixture(scope="module")
def parameters():
    return json.loads((GOLDEN / "augmentation.json").read_text())


def assert_same_pixels(ours, golden):
    difference = np.abs(np.round(ours) - golden.astype("float32"))
    assert difference.mean() <= 1
    assert np.percentile(difference, 99) <= 3


@pytest.mark.parametrize("operation", ["brightness", "contrast", "saturation", "hue", "grayscale"])
def test_colour_operations(golden, parameters, operation):
    images = tf.cast(golden["images"], tf.float32)
    for parameter, expected in zip(parameters[operation], golden[operation], strict=True):
        values = tf.fill([len(images)], parameter)
        if operation == "hue":
            ours = color.shift_hue(images, values)
        elif operation == "grayscale":
            ours = color.grayscale(images)
        else:
            index = tf.constant(getattr(color, operation.upper()))
            ours = color.adjust(images, index, values)
        assert_same_pixels(ours, expected)


def test_resized_crop(golden, parameters):
    for box, expected in zip(
        parameters["resized_crop_bicubic_64"], golden["resized_crop_bicubic_64"], strict=True
    ):
        top, left, height, width = (tf.fill([1, 5], float(x)) for x in box)
        rows = views.resampling(top, height, 64, 96)
        columns = views.resampling(left, width, 64, 96)
        assert_same_pixels(views.resample(golden["images"], rows, columns)[0], expected)


def test_center(golden):
    ours = views.center(golden["images"], 64)
    assert_same_pixels(ours, golden["resize_70_center_crop_64_bicubic"][0])
    # At 32 pixels the images of CIFAR are what they are.
    np.testing.assert_allclose(
        views.center(golden["images"][:, :32, :32], 32), golden["images"][:, :32, :32]
    )


ORDINARY = ((1, 1), (32, 32), (50, 37), (500, 375), (37, 148), (148, 37), (3, 11), (1000, 300))
LONG = ((5000, 3), (3, 5000), (300, 7), (1, 20_000), (9_999, 2), (12, 100))


def full_matrix(pixels, other, size, dtype):
    """(size,pixels) of the test-time transform: the formula for images of any shape."""
    short = views.SHORT_SIDE[size]
    resized = dtype(short * pixels // min(pixels, other))
    scale = dtype(pixels) / resized
    start = np.round((resized - size) / 2) * scale
    if dtype == np.float32:  # as the images of ordinary shape are resized since ever
        low, high = tf.zeros_like(start), tf.constant(pixels, tf.float32)
        return views.resampling(tf.constant(start), size * scale, size, pixels, low, high).numpy()
    centers = start + (np.arange(size) + 0.5)[:, None] * scale
    x = np.abs(np.arange(pixels) + 0.5 - centers) / max(scale, 1)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("height, width", ORDINARY)
def test_an_image_of_ordinary_shape_is_resized_in_full(height, width, size):
    images = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), "uint8")
    pixels, rows, columns = views.central(images, size)
    assert pixels.shape == images.shape
    np.testing.assert_array_equal(rows, full_matrix(height, width, size, np.float32))
    np.testing.assert_array_equal(columns, full_matrix(width, height, size, np.float32))


@pytest.mark.parametrize("size", most_long([32, 64, 128], 3))
@pytest.mark.parametrize("height, width", LONG)
def test_of_a_long_image_the_middle_is_enough(height, width, size):
    images = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), "uint8")
    pixels, *_ = views.central(images, size)
    assert max(pixels.shape) < 9 * min(height, width) + 2
    rows, columns = (
        full_matrix(*sides, size, np.float64) for sides in ((height, width), (width, height))
    )
    expected = np.einsum("sh,hwc,tw->stc", rows, np.float64(images[0]), columns, optimize=True)
    expected = np.clip(expected, 0, 255)
    ours = [views.center(images, size), compiled(views.center)(images, size)]
    for geometry in ("none", "translate"):
        policy = Policy(geometry, flip_probability=0.0, translate_probability=0.0)
        for reframe in (views.reframe, compiled(views.reframe)):
            ours += list(reframe(images, size, policy, draw((0, 0), 1)))
    for each in ours:
        np.testing.assert_allclose(each[0], expected, atol=2e-3)


MEMORY = """
import resource
import sys

import numpy as np
import tensorflow as tf

from amdim_tf.data import views
from amdim_tf.data.preprocess import Preprocess

prepare = Preprocess(128, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
draws = views.draw((0, 0), 1)


def crops(pixels):
    policy = views.Policy("crop")
    window, boxes = views.crop_boxes(draws, *tf.unstack(tf.shape(pixels)[:2]))
    top, left, height, width = tf.unstack(window)
    window = pixels[top : top + height, left : left + width]
    return views.crop_one(window, boxes, 128, policy, draws)


def frames(pixels):
    return [views.reframe(pixels[None], 128, views.Policy(x), draws) for x in ("none", "translate")]


functions = [
    tf.function(crops),
    tf.function(frames),
    tf.function(lambda pixels: prepare(pixels[None])),
    tf.function(lambda pixels: prepare.decode(tf.io.encode_png(pixels)[None])),
]
peaks = []
for shape in ((50, 40), *(tuple(map(int, text.split("x"))) for text in sys.argv[1:])):
    pixels = tf.fill((*shape, 3), tf.constant(77, tf.uint8))
    for function in functions[: 4 if max(shape) <= 10**6 else 3]:
        for value in tf.nest.flatten(function(pixels)):
            assert np.ptp(value) < 1e-3
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(*peaks)
"""


@pytest.mark.long
def test_memory_is_bounded_by_the_pixels_whatever_the_shape():
    shapes = ("1x1000000", "1000000x1", "1x33000000")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *shapes], capture_output=True, text=True, check=True
    )
    small, wide, high, huge = map(int, done.stdout.split())  # MiB
    # Pixels of one byte and of four; matrices of 128 rows would take 500 MiB each.
    assert wide - small < 100 and high - small < 100
    assert huge - small < 33 * 3 * 5 + 200


def test_translation_reflects(golden, parameters):
    images = golden["images"][:, :32, :32]
    for (dx, dy), expected in zip(
        parameters["translate_reflect_32"], golden["translate_reflect_32"], strict=True
    ):
        rows = views.reflected(32, tf.constant(dy))
        columns = views.reflected(32, tf.constant(dx))
        np.testing.assert_array_equal(
            tf.gather(tf.gather(images, rows, axis=1), columns, axis=2), expected
        )


@pytest.mark.parametrize(
    "geometry, size, shape", [("translate", 32, (32, 32)), ("crop", 64, (80, 96))]
)
def test_views_are_a_function_of_seed_and_step(geometry, size, shape):
    images = np.random.default_rng(0).integers(0, 256, (6, *shape, 3), dtype=np.uint8)
    policy = Policy(geometry)
    first = two_views(images, size, policy, draw((3, 5), 6))
    assert first.shape == (2, 6, size, size, 3) and first.dtype == tf.float32
    assert float(tf.reduce_min(first)) >= 0 and float(tf.reduce_max(first)) <= 255
    np.testing.assert_array_equal(first, two_views(images, size, policy, draw((3, 5), 6)))
    for seed in ((3, 6), (4, 5)):
        assert np.abs(first - two_views(images, size, policy, draw(seed, 6))).mean() > 1

    # On the host in tf.data, and compiled as in a training step.
    dataset = tf.data.Dataset.from_tensors(images).map(
        lambda batch: two_views(batch, size, policy, draw((3, 5), 6))
    )
    np.testing.assert_allclose(first, next(iter(dataset)), atol=1e-3)
    by_xla = compiled(two_views)(images, size, policy, draw((3, 5), 6))
    # Rounding moves some pixels of this noise across a step of PIL's 8-bit hue.
    assert np.mean(np.abs(first - by_xla)) <= 0.05
    assert np.abs(first - by_xla).max() <= 8


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_compiled_functions_may_start_in_several_threads(geometry):
    # None holds what would crash, see `distribution.compiled`.
    images, draws = tf.zeros([4, 96, 96, 3], tf.uint8), draw((0, 0), 4)
    pairs, ones = tf.zeros([2, 4, 64, 64, 3]), tf.ones([2, 4])
    reframe = compiled(lambda *x: views.reframe(x[0], 64, Policy(geometry), x[1]))
    for function, *arguments in (
        (reframe, images, draws),
        (
            compiled(lambda *x: views.crop_boxes(*x)),
            draws[..., :1],
            tf.constant(96),
            tf.constant(96),
        ),
        (color.move_away, pairs, tf.zeros([2, 4], tf.int32), ones, pairs[:, :, :1, :1]),
        (color.shift_hue, pairs, ones),
        (color.select, ones > 0, pairs, pairs),
        (color.desaturate, ones > 0, pairs),
        (blur, pairs, ones),
        (solarize, ones > 0, pairs),
    ):
        code = function.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
        assert "ENTRY" in code and "ynn" not in code


@pytest.mark.parametrize("batch", [1, 5])
def test_resampling_is_a_pair_of_products(batch):
    # Also for one image: products that broadcast over it are wrong in TensorFlow 2.21.
    generator = np.random.default_rng(0)
    images, rows, columns = (
        generator.random(shape, "float32")
        for shape in ((batch, 320, 300, 3), (2, batch, 128, 320), (2, batch, 128, 300))
    )
    rows, columns = (x / x.sum(-1, keepdims=True) for x in (rows, columns))
    expected = np.einsum("vbsh,bhwc,vbtw->vbstc", rows, images, columns, optimize=True)
    np.testing.assert_allclose(views.resample(images, rows, columns), expected, atol=1e-5)


def test_images_of_any_shape_are_cropped_to_size():
    for shape in ((40, 200), (200, 40), (33, 31)):
        images = np.full((2, *shape, 3), 7, np.uint8)
        for geometry in GEOMETRIES:
            ours = two_views(images, 64, Policy(geometry, jitter_probability=0.0), draw((0, 0), 2))
            np.testing.assert_allclose(ours, 7, atol=1e-3)


# Statistics over many draws. A ramp tells where each output pixel came from.
COUNT = 4000


def share(hits):
    return float(np.mean(hits))


def close_to(probability, count=COUNT):
    return pytest.approx(probability, abs=4 * np.sqrt(0.25 / count))


def test_the_flip_is_shared_and_fair():
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, None, :, None], (COUNT, 32, 32, 3))
    x1, x2 = two_views(ramp, 32, PLAIN, draw((0, 1), COUNT))
    flipped = [np.array(x[:, 0, 0, 0] > x[:, 0, -1, 0]) for x in (x1, x2)]
    np.testing.assert_array_equal(*flipped)
    assert share(flipped[0]) == close_to(0.5)


def test_translations():
    # A ramp that survives the flip: rows tell the vertical shift.
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, :, None, None], (COUNT, 32, 32, 3))
    policy = Policy(jitter_probability=0.0, gray_probability=0.0)
    pair = two_views(ramp, 32, policy, draw((0, 2), COUNT))
    shifts = 16 - np.array(pair[:, :, 16, 0, 0]).round().astype(int)
    assert set(shifts.ravel()) == set(range(-4, 5))
    for view in shifts:
        # Probability 0.8, in which one of nine shifts is none.
        assert share(view == 0) == close_to(0.2 + 0.8 / 9)
        assert share(view == 4) == close_to(0.8 / 9)
    assert abs(np.corrcoef(shifts)[0, 1]) < 4 / np.sqrt(COUNT)


def test_crops():
    draws = np.random.default_rng(0).random((22, 2, COUNT), dtype="float32")
    top, left, height, width = (np.array(x) for x in views.random_boxes(draws, 120, 160))
    for start, length, side in ((top, height, 120), (left, width, 160)):
        assert start.min() >= 0 and (start + length).max() <= side
        assert (start % 1 == 0).all() and (length % 1 == 0).all()
    area, ratio = height * width / (120 * 160), width / height
    assert 0.29 <= area.min() and area.max() <= 1.0
    assert 0.68 <= ratio.min() and ratio.max() <= 1.43
    # Small crops always fit, so their areas are uniform and log ratios centred.
    small = area < 0.5
    assert share(area[small] < 0.4) == pytest.approx(0.5, abs=0.04)
    assert np.median(np.log(ratio[small])) == pytest.approx(np.log(0.7 * 1.4) / 2, abs=0.03)
    for values in (area, left):
        assert abs(np.corrcoef(values)[0, 1]) < 4 / np.sqrt(COUNT)


def test_a_crop_that_never_fits_is_the_central_one():
    top, left, height, width = views.random_boxes(tf.fill([22, 1], 0.99), 10, 1000)
    assert (float(top[0]), float(left[0])) == (0, 493)
    assert (float(height[0]), float(width[0])) == (10, 14)


def test_jitter_and_grey():
    # One grey pixel value for brightness, one saturated colour for grey.
    images = np.broadcast_to(np.array([200, 40, 80], np.uint8), (COUNT, 32, 32, 3))
    gray_only = Policy("none", jitter_probability=0.0)
    pair = np.array(two_views(images, 32, gray_only, draw((0, 3), COUNT)))[:, :, 0, 0]
    gray = np.ptp(pair, axis=-1) < 1e-3
    for view in gray:
        assert share(view) == close_to(0.25)
    assert abs(np.corrcoef(gray)[0, 1]) < 4 / np.sqrt(COUNT)

    jitter_only = Policy("none", gray_probability=0.0)
    pair = np.array(two_views(images, 32, jitter_only, draw((0, 4), COUNT)))[:, :, 0, 0]
    changed = np.abs(pair - images[0, 0, 0]).max(-1) > 1e-3
    for view in changed:
        assert share(view) == close_to(0.8)
    assert abs(np.corrcoef(changed)[0, 1]) < 4 / np.sqrt(COUNT)

    # Mid-grey images answer to brightness alone, and without hue or saturation to draw from.
    images = np.full((COUNT, 32, 32, 3), 100, np.uint8)
    pair = np.array(two_views(images, 32, jitter_only, draw((0, 5), COUNT)))[:, :, 0, 0, 0]
    factors = pair[changed_from(pair, 100)] / 100
    assert 0.6 - 1e-3 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4 + 1e-3
    assert factors.mean() == pytest.approx(1, abs=0.02)


def changed_from(values, original):
    return np.abs(values - original) > 1e-2


def test_jitter_is_its_operations_one_after_the_other():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (96, 8, 8, 3)).astype("float32")
    order, before = generator.random((3, 96), "float32"), np.arange(96) % 4
    factors = generator.uniform(0.6, 1.4, (3, 96)).astype("float32")
    shift = generator.uniform(-0.2, 0.2, 96).astype("float32")
    ours = color.jitter(images, factors, shift, order, tf.cast(before, tf.int32))
    sequences = set()
    for i, image in enumerate(images):
        sequence = [int(operation) for operation in np.argsort(order[:, i])]
        sequence.insert(before[i], "hue")
        sequences.add(tuple(sequence))
        for operation in sequence:
            if operation == "hue":
                image = color.shift_hue(image, tf.constant(shift[i]))
            else:
                factor = tf.constant(factors[operation, i])
                image = color.adjust(image, tf.constant(operation), factor)
        difference = np.abs(ours[i] - image)
        # Rounding moves some pixels of this noise across a step of PIL's 8-bit hue.
        assert np.median(difference) < 1e-3 and difference.max() <= 8
    assert len(sequences) == 24


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"geometry": "rotate"}, "'translate', 'crop', 'none'.*'rotate'"),
        ({"gray_probability": 1.5}, "0..1.*gray_probability=1.5"),
        ({"hue": 0.7}, "0..0.5.*hue=0.7"),
        ({"jitter": -0.1}, "jitter=-0.1"),
        ({"autoaugment": "svhn"}, "'', 'cifar10', 'imagenet'.*'svhn'"),
    ],
)
def test_impossible_policies_are_refused(arguments, expected):
    with pytest.raises(InputError, match=expected):
        Policy(**arguments)


def test_local_dim_sees_the_image_itself(golden):
    images = golden["images"][:, :32, :32]
    policy = Policy(**load_config("cifar10", variant="local_dim").views)
    for view in two_views(images, 32, policy, draw((0, 6), len(images))):
        np.testing.assert_array_equal(view, images)
