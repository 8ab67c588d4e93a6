"""Views: a batch of images becomes two random views of each (3.4), or more.

Views are a function of the images and of random draws, and the draws of a seed pair such as
(seed, step), so a batch has the same views on any machine and after any restart. Everything is
batched and runs in `tf.data` as well as in a compiled training step. Pixels are float32 in
[0, 255]; operations follow PIL's, except for its rounding.
"""

import dataclasses

import keras
import tensorflow as tf

from amdim_tf.data.autoaugment import strengthen
from amdim_tf.data.color import desaturate, jitter, select
from amdim_tf.data.filters import blur, by_layer, solarize
from amdim_tf.data.geometry import random_boxes, reflected, resample, resampling
from amdim_tf.data.policy import Policy
from amdim_tf.typing import Tensor

# Random numbers for each view of an image: one of the flip, 22 of the geometry, 10 of colours, 9 of
# Fast AutoAugment, 2 of the blur, one of solarisation, and 2 of one's own layer.
DRAWS = 47
CROP = Policy("crop")
# Short side to which test images are resized before their centre is cropped; for other sizes 8/7
# of them, as 256 is of 224.
SHORT_SIDE = {32: 32, 64: 70, 128: 146}
TRANSLATION = 4


def draw(seed: Tensor, batch: int, views: int = 2) -> Tensor:
    """The random numbers behind the views of `batch` images: (47,views,batch) float32 in [0, 1).

    The same `seed` (2,) int, such as (seed, step), gives the same draws on any machine. Keep this
    out of compiled functions: XLA gives stateless draws other values (TensorFlow issue 117644).

    Example:
    >>> draw(seed=(0, 17), batch=64).shape
    TensorShape([47, 2, 64])
    """
    return tf.random.stateless_uniform([DRAWS, views, batch], seed, alg="philox")


def two_views(images: Tensor, size: int, policy: Policy, draws: Tensor) -> Tensor:
    """All views of each image.

    Args:
        images: (B,H,W,3) uint8 or float in [0, 255].
        size: S, the side of the views.
        policy: a `Policy`.
        draws: (47,V,B), from `draw`; V is `policy.views`.

    Returns:
        (V,B,S,S,3) float32: x1 and x2, and then small crops. A horizontal flip is shared by x1 and
        x2, and by the small crops; all else is independent.

    Example:
    >>> images = tf.fill((4, 40, 50, 3), 128)
    >>> x1, x2 = two_views(images, 32, Policy(), draw(seed=(0, 17), batch=4))
    >>> x1.shape
    TensorShape([4, 32, 32, 3])
    """
    return recolor(reframe(images, size, policy, draws), policy, draws)


def reframe(images: Tensor, size: int, policy: Policy, draws: Tensor) -> Tensor:
    """The geometric half of `two_views`: flip, then translation or crop; same arguments.

    Example:
    >>> reframe(tf.zeros((4, 40, 50, 3)), 32, Policy("crop"), draw((0, 17), 4)).shape
    TensorShape([2, 4, 32, 32, 3])
    """
    if policy.small_crops:
        return tf.concat([reframe(images, size, *each) for each in _parts(policy, draws)], 0)
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    flip, draws = draws[0, 0] < policy.flip_probability, draws[1:23]
    if policy.geometry == "crop":
        boxes = random_boxes(draws, height, width, policy.crop_area, policy.crop_ratio)
        top, left, crop_height, crop_width = boxes
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


def _parts(policy, draws):
    """[(policy, draws)] of the views, and of the small crops if there are any."""
    full, number = dataclasses.replace(policy, small_crops=0), policy.number
    if not policy.small_crops:
        return [(full, draws)]
    small = dataclasses.replace(full, geometry="crop", crop_area=policy.small_area)
    return [(full, draws[:, :number]), (small, draws[:, number:])]


def crop_boxes(
    draws: Tensor, height: Tensor, width: Tensor, policy: Policy = CROP
) -> tuple[Tensor, Tensor]:
    """Where `crop_one` crops an image of that `height` and `width`, by its draws (47,V,1).

    Returns:
        (window, boxes): top, left, height and width (4,) int32 of the window that holds all
        crops, and (V,4) of the crops in it.

    Example:
    >>> window, boxes = crop_boxes(draw((0, 17), 1), 300, 400)
    >>> window.shape, boxes.shape
    (TensorShape([4]), TensorShape([2, 4]))
    """
    found = [
        random_boxes(own[1:23], height, width, each.crop_area, each.crop_ratio)
        for each, own in _parts(policy, draws)
    ]
    boxes = tf.cast(tf.concat(found, 1), tf.int32)[..., 0]
    start = tf.reduce_min(boxes[:2], axis=1)
    end = tf.reduce_max(boxes[:2] + boxes[2:], axis=1)
    boxes = tf.transpose(tf.concat([boxes[:2] - start[:, None], boxes[2:]], 0))
    return tf.concat([start, end - start], 0), boxes


def crop_one(pixels: Tensor, boxes: Tensor, size: int, policy: Policy, draws: Tensor) -> Tensor:
    """Does what `reframe` does by crops, for one large image with the window `pixels` (h,w,3).

    The matrices of `reframe` would be mostly zeros; TensorFlow's own resizing is faster here.

    Returns:
        (V,S,S,3) float32.

    Example:
    >>> draws = draw((0, 17), 1)
    >>> (top, left, height, width), boxes = crop_boxes(draws, 300, 400)
    >>> pixels = tf.zeros((300, 400, 3))[top : top + height, left : left + width]
    >>> crop_one(pixels, boxes, 32, Policy("crop"), draws).shape
    TensorShape([2, 32, 32, 3])
    """
    crops = []
    for box in tf.unstack(boxes):
        top, left, height, width = tf.unstack(box)
        crop = pixels[top : top + height, left : left + width]
        crops.append(tf.image.resize(crop, (size, size), "bicubic", antialias=True))
    crops = tf.clip_by_value(tf.stack(crops), 0.0, 255.0)

    def flipped(crops, draws):
        # A slice of step -1 and `tf.where` would take longer than a resize.
        flip = draws[0, 0, 0] < policy.flip_probability
        return tf.cond(flip, lambda: tf.reverse(crops, [2]), lambda: crops)

    if not policy.small_crops:
        return flipped(crops, draws)
    number = policy.number
    parts = flipped(crops[:number], draws), flipped(crops[number:], draws[:, number:])
    return tf.concat(parts, 0)


def recolor(
    views: Tensor, policy: Policy, draws: Tensor, layer: keras.layers.Layer | None = None
) -> Tensor:
    """The other half of `two_views`, for views (V,B,S,S,3).

    Fast AutoAugment comes first, if asked for, then jitter in random order, then grey; then blur,
    solarisation and the user's own layer, if asked for.

    Example:
    >>> recolor(tf.zeros((2, 4, 32, 32, 3)), Policy(), draw((0, 17), 4)).shape
    TensorShape([2, 4, 32, 32, 3])
    """
    if policy.autoaugment:
        views = strengthen(views, policy.autoaugment, draws[33:42])
    added, draws = draws[42:], draws[23:33]
    signed = 2 * draws - 1
    jittered = jitter(
        views,
        factors=1 + policy.jitter * signed[0:3],
        shift=policy.hue * signed[3],
        order=draws[4:7],
        before=tf.cast(4 * draws[7], tf.int32),
    )
    views = select(draws[8] < policy.jitter_probability, jittered, views)
    views = desaturate(draws[9] < policy.gray_probability, views)
    if policy.blur_probability:
        low, high = (views.shape[-2] / 100 * sigma for sigma in policy.blur_sigma)
        blurred = blur(views, low + (high - low) * added[1])
        views = select(added[0] < policy.blur_probability, blurred, views)
    if policy.solarize_probability:
        views = solarize(added[2] < policy.solarize_probability, views)
    return by_layer(layer, views, added[3:]) if layer else views


def center(images: Tensor, size: int) -> Tensor:
    """The test-time transform: short side to `SHORT_SIDE`, bicubic, then the centre.

    Args:
        images: (B,H,W,3) uint8 or float in [0, 255].
        size: side of the result, in pixels.

    Returns:
        (B,size,size,3) float32 in [0, 255].

    Example:
    >>> center(tf.zeros((4, 80, 100, 3)), 64).shape
    TensorShape([4, 64, 64, 3])
    """
    images, rows, columns = central(images, size)
    each = (1, tf.shape(images)[0], 1, 1)
    return resample(images, tf.tile(rows[None, None], each), tf.tile(columns[None, None], each))[0]


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Pixels in [0, 255] as the encoder takes them; `mean`, `std` are per channel in [0, 1].

    Example:
    >>> normalize(tf.constant([0.0, 127.5, 255.0]), 0.5, 0.25).numpy().tolist()
    [-2.0, 0.0, 2.0]
    """
    return (tf.cast(images, tf.float32) / 255 - mean) / std


def central(images: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels of `images` (B,H,W,3) that the test-time transform uses, and its matrices.

    The ends of a long image, which do not count, are left out: their matrix would be much larger
    than the image.

    Returns:
        (pixels, rows, columns): (B,h,w,3), (size,h) and (size,w).

    Example:
    >>> [each.shape[-1] for each in central(tf.zeros((1, 40, 50, 3)), 32)]
    [3, 40, 50]
    """
    height, width = tf.unstack(tf.shape(images, tf.int64)[1:3])
    # The kernel reaches over less, in pixels of the resized image.
    margin = 3 * _short_side(size)

    def along(pixels):
        resized, start = _centre(pixels, tf.minimum(height, width), size)
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


def central_mask(mask: Tensor, size: int) -> Tensor:
    """The pixels (size,size) of a mask (H,W) that `center` shows, each the nearest.

    Example:
    >>> central_mask(tf.reshape(tf.range(16), (4, 4)), 2).numpy().tolist()
    [[5, 7], [13, 15]]
    """
    sides = tf.shape(mask, tf.int64)
    for axis in (0, 1):
        pixels = sides[axis]
        resized, start = _centre(pixels, tf.reduce_min(sides), size)
        # The middle of each pixel, in halves of a pixel.
        places = (2 * (start + tf.range(size, dtype=tf.int64)) + 1) * pixels // (2 * resized)
        mask = tf.gather(mask, tf.clip_by_value(places, 0, pixels - 1), axis=axis)
    return mask


def _short_side(size):
    return SHORT_SIDE.get(size, size * 8 // 7)


def _centre(pixels, shorter, size):
    """Of a side of `pixels`, as the shorter one is resized: its length, and where `size` begins."""
    resized = _short_side(size) * pixels // shorter
    return resized, tf.cast(tf.round((resized - size) / 2), tf.int64)
