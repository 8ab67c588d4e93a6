"""Raw images as the encoder takes them: checked, and prepared as at test time."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from amdim_tf.data import views
from amdim_tf.data.channels import decode
from amdim_tf.data.decoding import MAX_PIXELS, allowed, checked
from amdim_tf.typing import Config, Tensor


@keras.saving.register_keras_serializable("amdim_tf")
class Preprocess(keras.layers.Layer):
    """Images (N,H,W,C) uint8, uint16, or float in [0, 255], to normalised ones (N,S,S,C) float32.

    The short side becomes that of `views.SHORT_SIDE`, bicubic, and the centre of S is kept: the
    test-time transform. Images are of any size up to 2**25 pixels. An empty batch, another rank,
    other channels, numbers that are not finite and floats in [0, 1] end in
    `tf.errors.InvalidArgumentError`.

    Args:
        image_size: S.
        mean, std: what normalises pixels in [0, 1], C numbers each.
        white: the value of a white pixel in files and of integers, see `channels.decode`.

    Example:
    >>> white = keras.ops.full((2, 50, 40, 3), 255)
    >>> Preprocess(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))(white).shape
    TensorShape([2, 32, 32, 3])
    """

    def __init__(
        self,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        white: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        self.image_size, self.mean, self.std = image_size, tuple(mean), tuple(std)
        self.white = white

    @classmethod
    def of(cls, config: Config) -> "Preprocess":
        """The layer for the images of a config."""
        return cls(config.image_size, config.mean, config.std, config.white)

    def call(self, images: Tensor) -> Tensor:
        channels = len(self.mean)
        images = some(tf.ensure_shape(images, (None, None, None, channels)))
        _, height, width, _ = tf.unstack(tf.shape(images, tf.int64))
        wrong = f"images must be of 1 to {MAX_PIXELS} pixels each. Received the shape"
        images = checked(images, allowed(height * width), wrong, tf.shape(images))
        if images.dtype.is_floating:
            images = _in_255(images)
        elif self.white or images.dtype == tf.uint16:
            white = self.white or 65535
            images = tf.clip_by_value(tf.cast(images, tf.float32) * (255 / white), 0.0, 255.0)
        images = views.center(images, self.image_size)
        # Without this an image of a wrong shape could reach a convolution and abort the process.
        images = tf.ensure_shape(images, (None, self.image_size, self.image_size, channels))
        return views.normalize(images, self.mean, self.std)

    def file(self, contents: Tensor, tiff: bool = False) -> Tensor:
        """One image file, a string scalar, to (S,S,C) float32; see `channels.decode`."""
        return self(decode(contents, len(self.mean), self.white, tiff)[None])[0]

    def decode(self, contents: Tensor) -> Tensor:
        """Image files (N,) string to (N,S,S,C) float32, as `file` does."""
        shape = (self.image_size, self.image_size, len(self.mean))
        return tf.map_fn(
            self.file,
            some(tf.ensure_shape(contents, (None,))),
            fn_output_signature=tf.TensorSpec(shape, tf.float32),
            parallel_iterations=8,  # each takes up to half a GB
        )

    def get_config(self) -> dict:
        fields = ("image_size", "mean", "std", "white")
        return super().get_config() | {field: getattr(self, field) for field in fields}


def some(batch: Tensor) -> Tensor:
    """The `batch`, which must not be empty.

    Raises:
        tf.errors.InvalidArgumentError: it is empty.

    Example:
    >>> some(tf.zeros((2, 32, 32, 3))).shape
    TensorShape([2, 32, 32, 3])
    """
    return checked(batch, tf.shape(batch)[0] > 0, "A batch must be of one image or more")


def finite(images: Tensor) -> Tensor:
    """The `images`, which must be of finite numbers.

    Raises:
        tf.errors.InvalidArgumentError: some number is not finite.

    Example:
    >>> finite(tf.zeros((2, 32, 32, 3))).shape
    TensorShape([2, 32, 32, 3])
    """
    known = tf.reduce_all(tf.math.is_finite(images))
    return checked(images, known, "images must be of finite numbers. Received others among them")


def _in_255(images):
    """The float `images`, unless they are in another range, in which they would look black."""
    images = finite(images)
    low, high = tf.reduce_min(images), tf.reduce_max(images)
    wrong = "images of floats must have pixels in 0..255, so 255 times those in 0..1. Received from"
    return checked(images, (high > 1) | ((low == 0) & (high == 0)), wrong, low, "to", high)
