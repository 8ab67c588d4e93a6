"""Cells: what a location of a map stands for in an image, with the classes of its pixels."""

import dataclasses

import numpy as np
import tensorflow as tf

from amdim_tf.data import views
from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.typing import Tensor

# A pixel of a mask with this value belongs to no class, as is usual.
VOID = 255
VALUES = 256


@dataclasses.dataclass(frozen=True)
class Cells:
    """The n x n cells of images of S pixels a side: a pixel belongs to the nearest location.

    Args:
        size: S.
        n: locations a side.
        low, stride: where the first cell begins, and the length of a cell, in pixels.

    Example:
    >>> Cells(size=6, n=3, low=0, stride=2).lines().tolist()
    [0, 0, 1, 1, 2, 2]
    """

    size: int
    n: int
    low: float
    stride: float

    @classmethod
    def of(cls, encoder: ImageEncoder, n: int) -> "Cells":
        """The cells of the map f<n>, around the centres of its receptive fields."""
        size = encoder.image_size
        start, seen, stride = encoder.receptive_field(n) or (0, size / n, size / n)
        return cls(size, n, start + (seen - stride) / 2, stride)

    def lines(self) -> np.ndarray:
        """The row of cells (S,) that each row of pixels lies in; the same for columns."""
        places = (np.arange(self.size) + 0.5 - self.low) // self.stride
        return places.clip(0, self.n - 1).astype("int64")

    def count(self, mask: Tensor) -> Tensor:
        """How many pixels of each value (n*n,256) int32 a mask (S,S) has in each cell."""
        lines = tf.constant(self.lines())
        cells = (lines[:, None] * self.n + lines) * VALUES + tf.cast(mask, tf.int64)
        length = self.n**2 * VALUES
        counts = tf.math.bincount(tf.reshape(cells, [-1]), minlength=length, maxlength=length)
        return tf.reshape(tf.cast(counts, tf.int32), (self.n**2, VALUES))


def central_mask(mask: Tensor, size: int) -> Tensor:
    """The pixels (size,size) of a mask (H,W) that `views.center` shows, each the nearest.

    Example:
    >>> central_mask(tf.reshape(tf.range(16), (4, 4)), 2).numpy().tolist()
    [[5, 7], [13, 15]]
    """
    short = views.SHORT_SIDE.get(size, size * 8 // 7)
    sides = tf.shape(mask, tf.int64)
    for axis in (0, 1):
        pixels = sides[axis]
        resized = short * pixels // tf.reduce_min(sides)
        start = tf.cast(tf.round((resized - size) / 2), tf.float64)
        scale = tf.cast(pixels, tf.float64) / tf.cast(resized, tf.float64)
        places = tf.cast((start + tf.range(size, dtype=tf.float64) + 0.5) * scale, tf.int64)
        mask = tf.gather(mask, tf.clip_by_value(places, 0, pixels - 1), axis=axis)
    return mask
