"""Fast AutoAugment (Lim et al. 2019, arXiv 1905.00397): the paper's strong augmentation (3.4).

A policy is a list of sub-policies, and each view draws one; a sub-policy is two operations, each
with a probability and a value. Batched like the rest of the views: every image passes
through all operations, and those that it did not draw get a neutral value.
"""

import json
import pathlib

import numpy as np
import tensorflow as tf

from amdim_tf.data import color
from amdim_tf.typing import Tensor

_DATA = json.loads((pathlib.Path(__file__).parent / "fast_autoaugment.json").read_text())
RANGES = _DATA["ranges"]
OPERATIONS = tuple(RANGES)
POLICIES = {name: _DATA[name] for name in ("cifar10", "imagenet")}
# Half the views get the opposite sign of their values.
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
CUTOUT_COLOR = (125.0, 123.0, 114.0)


def strengthen(images: Tensor, policy: str, draws: Tensor) -> Tensor:
    """Applies a sub-policy of `policy` to each of `images`.

    Args:
        images: (...,S,S,3) float32 in [0, 255].
        policy: a name in `POLICIES`.
        draws: (9,...) float in [0, 1).

    Returns:
        (...,S,S,3) float32 without fractions, as PIL's pixels are integers.
    """
    table = tf.constant(np.array([_row(sub) for sub in POLICIES[policy]], "float32"))
    chosen = tf.gather(table, tf.cast(draws[0] * table.shape[0], tf.int32))  # (...,2,3)
    images = tf.round(images)
    for turn in range(2):
        applied, sign, x, y = tf.unstack(draws[1 + 4 * turn : 5 + 4 * turn])
        index, probability, value = tf.unstack(chosen[..., turn, :], axis=-1)
        index = tf.where(applied <= probability, tf.cast(index, tf.int32), -1)
        signed = tf.reduce_any([index == OPERATIONS.index(name) for name in SIGNED], 0)
        value = tf.where(signed & (sign < 0.5), -value, value)
        images = operate(images, index, value, x, y)
    return images


def _row(operations):
    """A sub-policy as [[index of the operation, probability, value], ...]."""
    row = []
    for name, probability, level in operations:
        low, high = RANGES[name]
        row.append([OPERATIONS.index(name), probability, low + level * (high - low)])
    return row


def operate(images: Tensor, index: Tensor, value: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Applies one operation to each image.

    Args:
        images: (...,S,S,3) float32 without fractions, in [0, 255].
        index: (...) int32, the place in `OPERATIONS`; -1 for none.
        value: (...) float32, in the operation's range.
        x, y: (...) float in [0, 1), the centre of a cutout.
    """

    def amount(name, neutral=0.0):
        return tf.where(index == OPERATIONS.index(name), value, neutral)

    def where(name, changed):
        turn = color.pixelwise(index == OPERATIONS.index(name))
        return tf.where(turn, changed, images)

    images = warp(images, *map(amount, SIGNED))
    images = where("AutoContrast", autocontrast(images))
    images = where("Equalize", equalize(images))
    images = where("Invert", 255 - images)
    threshold = color.pixelwise(amount("Solarize", 256.0))
    images = tf.where(images < threshold, images, 255 - images)
    dropped_bits = 8 - tf.floor(amount("Posterize", 8.0))
    images -= tf.math.floormod(images, color.pixelwise(2.0**dropped_bits))
    for name, operation in (
        ("Contrast", color.CONTRAST),
        ("Color", color.SATURATION),
        ("Brightness", color.BRIGHTNESS),
    ):
        images = color.adjust(images, tf.constant(operation), amount(name, 1.0))
    images = sharpen(images, amount("Sharpness", 1.0))
    # PIL drops fractions. A value that is an integer except for rounding stays.
    images = tf.floor(images + 1e-3)
    return cutout(images, amount("Cutout"), x, y)


def warp(
    images: Tensor,
    shear_x: Tensor,
    shear_y: Tensor,
    translate_x: Tensor,
    translate_y: Tensor,
    degrees: Tensor,
) -> Tensor:
    """Shears, moves (by fractions of the width and height) or turns images; black comes in.

    Each pixel is the one nearest to where it comes from.
    """
    height, width = images.shape[-3:-1]
    radians = degrees * (np.pi / 180)
    cos, sin = tf.cos(radians), tf.sin(radians)

    def source(x, y):
        # The centre of the image stays where it is when it turns.
        left, up = x - width / 2, y - height / 2
        from_x = cos * left - sin * up + width / 2 + shear_x * y + translate_x * width
        from_y = sin * left + cos * up + height / 2 + shear_y * x + translate_y * height
        return tf.floor(from_x), tf.floor(from_y)

    shear_x, shear_y, translate_x, translate_y, cos, sin = (
        amount[..., None, None] for amount in (shear_x, shear_y, translate_x, translate_y, cos, sin)
    )
    pixel_x, pixel_y = (tf.range(size, dtype=tf.float32) + 0.5 for size in (width, height))
    x, y = source(pixel_x, pixel_y[:, None])  # (...,H,W)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    place = tf.cast(tf.where(inside, y * width + x, 0.0), tf.int32)
    pixels = tf.reshape(images, (-1, height * width, 3))
    moved = tf.gather(pixels, tf.reshape(place, (-1, height * width)), axis=1, batch_dims=1)
    return tf.where(inside[..., None], tf.reshape(moved, tf.shape(images)), 0.0)


def autocontrast(images: Tensor) -> Tensor:
    """Stretches each channel to 0..255."""
    low = tf.reduce_min(images, (-3, -2), keepdims=True)
    high = tf.reduce_max(images, (-3, -2), keepdims=True)
    stretched = tf.floor((images - low) * (255 / tf.maximum(high - low, 1.0)) + 1e-3)
    return tf.where(high > low, stretched, images)


def equalize(images: Tensor) -> Tensor:
    """Maps each channel so that its histogram is as flat as its values allow."""
    height, width = images.shape[-3:-1]
    values = tf.cast(tf.reshape(images, (-1, height * width, 3)), tf.int32)
    channel = tf.range(3 * tf.shape(values)[0])
    cells = tf.reshape(channel, (-1, 1, 3)) * 256 + values
    counts = tf.math.unsorted_segment_sum(tf.ones_like(cells), cells, 256 * tf.size(channel))
    counts = tf.reshape(counts, (-1, 256))  # a row for each image and channel
    # The highest value that occurs is left out, as PIL does, so that it becomes 255.
    last = tf.gather(
        counts, tf.argmax(tf.range(256) * tf.cast(counts > 0, tf.int32), 1), axis=1, batch_dims=1
    )
    step = (height * width - last[:, None]) // 255
    table = (tf.cumsum(counts, axis=1, exclusive=True) + step // 2) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
    mapped = tf.gather(tf.reshape(table, [-1]), cells)
    return tf.cast(tf.reshape(mapped, tf.shape(images)), tf.float32)


def sharpen(images: Tensor, factor: Tensor) -> Tensor:
    """Moves pixels away from their smoothed values by `factor` (...); the border has none."""
    rows = images[..., :-2, :, :] + images[..., 1:-1, :, :] + images[..., 2:, :, :]
    sums = rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :]
    smooth = tf.round((sums + 4 * images[..., 1:-1, 1:-1, :]) / 13)
    inner = images[..., 1:-1, 1:-1, :]
    change = (color.pixelwise(factor) - 1) * (inner - smooth)
    border = [[0, 0]] * (len(images.shape) - 3) + [[1, 1], [1, 1], [0, 0]]
    return tf.clip_by_value(images + tf.pad(change, border), 0.0, 255.0)


def cutout(images: Tensor, fraction: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Covers a square around (x, y) with grey; its side is a `fraction` (...) of the width."""
    height, width = images.shape[-3:-1]

    def covered(center, size):
        side = (fraction * width)[..., None]
        start = tf.floor(tf.maximum(center[..., None] * size - side / 2, 0.0))
        pixels = tf.range(size, dtype=tf.float32)
        return (pixels >= start) & (pixels <= start + side) & (side > 0)

    hidden = covered(y, height)[..., :, None] & covered(x, width)[..., None, :]
    return tf.where(hidden[..., None], tf.constant(CUTOUT_COLOR), images)
