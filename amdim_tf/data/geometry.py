"""Geometry of views: matrices that mix pixels, and where random crops are.

A translation, a crop, a resize and a flip are each a pair of matrices, one that mixes rows of
pixels and one that mixes columns, so that one batched product serves all of them.
"""

import math

import tensorflow as tf

from amdim_tf.typing import Tensor

CROP_AREA = (0.3, 1.0)
CROP_RATIO = (0.7, 1.4)
CROP_ATTEMPTS = 10


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Mixes `images` (B,H,W,3) by `rows` (V,B,S,H) and `columns` (V,B,S,W) to (V,B,S,S,3).

    Example:
    >>> resample(tf.ones((4, 9, 9, 3)), tf.ones((2, 4, 5, 9)), tf.ones((2, 4, 5, 9))).shape
    TensorShape([2, 4, 5, 5, 3])
    """
    # No axis is left to broadcasting: oneDNN's product then reads beyond an image that is alone in
    # its batch (TensorFlow issue 117700, in 2.21).
    pixels = tf.einsum("vbsh,bhwc->vbswc", rows, tf.cast(images, tf.float32))
    pixels = tf.einsum("vbtw,vbswc->vbstc", columns, pixels)
    return tf.clip_by_value(pixels, 0.0, 255.0)


def resampling(
    start: Tensor,
    length: Tensor,
    size: int,
    pixels: Tensor,
    low: Tensor = None,
    high: Tensor = None,
) -> Tensor:
    """Matrices (...,size,pixels) that map `length` pixels from `start` (...) to `size` pixels.

    Bicubic with antialiasing as in PIL: the kernel widens with the scale, and taps outside the
    image, or outside [low, high) (by default the window), do not count.

    Example:
    >>> resampling(tf.constant(0.0), tf.constant(4.0), size=2, pixels=4).shape
    TensorShape([2, 4])
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


def reflected(size: int, shift: Tensor) -> Tensor:
    """Rows (...,size) int32 that the output rows take, moved by `shift` (...) pixels.

    Example:
    >>> reflected(5, tf.constant(2.0)).numpy().tolist()
    [2, 1, 0, 1, 2]
    """
    index = tf.abs(tf.range(size) - tf.cast(shift, tf.int32)[..., None])
    return size - 1 - tf.abs(size - 1 - index)


def random_boxes(
    draws: Tensor,
    height: Tensor,
    width: Tensor,
    area: tuple[float, float] = CROP_AREA,
    ratio: tuple[float, float] = CROP_RATIO,
) -> tuple[Tensor, ...]:
    """Crop boxes as (top, left, height, width).

    As in the reference, the first of ten draws that fits into the image counts; if none does, the
    largest central box of valid ratio is taken.

    Args:
        draws: (22,...) float in [0, 1).
        height, width: those of the images in pixels, int32 scalars.
        area: the least and the largest area of a box, as fractions of the image's.
        ratio: the least and the largest width of a box, over its height.

    Returns:
        Four float32 tensors (...), without fractions of pixels.

    Example:
    >>> top, left, height, width = random_boxes(tf.fill((22, 1), 0.5), 30, 40)
    >>> bool(top + height <= 30), bool(left + width <= 40)
    (True, True)
    """
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    low, high = area
    areas = height * width * (low + (high - low) * draws[2 : 2 + CROP_ATTEMPTS])
    low, high = map(math.log, ratio)
    ratios = tf.exp(low + (high - low) * draws[2 + CROP_ATTEMPTS :])
    widths, heights = tf.round(tf.sqrt(areas * ratios)), tf.round(tf.sqrt(areas / ratios))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)

    image_ratio = tf.clip_by_value(width / height, *ratio)
    crop_width = tf.round(tf.minimum(width, height * image_ratio)) + tf.zeros_like(areas[0])
    crop_height = tf.round(tf.minimum(height, width / image_ratio)) + tf.zeros_like(areas[0])
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
