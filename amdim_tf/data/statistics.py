"""Mean and deviation of a data set's pixels, for images that nobody has measured before."""

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
    count, total, squares = 0, np.zeros(config.channels), np.zeros(config.channels)
    batches = pipeline.test_batches(data, split, config, prepare=prepare)
    for places, images, _ in batches.as_numpy_iterator():
        pixels = images[places >= 0].reshape(-1, config.channels).astype("float64")
        count += len(pixels)
        total += pixels.sum(0)
        squares += np.square(pixels).sum(0)
    if not count:
        data.failures.check()
        raise InputError(f"None of the first {split.size} training images can be used")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    # A channel that never changes stays near zero with any deviation.
    return tuple(map(_rounded, mean)), tuple(map(_rounded, np.where(std > 1e-6, std, 1.0)))


def _rounded(value):
    return float(f"{value:.3g}")
