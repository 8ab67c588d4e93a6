"""Cells: what a location of a map stands for in an image, with the classes of its pixels."""

import dataclasses

import numpy as np
import tensorflow as tf

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
