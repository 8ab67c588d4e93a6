"""Raw images as the encoder takes them: checked, and prepared as at test time."""

import keras
import tensorflow as tf

from amdim_tf import views

# Of an image: a small file may promise one that no memory holds.
MAX_PIXELS = 2**25


@keras.saving.register_keras_serializable("amdim_tf")
class Preprocess(keras.layers.Layer):
    """Images (N,H,W,3) uint8, or float in [0, 255], to normalised ones (N,S,S,3) float32.

    The short side becomes 32, 70 or 146 pixels, bicubic, and the centre of S is kept: the test-time
    transform. Images are of any size up to 2**25 pixels. An empty batch, another rank or other
    channels end in `tf.errors.InvalidArgumentError`.

    Args:
        image_size: S, one of 32, 64, 128.
        mean, std: of the normalisation, per channel, of pixels in [0, 1].

    Example:
    >>> Preprocess(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))(keras.ops.ones((2, 50, 40, 3))).shape
    TensorShape([2, 32, 32, 3])
    """

    def __init__(self, image_size, mean, std, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.image_size, self.mean, self.std = image_size, tuple(mean), tuple(std)

    def call(self, images):
        images = some(tf.ensure_shape(images, (None, None, None, 3)))
        _, height, width, _ = tf.unstack(tf.shape(images, tf.int64))
        wrong = f"images must be of 1 to {MAX_PIXELS} pixels each. Received the shape"
        images = checked(images, allowed(height * width), wrong, tf.shape(images))
        images = views.center(images, self.image_size)
        # Without this an image of a wrong shape could reach a convolution and abort the process.
        images = tf.ensure_shape(images, (None, self.image_size, self.image_size, 3))
        return views.normalize(images, self.mean, self.std)

    def file(self, contents):
        """One image file, a string scalar, to (S,S,3) float32; see `decode` of this module."""
        return self(decode(contents)[None])[0]

    def decode(self, contents):
        """Image files (N,) string to (N,S,S,3) float32: JPEG, PNG, BMP, or a GIF's first frame."""
        size = self.image_size
        return tf.map_fn(
            self.file,
            some(tf.ensure_shape(contents, (None,))),
            fn_output_signature=tf.TensorSpec((size, size, 3), tf.float32),
            parallel_iterations=16,
        )

    def get_config(self):
        fields = ("image_size", "mean", "std")
        return super().get_config() | {field: getattr(self, field) for field in fields}


def checked(value, valid, *message):
    """The tensor `value`; unless it is `valid`, `tf.errors.InvalidArgumentError` of `message`.

    What is computed from it waits for the check.
    """
    with tf.control_dependencies([tf.debugging.Assert(valid, message)]):
        return tf.identity(value)


def some(batch):
    """The `batch`, unless it is empty: that ends in `tf.errors.InvalidArgumentError`."""
    return checked(batch, tf.shape(batch)[0] > 0, "A batch must be of one image or more")


def allowed(pixels):
    """Whether an image may have so many `pixels`."""
    return (pixels > 0) & (pixels <= MAX_PIXELS)


def decode(contents):
    """An image file, a string scalar, to pixels (H,W,3) uint8.

    Raises:
        tf.errors.InvalidArgumentError: it is not `plausible`, or broken.
    """
    image = tf.io.decode_image(plausible(contents), 3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


def plausible(contents):
    """The `contents` of a file, if its header is that of an image that may be decoded.

    Raises:
        tf.errors.InvalidArgumentError: no JPEG, PNG, GIF or BMP, or one of more than `MAX_PIXELS`.
    """
    pixels = promised_pixels(contents)
    wrong = f"An image must be a whole JPEG, PNG, GIF or BMP of 1 to {MAX_PIXELS} pixels. Received"
    known = "by its header (0: none of these kinds)"
    return checked(contents, allowed(pixels), wrong, pixels, known)


def promised_pixels(contents):
    """The pixels of an image file according to its header, int64; 0 for other files."""
    header = tf.strings.substr(contents, 0, 32) + 32 * "\0"

    def area(offset, dtype, little_endian):
        sides = tf.strings.substr(header, offset, 2 * dtype.size)
        sides = tf.cast(tf.io.decode_raw(sides, dtype, little_endian), tf.int64)
        return tf.abs(tf.reduce_prod(sides))  # a BMP that begins at its top has a negative height

    def of_jpeg():
        return tf.reduce_prod(tf.cast(tf.io.extract_jpeg_shape(contents)[:2], tf.int64))

    def starts(magic):
        return tf.strings.substr(header, 0, len(magic)) == magic

    return tf.case(
        [
            (tf.io.is_jpeg(contents), of_jpeg),
            (starts(b"\x89PNG"), lambda: area(16, tf.int32, False)),
            (starts(b"GIF8"), lambda: area(6, tf.uint16, True)),
            (starts(b"BM"), lambda: area(18, tf.int32, True)),
        ],
        default=lambda: tf.zeros((), tf.int64),
    )
