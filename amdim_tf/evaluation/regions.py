"""The classes that are predicted for the pixels of images, and how well they fit the masks."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from amdim_tf.evaluation.predictions import RESAMPLES


@dataclasses.dataclass(frozen=True)
class Regions:
    """The classes of the pixels of N images.

    Args:
        confusions: (N,K,K), the pixels of each image by true and predicted class.
        names: those of the K classes.
    """

    confusions: np.ndarray
    names: Sequence[str]

    @property
    def images(self) -> int:
        """N."""
        return len(self.confusions)

    def report(self, class_names: Sequence[str]) -> tuple[dict[str, Any], np.ndarray]:
        """Intersection over union, as JSON has it; `class_names` are of images, and do not count.

        Returns:
            (report, confusion): the report is {"mean_iou", "interval", "pixels", "per_class"}: the
            mean over the classes, its 95 % interval by bootstrap over images, the fraction of
            correct pixels, and the IoU of each class, None if no pixel has it or is said to;
            confusion counts pixels (K,K) by true and predicted class.
        """
        confusion = self.confusions.sum(0)
        found = iou(confusion)
        return {
            "mean_iou": float(np.nanmean(found)),
            "interval": self._interval(),
            "pixels": float(np.trace(confusion) / confusion.sum()),
            "per_class": {
                name: None if np.isnan(value) else round(float(value), 4)
                for name, value in zip(self.names, found, strict=True)
            },
        }, confusion

    def _interval(self):
        images = np.random.default_rng(0).integers(self.images, size=(RESAMPLES, self.images))
        means = []
        for drawn in images:
            times = np.bincount(drawn, minlength=self.images)
            means.append(np.nanmean(iou(np.tensordot(times, self.confusions, 1))))
        return [float(limit) for limit in np.quantile(means, (0.025, 0.975))]


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union (K,) by the counts (K,K) of true and predicted class.

    Example:
    >>> iou(np.array([[3, 1], [0, 4]])).tolist()
    [0.75, 0.8]
    """
    shared = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - shared
    return np.where(union > 0, shared / np.maximum(union, 1), np.nan)
