"""How a camera was held: the orientation that a JPEG has in its Exif data, and images put right."""

import tensorflow as tf

from amdim_tf.data.binary import cut, number, of_file, peek
from amdim_tf.typing import Tensor

ORIENTATION, SHORT = 0x0112, 3
BYTE_ORDERS = [list(b"II*\0"), list(b"MM\0*")]
# A segment starts with its marker, its length, and here the name that Exif's segment has.
NAME = b"Exif\0\0"
START = 4 + len(NAME)
# Segments, of up to 64 KiB each, that may stand before Exif's.
SEGMENTS = 64


@of_file
def orientation(contents: Tensor) -> Tensor:
    """The orientation of a file, 1 to 8, int64; 1 unless it is a JPEG with valid Exif data."""
    # Most files are known at once to have none: a table follows on JFIF's segment of 16 bytes.
    start = tf.gather(peek(contents, 2, 20), (0, 1, 2, 3, 18, 19))
    plain = tf.reduce_all(start == [0xFF, 0xE0, 0, 16, 0xFF, 0xDB])
    return tf.cond(
        tf.io.is_jpeg(contents) & ~plain,
        lambda: _in_jpeg(contents),
        lambda: tf.constant(1, tf.int64),
    )


def _in_jpeg(contents):
    """The orientation in the segment that has Exif's name."""

    def is_exif(start):
        return (start[0] == 0xFF) & (start[1] == 0xE1) & tf.reduce_all(start[4:] == list(NAME))

    def is_other(_, start):
        application = (start[1] >= 0xE0) & (start[1] <= 0xEF)
        comment = start[1] == 0xFE
        return (start[0] == 0xFF) & (application | comment) & ~is_exif(start)

    def following(place, start):
        place += 2 + number(start[2:4], big_endian=True)
        return place, peek(contents, place, START)

    place = tf.constant(2, tf.int64)
    place, start = tf.while_loop(
        is_other, following, (place, peek(contents, place, START)), maximum_iterations=SEGMENTS
    )
    end = place + 2 + number(start[2:4], big_endian=True)
    return tf.cond(
        is_exif(start),
        lambda: _in_tiff(contents, place + START, end),
        lambda: tf.constant(1, tf.int64),
    )


def _in_tiff(contents, start, end):
    """The orientation in the first directory of a TIFF between `start` and `end` of a file."""
    header = peek(contents, start, 8)
    big_endian = header[0] == ord("M")
    entries = start + number(header[4:], big_endian) + 2
    count = number(peek(contents, entries - 2, 2), big_endian)
    count = tf.minimum(count, tf.maximum(end - entries, 0) // 12)
    found = tf.cast(cut(contents, entries, 12 * count), tf.int64)
    entries = tf.reshape(found[: tf.size(found) // 12 * 12], (-1, 12))
    tag, kind, value = (number(entries[:, i : i + 2], big_endian) for i in (0, 2, 8))
    known = tf.reduce_any(tf.reduce_all(header[:4] == BYTE_ORDERS, -1))
    valid = known & (tag == ORIENTATION) & (kind == SHORT) & (value >= 1) & (value <= 8)
    return tf.reduce_max(tf.concat([[1], value[valid]], 0))


def upright(pixels: Tensor, orientation: Tensor) -> Tensor:
    """An image (H,W,3) as it was seen; its sides are swapped if `orientation` is 5 to 8."""

    def turned():
        sides = tf.cond(orientation > 4, lambda: tf.transpose(pixels, (1, 0, 2)), lambda: pixels)
        flips = (orientation - 1) % 4  # none, left and right, both, top and bottom
        flipped = tf.stack([flips >= 2, (flips == 1) | (flips == 2)])
        return tf.reverse(sides, tf.where(flipped)[:, 0])

    return tf.cond(orientation == 1, lambda: pixels, turned)
