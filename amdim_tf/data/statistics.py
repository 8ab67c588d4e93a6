"""Mean and deviation of a data set's pixels, for images that nobody has measured before."""

from collections.abc import Iterable

import numpy as np

from amdim_tf.data import pipeline, views
from amdim_tf.data.data import Data
from amdim_tf.errors import InputError
from amdim_tf.typing import Config, Tensor

SAMPLE = 1000


def pixel_statistics(data: Data, config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) by channel of pixels in 0..1, of at most 1000 training images as tests see them.

    They are rounded, so that another machine finds the same.

    Raises:
        InputError: none of the images can be used.
    """

    def prepare(image: Tensor) -> Tensor:
        return views.center(image[None], config.image_size)[0] / 255

    split = data.train.sample(min(SAMPLE, data.train.size))
    batches = pipeline.test_batches(data, split, config, prepare=prepare).as_numpy_iterator()
    used = (images[places >= 0] for places, images, _ in batches)
    pixels = (images.reshape(-1, config.channels) for images in used)
    count, mean, std = moments(pixels, config.channels)
    if not count:
        data.failures.check()
        raise InputError(f"None of the first {split.size} training images can be used")
    # A channel that never changes stays near zero with any deviation.
    return tuple(map(_rounded, mean)), tuple(map(_rounded, np.where(std > 1e-6, std, 1.0)))


def moments(blocks: Iterable[np.ndarray], width: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of rows, and their mean and standard deviation (`width`,) float64, block by block.

    Args:
        blocks: arrays (n,`width`) of rows.

    Example:
    >>> count, mean, deviation = moments([np.array([[1.0]]), np.array([[3.0]])], width=1)
    >>> count, mean.tolist(), deviation.tolist()
    (2, [2.0], [1.0])
    """
    count, sums = 0, np.zeros((2, width))
    for block in blocks:
        block = block.astype("float64")
        count += len(block)
        sums += block.sum(0), np.square(block).sum(0)
    mean, square = sums / max(count, 1)
    return count, mean, np.sqrt(np.maximum(square - mean**2, 0))


def _rounded(value):
    return float(f"{value:.3g}")
