"""Views: a batch of images becomes two random views of each (3.4).

Views are a function of the images and of random draws, and those of a seed pair such as
(seed, step), so a batch has the same views on any machine and after any restart. Everything is
batched and runs in `tf.data` as well as in a compiled training step. Pixels are float32 in
[0, 255]; operations follow PIL's, but for its rounding.
"""

import dataclasses
import math

import tensorflow as tf

from amdim_tf.data.autoaugment import POLICIES, strengthen
from amdim_tf.data.color import desaturate, jitter, select
from amdim_tf.errors import InputError

GEOMETRIES = ("translate", "crop", "none")
# Short side to which test images are resized before their centre is cropped.
SHORT_SIDE = {32: 32, 64: 70, 128: 146}
CROP_AREA = (0.3, 1.0)
CROP_RATIO = (0.7, 1.4)
CROP_ATTEMPTS = 10
TRANSLATION = 4


@dataclasses.dataclass(frozen=True)
class Policy:
    """How views are drawn. The defaults are the reference's for images of 32 pixels.

    Args:
        geometry: "translate" by up to 4 pixels with reflection, random resized "crop", or "none".
        flip_probability: of a horizontal flip, shared by both views.
        translate_probability: of the translation, for each view.
        jitter_probability: of the colour jitter, for each view.
        jitter: brightness, contrast and saturation factors are uniform in 1 +- `jitter`.
        hue: hue shifts are uniform in +- `hue` of the colour circle.
        gray_probability: of dropping all colour, for each view.
        autoaugment: the Fast AutoAugment policy, "cifar10" or "imagenet", or none.
    """

    geometry: str = "translate"
    flip_probability: float = 0.5
    translate_probability: float = 0.8
    jitter_probability: float = 0.8
    jitter: float = 0.4
    hue: float = 0.2
    gray_probability: float = 0.25
    autoaugment: str = ""

    def __post_init__(self):
        for name, valid in (("geometry", GEOMETRIES), ("autoaugment", ("", *POLICIES))):
            if getattr(self, name) not in valid:
                raise InputError(
                    f"{name} must be one of {', '.join(map(repr, valid))}. "
                    f"Received: {getattr(self, name)!r}"
                )
        limits = {field.name: 1.0 for field in dataclasses.fields(self)[1:-1]} | {"hue": 0.5}
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise InputError(
                    f"{name} must lie in 0..{limit:g}. Received: {name}={getattr(self, name)}"
                )


def draw(seed, batch):
    """The random numbers behind the views of `batch` images: (42,2,batch) float32 in [0, 1).

    The same `seed` (2,) int, such as (seed, step), gives the same draws on any machine. Keep this
    out of compiled functions: XLA gives stateless draws other values (TensorFlow issue 117644).
    """
    return tf.random.stateless_uniform([42, 2, batch], seed, alg="philox")


def two_views(images, size, policy, draws):
    """Both views of each image.

    Args:
        images: (B,H,W,3) uint8 or float in [0, 255].
        size: S, the side of the views.
        policy: a `Policy`.
        draws: (42,2,B), from `draw`.

    Returns:
        (2,B,S,S,3) float32: x1 and x2. A horizontal flip is shared by both; all else is
        independent.

    Example:
    >>> x1, x2 = two_views(images, 32, Policy(), draw(seed=(0, 17), batch=len(images)))
    """
    return recolor(reframe(images, size, policy, draws), policy, draws)


def reframe(images, size, policy, draws):
    """The geometric half of `two_views`: flip, then translation or crop; same arguments."""
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    flip, draws = draws[0, 0] < policy.flip_probability, draws[1:23]
    if policy.geometry == "crop":
        top, left, crop_height, crop_width = random_boxes(draws, height, width)
        rows = resampling(top, crop_height, size, height)
        columns = resampling(left, crop_width, size, width)
    else:
        images, rows, columns = central(images, size)
        moved = policy.geometry == "translate"
        moved = tf.cast(moved & (draws[2] < policy.translate_probability), tf.float32)
        shift = moved * (tf.floor(draws[:2] * (2 * TRANSLATION + 1)) - TRANSLATION)
        rows = tf.gather(rows, reflected(size, shift[0]))
        columns = tf.gather(columns, reflected(size, shift[1]))
    columns = tf.where(flip[:, None, None], columns[..., ::-1, :], columns)
    return resample(images, rows, columns)


def crop_boxes(draws, height, width):
    """Where `crop_one` crops an image of that `height` and `width`, from its draws (42,2,1).

    Returns:
        (window, boxes): top, left, height and width (4,) int32 of the part that holds both crops,
        and (2,4) of the crops in it.
    """
    boxes = tf.cast(tf.stack(random_boxes(draws[1:23], height, width)), tf.int32)[..., 0]
    start = tf.reduce_min(boxes[:2], axis=1)
    end = tf.reduce_max(boxes[:2] + boxes[2:], axis=1)
    boxes = tf.transpose(tf.concat([boxes[:2] - start[:, None], boxes[2:]], 0))
    return tf.concat([start, end - start], 0), boxes


def crop_one(pixels, boxes, size, policy, draws):
    """`reframe` by crops of one large image, of which `pixels` (h,w,3) are the window.

    The matrices of `reframe` would be mostly zeros; TensorFlow's own resizing is faster here.

    Returns:
        (2,S,S,3) float32.
    """
    crops = []
    for box in tf.unstack(boxes):
        top, left, height, width = tf.unstack(box)
        crop = pixels[top : top + height, left : left + width]
        crops.append(tf.image.resize(crop, (size, size), "bicubic", antialias=True))
    crops = tf.clip_by_value(tf.stack(crops), 0.0, 255.0)
    # A slice of step -1 and `tf.where` would take longer than a resize.
    flip = draws[0, 0, 0] < policy.flip_probability
    return tf.cond(flip, lambda: tf.reverse(crops, [2]), lambda: crops)


def recolor(views, policy, draws):
    """The colour half of `two_views`, of views (2,B,S,S,3).

    Fast AutoAugment, if asked for, then jitter in random order, then grey.
    """
    if policy.autoaugment:
        views = strengthen(views, policy.autoaugment, draws[33:])
    draws = draws[23:33]
    signed = 2 * draws - 1
    jittered = jitter(
        views,
        factors=1 + policy.jitter * signed[0:3],
        shift=policy.hue * signed[3],
        order=draws[4:7],
        before=tf.cast(4 * draws[7], tf.int32),
    )
    views = select(draws[8] < policy.jitter_probability, jittered, views)
    return desaturate(draws[9] < policy.gray_probability, views)


def center(images, size):
    """The test-time transform: short side to 32, 70 or 146 pixels, bicubic, then the centre.

    Args:
        images: (B,H,W,3) uint8 or float in [0, 255].
        size: 32, 64 or 128.

    Returns:
        (B,size,size,3) float32 in [0, 255].
    """
    images, rows, columns = central(images, size)
    each = (1, tf.shape(images)[0], 1, 1)
    return resample(images, tf.tile(rows[None, None], each), tf.tile(columns[None, None], each))[0]


def normalize(images, mean, std):
    """Pixels in [0, 255] as the encoder takes them; `mean`, `std` are per channel in [0, 1]."""
    return (tf.cast(images, tf.float32) / 255 - mean) / std


# Geometry. A translation, a crop, a resize and a flip are each a pair of matrices, one that mixes
# rows of pixels and one that mixes columns, so that one batched product serves all of them.


def resample(images, rows, columns):
    """Mixes `images` (B,H,W,3) by `rows` (V,B,S,H) and `columns` (V,B,S,W) to (V,B,S,S,3)."""
    # No axis is left to broadcasting: oneDNN's product then reads beyond an image that is alone in
    # its batch (TensorFlow issue 117700, in 2.21).
    pixels = tf.einsum("vbsh,bhwc->vbswc", rows, tf.cast(images, tf.float32))
    pixels = tf.einsum("vbtw,vbswc->vbstc", columns, pixels)
    return tf.clip_by_value(pixels, 0.0, 255.0)


def resampling(start, length, size, pixels, low=None, high=None):
    """Matrices (...,size,pixels) that map `length` pixels from `start` (...) to `size` pixels.

    Bicubic with antialiasing as in PIL: the kernel widens with the scale, and taps outside the
    image, or outside [low, high) (by default the window), do not count.
    """
    low = start if low is None else low
    high = start + length if high is None else high
    scale = length / size
    outputs = tf.range(size, dtype=tf.float32) + 0.5
    taps = tf.range(tf.cast(pixels, tf.float32)) + 0.5
    centers = start[..., None, None] + outputs[:, None] * scale[..., None, None]
    weights = _cubic((taps - centers) / tf.maximum(scale, 1.0)[..., None, None])
    inside = (taps >= low[..., None, None]) & (taps < high[..., None, None])
    weights = tf.where(inside, weights, 0.0)
    # A product instead of `reduce_sum`, since `pipeline` compiles this: see `compiled`.
    return weights / tf.tensordot(weights, tf.ones([tf.shape(weights)[-1], 1]), 1)


def central(images, size):
    """What the test-time transform takes of `images` (B,H,W,3), and the matrices it mixes it by.

    The ends of a long image, which do not count, are left out: their matrix would be much larger
    than the image.

    Returns:
        (pixels, rows, columns): (B,h,w,3), (size,h) and (size,w).
    """
    height, width = tf.unstack(tf.shape(images, tf.int64)[1:3])
    short = SHORT_SIDE[size]
    # The kernel reaches over less, in pixels of the resized image.
    margin = 3 * short

    def along(pixels):
        resized = short * pixels // tf.minimum(height, width)
        start = tf.cast(tf.round((resized - size) / 2), tf.int64)
        skipped = tf.maximum(start - margin, 0)
        first = skipped * pixels // resized
        last = tf.minimum((start + size + margin) * pixels // resized + 1, pixels)

        scale = tf.cast(pixels, tf.float32) / tf.cast(resized, tf.float32)
        rest = tf.cast(skipped * pixels % resized / resized, tf.float32)
        start = tf.cast(start - skipped, tf.float32) * scale + rest
        low, high = tf.cast(-first, tf.float32), tf.cast(pixels - first, tf.float32)
        return first, last, resampling(start, size * scale, size, last - first, low, high)

    top, bottom, rows = along(height)
    left, right, columns = along(width)
    return images[:, top:bottom, left:right], rows, columns


def reflected(size, shift):
    """Rows (...,size) int32 that each output row takes, moved by `shift` (...) pixels."""
    index = tf.abs(tf.range(size) - tf.cast(shift, tf.int32)[..., None])
    return size - 1 - tf.abs(size - 1 - index)


def random_boxes(draws, height, width):
    """Crop boxes of area 0.3..1 and aspect ratio 0.7..1.4, as (top, left, height, width).

    As in the reference, the first of ten draws that fits into the image counts; if none does, the
    largest central box of valid ratio is taken.

    Args:
        draws: (22,...) float in [0, 1).
        height, width: of the images, in pixels, int32 scalars.

    Returns:
        Four float32 tensors (...) of whole pixels.
    """
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    low, high = CROP_AREA
    area = height * width * (low + (high - low) * draws[2 : 2 + CROP_ATTEMPTS])
    low, high = (math.log(ratio) for ratio in CROP_RATIO)
    ratio = tf.exp(low + (high - low) * draws[2 + CROP_ATTEMPTS :])
    widths, heights = tf.round(tf.sqrt(area * ratio)), tf.round(tf.sqrt(area / ratio))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)

    image_ratio = tf.clip_by_value(width / height, *CROP_RATIO)
    crop_width = tf.round(tf.minimum(width, height * image_ratio)) + tf.zeros_like(area[0])
    crop_height = tf.round(tf.minimum(height, width / image_ratio)) + tf.zeros_like(area[0])
    for attempt in reversed(range(CROP_ATTEMPTS)):
        crop_width = tf.where(fits[attempt], widths[attempt], crop_width)
        crop_height = tf.where(fits[attempt], heights[attempt], crop_height)
    any_fits = tf.reduce_any(fits, axis=0)

    def position(draw, free):
        return tf.where(any_fits, tf.floor(draw * (free + 1)), tf.floor(free / 2))

    top, left = position(draws[0], height - crop_height), position(draws[1], width - crop_width)
    return top, left, crop_height, crop_width


def _cubic(x):
    """PIL's bicubic kernel: Keys' with a = -1/2."""
    x = tf.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return tf.where(x < 1, near, tf.where(x < 2, far, 0.0))
