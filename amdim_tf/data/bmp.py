"""BMP files: those without compression become pixels, the others are refused with a reason.

TensorFlow's own decoder takes places in a palette for grey levels, and needs 8 bits or more.
"""

import tensorflow as tf

from amdim_tf.data.binary import cut, number, peek
from amdim_tf.typing import Tensor

# Bytes of headers: OS/2's, the first one of Windows, and its later ones.
OS2, SIZES = 12, (12, 40, 52, 56, 64, 108, 124)
# Bits of a pixel: up to 8 are a place in a palette, and 24 and 32 are blue, green, red.
BITS = (1, 4, 8, 24, 32)
PLAIN, BIT_FIELDS = 0, 3
# The bit fields by which 32 bits are blue, green, red as well.
USUAL_FIELDS = list(bytes.fromhex("0000ff00 00ff0000 ff000000"))


def promised(contents: Tensor) -> tuple[Tensor, Tensor]:
    """The number of pixels in a BMP's header, int64, and why it is not read, "" if it is."""
    size, width, height, bits, compression, start = _header(contents)
    usual = tf.reduce_all(peek(contents, 54, len(USUAL_FIELDS)) == USUAL_FIELDS) & (bits == 32)
    refusal = tf.case(
        [
            (_none_of(size, SIZES), lambda: tf.strings.format("a BMP, {} bytes of header", size)),
            (_none_of(bits, BITS), lambda: tf.strings.format("a BMP of {} bits", bits)),
            (_none_of(compression, (PLAIN, BIT_FIELDS)), lambda: "a compressed BMP"),
            ((compression == BIT_FIELDS) & ~usual, lambda: "a BMP of unusual bit fields"),
            (start < 14 + size, lambda: "a BMP whose pixels start in its header"),
        ],
        lambda: "",
    )
    return tf.maximum(width, 0) * tf.abs(height), refusal


def decode(contents: Tensor) -> Tensor:
    """The pixels (H,W,3) uint8 of a BMP without a refusal.

    Raises:
        tf.errors.InvalidArgumentError: there are too few bytes.
    """
    size, width, height, bits, _, start = _header(contents)
    row = (bits * width + 31) // 32 * 4  # a row of pixels ends at a multiple of 4 bytes
    rows = tf.reshape(cut(contents, start, row * tf.abs(height)), (tf.abs(height), row))

    def of_palette():
        shifts = tf.cast(tf.range(8 - bits, -1, -bits), tf.uint8)
        places = tf.bitwise.right_shift(rows[..., None], shifts) & tf.cast(2**bits - 1, tf.uint8)
        places = tf.reshape(places, (tf.abs(height), -1))[:, :width]
        return tf.gather(_palette(contents, size, bits, start), tf.cast(places, tf.int32))

    def of_colours():
        each = bits // 8
        return tf.reshape(rows[:, : width * each], (tf.abs(height), width, each))[..., 2::-1]

    pixels = tf.cond(bits <= 8, of_palette, of_colours)
    # Only a BMP of negative height begins at its top.
    return tf.cond(height < 0, lambda: pixels, lambda: tf.reverse(pixels, [0]))


def _palette(contents, size, bits, start):
    """The colours (n,3) uint8 between the header and the pixels."""
    each = tf.where(size == OS2, tf.constant(3, tf.int64), 4)
    count = tf.minimum(2**bits, (start - 14 - size) // each)
    return tf.reshape(cut(contents, 14 + size, count * each), (count, each))[:, 2::-1]


def _header(contents):
    """Bytes of the header, width, height, bits, compression, and where the pixels start: int64.

    The height is negative where the first row is the top.
    """
    head = peek(contents, 0, 34)

    def field(place, count=4):
        return number(head[place : place + count])

    def signed(place):
        return (field(place) + 2**31) % 2**32 - 2**31

    size = field(14)
    sides_bits_compression = tf.cond(
        size == OS2,
        lambda: (field(18, 2), field(20, 2), field(24, 2), tf.constant(PLAIN, tf.int64)),
        lambda: (signed(18), signed(22), field(28, 2), field(30)),
    )
    return size, *sides_bits_compression, field(10)


def _none_of(value, known):
    return tf.reduce_all(value != tf.constant(known, tf.int64))
