"""What the header of an image file promises: the number of pixels, and whether it can be read.

Each function returns, for a file of its kind, the number of pixels, int64, and why the file is not
read, "" if it is. For BMP see `bmp`.
"""

import tensorflow as tf

from amdim_tf.data.binary import number, peek
from amdim_tf.typing import Tensor

# Blocks, of up to 255 bytes each, that may stand before the first frame of a GIF.
GIF_BLOCKS = 10_000


def jpeg(contents: Tensor) -> tuple[Tensor, Tensor]:
    sides = tf.cast(tf.io.extract_jpeg_shape(contents)[:2], tf.int64)
    return tf.reduce_prod(sides), ""


def png(contents: Tensor) -> tuple[Tensor, Tensor]:
    sides = tf.reshape(peek(contents, 16, 8), (2, 4))
    return tf.reduce_prod(number(sides, big_endian=True)), ""


def gif(contents: Tensor) -> tuple[Tensor, Tensor]:
    """Counts the first frame; TensorFlow cuts a frame that is not as large as the screen."""
    screen = peek(contents, 6, 5)
    palette = tf.where(screen[4] >= 128, 3 * 2 ** (screen[4] % 8 + 1), 0)

    # Extensions come first: each is two bytes and blocks, and the last block is empty.
    def is_extension(place, inside):
        return inside | (peek(contents, place, 1)[0] == ord("!"))

    def following(place, inside):
        length = peek(contents, place, 1)[0]
        return place + tf.where(inside, length + 1, 2), ~inside | (length > 0)

    place, _ = tf.while_loop(
        is_extension, following, (13 + palette, tf.constant(False)), maximum_iterations=GIF_BLOCKS
    )
    frame = peek(contents, place, 9)
    corner, sides = tf.unstack(number(tf.reshape(frame[1:], (2, 2, 2))))
    covers = (corner == 0) & (sides >= number(tf.reshape(screen[:4], (2, 2))))
    refusal = tf.where(tf.reduce_all(covers), "", "a GIF whose first frame is not all of it")
    refusal = tf.where(frame[0] == ord(","), refusal, "a GIF without a frame")
    return tf.reduce_prod(sides), refusal


def webp(contents: Tensor) -> tuple[Tensor, Tensor]:
    kind = tf.strings.substr(contents, 12, 4)
    head = peek(contents, 20, 10)
    lossless = number(head[1:5])
    sides = tf.case(
        [
            (kind == b"VP8 ", lambda: number(tf.reshape(head[6:10], (2, 2))) % 2**14),
            (kind == b"VP8L", lambda: tf.stack([lossless, lossless // 2**14]) % 2**14 + 1),
            (kind == b"VP8X", lambda: number(tf.reshape(head[4:10], (2, 3))) + 1),
        ],
        lambda: tf.zeros(2, tf.int64),
    )
    # TensorFlow 2.21 corrupts memory when it decodes one.
    animated = (kind == b"VP8X") & (head[0] // 2 % 2 == 1)
    return tf.reduce_prod(sides), tf.where(animated, "an animated WebP", "")
