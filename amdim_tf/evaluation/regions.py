"""The classes that are predicted for the pixels of images, and how well they fit the masks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from amdim_tf.evaluation.cells import VALUES
from amdim_tf.evaluation.predictions import RESAMPLES


class Regions:
    """Pixels by true and predicted class, added image by image; no image is kept.

    Classes are the values 0 to 255 of masks. The resamples of the bootstrap count each image a
    random number of times, by Poisson's distribution of mean 1, so they too need no image again.

    Attributes:
        images: how many have been added.
        confusion: (256,256) pixels by true and predicted class.
    """

    def __init__(self):
        self.images, self.confusion = 0, np.zeros((VALUES, VALUES), "int64")
        self.resampled = np.zeros((2, RESAMPLES, VALUES))
        self.generator = np.random.default_rng(0)

    def add(self, counts: np.ndarray, predicted: np.ndarray) -> None:
        """Adds an image.

        Args:
            counts: (C,256), the pixels of each value in each of its cells.
            predicted: (C,), the class that is predicted for the pixels of a cell.
        """
        confusion = np.zeros((VALUES, VALUES), "int64")
        np.add.at(confusion.T, predicted, counts)
        times = self.generator.poisson(1, RESAMPLES)
        for total, own in zip(self.resampled, overlap(confusion), strict=True):
            total += np.outer(times, own)
        self.images, self.confusion = self.images + 1, self.confusion + confusion

    def report(self, class_names: Sequence[str]) -> tuple[dict[str, Any], np.ndarray]:
        """Intersection over union, as JSON has it; `class_names` are of images, and do not count.

        Returns:
            (report, confusion): the report is {"mean_iou", "interval", "pixels", "per_class"}: the
            mean over the K classes that occur, its 95 % interval by bootstrap over images, the
            fraction of correct pixels, and the IoU of each class by its value; confusion counts
            pixels (K,K) by true and predicted class.
        """
        shared, union = overlap(self.confusion)
        values = np.flatnonzero(union)
        found = shared[values] / union[values]
        confusion = self.confusion[np.ix_(values, values)]
        with np.errstate(invalid="ignore"):  # a class may be in no image of a resample
            drawn = np.divide(*self.resampled)[:, values]
        means = [float(np.nanmean(row)) for row in drawn if not np.isnan(row).all()]
        return {
            "mean_iou": float(found.mean()),
            "interval": [float(limit) for limit in np.quantile(means, (0.025, 0.975))],
            "pixels": float(np.trace(confusion) / confusion.sum()),
            "per_class": {
                str(value): round(float(x), 4) for value, x in zip(values, found, strict=True)
            },
        }, confusion


def overlap(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersection (K,) and union (K,) by the counts (K,K) of true and predicted class.

    Example:
    >>> [each.tolist() for each in overlap(np.array([[3, 1], [0, 4]]))]
    [[3, 4], [4, 5]]
    """
    shared = np.diag(confusion)
    return shared, confusion.sum(0) + confusion.sum(1) - shared
