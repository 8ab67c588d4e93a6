"""Images of other than three channels: grey ones, and those of instruments, as PNG or TIFF.

Pixels keep their precision: 8 bits, 16 bits, and floats all become float32 in [0, 255], from black
to white. White is the largest number of a type of integers, and 1 for floats, unless a config says
otherwise, as it must for reflectances of 0 to 10,000.
"""

import functools
import io
import logging

import numpy as np
import tensorflow as tf
import tifffile

from amdim_tf.data import decoding
from amdim_tf.data.binary import peek
from amdim_tf.data.color import grayscale
from amdim_tf.data.folders import EXTENSIONS
from amdim_tf.errors import one_line
from amdim_tf.typing import Tensor

TIFF = tuple(magic for name, _, magic in decoding.KINDS if name == "a TIFF")
# The largest array: with many channels, fewer pixels are allowed.
MAX_NUMBERS = 4 * decoding.MAX_PIXELS
# White, by the type of a pixel.
WHITE = {"uint8": 255, "uint16": 65535, "float16": 1, "float32": 1, "float64": 1}
# Channels of images whose luma may stand for them: grey or colour, with transparency or without.
IN_GREY = (1, 2, 3, 4)
# Types that can be read where a config says what is white.
NUMBERS = (*WHITE, "int8", "int16", "int32", "int64", "uint32", "uint64")
BEYOND = "floats beyond 0..1, which stand for black and white unless --config.white says otherwise"
# What tifffile finds strange in a file, the reader of its pixels finds wrong.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


def extensions(channels: int) -> tuple[str, ...]:
    """Endings of the names of files that are images with that many `channels`."""
    return EXTENSIONS if channels == 3 else (*EXTENSIONS, ".tif", ".tiff")


def decode(contents: Tensor, channels: int, white: float = 0.0, tiff: bool = True) -> Tensor:
    """The pixels (H,W,channels) of an image file, a string scalar.

    Three channels are uint8, see `decoding.decode`; others are float32 in [0, 255]. A single
    channel is the luma of an image in colour, of at most four channels; else the file must have
    that many channels, where transparency counts as one.

    Args:
        white: the value of a white pixel; 0 for that of its type.
        tiff: whether TIFFs are read, too, which needs Python.

    Raises:
        tf.errors.InvalidArgumentError: the file has other channels, or cannot be decoded.

    Example:
    >>> decode(tf.io.encode_png(tf.zeros((5, 4, 1), tf.uint16)), channels=1).shape
    TensorShape([None, None, 1])
    """
    if channels == 3:
        return decoding.decode(contents)
    return _fit(_pixels(contents, white, tiff), channels)


def scaled(pixels: Tensor, channels: int, white: float = 0.0) -> Tensor:
    """The numbers `pixels` (H,W,c) of an image as `decode` gives them, float32 (H,W,channels).

    Raises:
        tf.errors.InvalidArgumentError: see `decode`; numbers that are not finite, or floats beyond
            0..1 where `white` is not given.

    Example:
    >>> float(scaled(tf.fill((5, 4, 2), 3000), channels=2, white=10000)[0, 0, 0])
    76.5
    """
    pixels = tf.cast(pixels, tf.float32) * (255 / (white or WHITE[pixels.dtype.name]))
    valid = tf.reduce_all(tf.math.is_finite(pixels))
    if not white:
        valid &= (tf.reduce_min(pixels) >= 0) & (tf.reduce_max(pixels) <= 255)
    pixels = decoding.checked(pixels, valid, BEYOND)
    return _fit(tf.clip_by_value(pixels, 0.0, 255.0), channels)


def reason(contents: bytes, channels: int, white: float = 0.0) -> str:
    """Why the `contents` of a file are not decoded, in a few words; "" if they are."""
    if channels == 3:
        return decoding.reason(contents)
    if contents[:4] in TIFF:
        try:
            found = _read(contents, white).shape[-1]
        except Exception as error:  # tifffile and its codecs do not document what they raise
            return f"a TIFF that cannot be read: {one_line(error)}"
    else:
        refusal = decoding.fault(tf.constant(contents)).numpy().decode()
        if refusal:
            return refusal
        try:
            found = _pixels(tf.constant(contents), white, tiff=False).shape[-1]
        except tf.errors.InvalidArgumentError:
            return "an image that is broken or truncated"
    fits = found == channels or (channels == 1 and found in IN_GREY)
    return "" if fits else f"an image of {found}-channel pixels, not of {channels}"


def _pixels(contents, white, tiff):
    """The pixels of a file in its own channels, float32 in [0, 255]."""
    head = tf.strings.substr(contents, 0, 4)

    def whitened(pixels, own):
        return tf.minimum(pixels * own / white, 255) if white else pixels

    def of_tiff():
        read = functools.partial(_tiff, white=white)
        pixels = tf.numpy_function(read, [contents], tf.float32)
        pixels = tf.ensure_shape(pixels, [None] * 3)
        return decoding.checked(pixels, tf.size(pixels) > 0, "A TIFF must be readable")

    def of_png():
        # TensorFlow multiplies pixels of 8 bits by 257.
        pixels = tf.io.decode_png(decoding.plausible(contents), 0, tf.uint16)
        deep = peek(contents, 24, 1)[0] == 16
        return whitened(tf.cast(pixels, tf.float32) / 257, tf.where(deep, 65535.0, 255.0))

    def of_other():
        return whitened(tf.cast(decoding.decode(contents), tf.float32), 255.0)

    cases = [(head == b"\x89PNG", of_png)]
    if tiff:
        cases.append((tf.reduce_any(head == TIFF), of_tiff))
    return tf.case(cases, of_other)


def _fit(pixels, channels):
    """The `pixels` (H,W,c) in that many `channels`."""
    found = tf.shape(pixels)[-1]
    wrong = f"An image must have {channels} channels. Received"
    if channels == 1:
        pixels = decoding.checked(pixels, tf.reduce_any(found == IN_GREY), wrong, found)

        def luma():
            return grayscale(tf.ensure_shape(pixels[..., :3], (None, None, 3)))[..., :1]

        grey = pixels.shape[-1] in (1, 2)
        pixels = pixels[..., :1] if grey else tf.cond(found < 3, lambda: pixels[..., :1], luma)
    else:
        pixels = decoding.checked(pixels, found == channels, wrong, found)
    return tf.ensure_shape(pixels, (None, None, channels))


def _tiff(contents, white):
    """What `_read` gives; an array without numbers if it fails."""
    try:
        # Outside of a graph, an array holds the bytes.
        return _read(np.asarray(contents, object).item(), white)
    except Exception:  # see `reason`, which says why
        return np.zeros((0, 0, 0), "float32")


def _read(contents, white):
    """The pixels (H,W,c) float32 in [0, 255] of the first image in a TIFF, bytes; see `decode`."""
    with tifffile.TiffFile(io.BytesIO(contents)) as file:
        page, series = file.pages.first, file.series[0]
        axes = [axis for axis, n in zip(series.axes, series.shape, strict=True) if n > 1]
        others = [axis for axis in axes if axis not in "YX"]
        kind = series.dtype.name
        own = (white if kind in NUMBERS else 0) or WHITE.get(kind)
        if not own or page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            raise ValueError(f"pixels of the kind {kind} or of a palette")
        if len(others) > 1 or not 0 < series.size <= MAX_NUMBERS:
            raise ValueError(f"an array {series.shape}, no image of at most {MAX_NUMBERS} numbers")
        pixels = np.asarray(series.asarray(), "float32")
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels = own - pixels
    sides = [series.shape[series.axes.index(axis)] for axis in "YX"]
    if others:
        pixels = np.moveaxis(pixels.squeeze(), axes.index(others[0]), -1)
    pixels = pixels.reshape(*sides, -1) * np.float32(255 / own)
    if not np.isfinite(pixels).all():
        raise ValueError("pixels that are not finite")
    if not white and not (pixels.min() >= 0 and pixels.max() <= 255):
        raise ValueError(BEYOND)
    return np.clip(pixels, 0, 255)
