"""The classes that are predicted for images, and how accurate they are.

If scores are equal, the class with the smaller number comes first, wherever classes are ranked.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from scipy import stats
from sklearn import metrics

from amdim_tf.typing import Tensor

RESAMPLES = 1000
# Classes that are ranked for each image.
RANKED = 5


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The classes of N images: `labels` (N,), and `ranked` (N,k), the likeliest first.

    k is at most `RANKED`. Where fewer classes come into question, -1 fills up the row.
    """

    labels: np.ndarray
    ranked: np.ndarray

    def correct(self, count: int = 1) -> np.ndarray:
        """Whether the label of each image is among its first `count` classes, (N,)."""
        return (self.ranked[:, :count] == self.labels[:, None]).any(1)

    def accuracy(self, count: int = 1) -> float:
        """The fraction of images that are `correct`."""
        return float(self.correct(count).mean())

    @property
    def images(self) -> int:
        """N."""
        return len(self.labels)

    def report(self, class_names: Sequence[str]) -> tuple[dict[str, Any], np.ndarray]:
        """Accuracies, as JSON has them.

        Returns:
            (report, confusion): the report is {"top1", "top5", "interval", "per_class"}, with the
            95 % interval of top1 by bootstrap over images, and None for a class without images;
            confusion counts images (classes,classes) by true and predicted class.
        """
        confusion = metrics.confusion_matrix(
            self.labels, self.ranked[:, 0], labels=np.arange(len(class_names))
        )
        counts = zip(class_names, np.diag(confusion), confusion.sum(1), strict=True)
        return {
            "top1": self.accuracy(),
            "interval": interval(self.correct()),
            "top5": self.accuracy(RANKED),
            "per_class": {
                name: round(n / total, 4) if total else None for name, n, total in counts
            },
        }, confusion


def rank(scores: Tensor) -> Tensor:
    """The best classes (N,k) int32 by `scores` (N,classes)."""
    return tf.math.top_k(scores, min(RANKED, scores.shape[1])).indices


def interval(values: np.ndarray) -> list[float]:
    """The 95 % interval of the mean of `values` (N,), by bootstrap, as [low, high]."""
    if len(values) < 2:  # too few to draw from
        return [float(np.mean(values))] * 2
    sample = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=50,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return [float(limit) for limit in sample.confidence_interval]
