"""The classes that are predicted for images, and what they are worth.

Of equal scores the class of the smaller number comes first, here and wherever classes are ranked.
"""

import dataclasses

import numpy as np
import tensorflow as tf
from scipy import stats
from sklearn import metrics

RESAMPLES = 1000
# Classes that are ranked of each image.
RANKED = 5


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The classes of N images: `labels` (N,), and `ranked` (N,k), the likeliest first.

    k is at most `RANKED`; where fewer classes are likely at all, -1 follows them.
    """

    labels: np.ndarray
    ranked: np.ndarray

    def correct(self, count=1):
        """Whether the label of each image (N,) is among the `count` first."""
        return (self.ranked[:, :count] == self.labels[:, None]).any(1)

    def accuracy(self, count=1):
        """The fraction of the images of which it is."""
        return float(self.correct(count).mean())


def rank(scores):
    """The best classes (N,k) int32 by `scores` (N,classes), a tensor."""
    return tf.math.top_k(scores, min(RANKED, scores.shape[1])).indices


def report(predictions, class_names):
    """Accuracies of `Predictions`, as JSON has them.

    Returns:
        (report, confusion): {"top1", "top5", "interval", "per_class"}, the 95 % interval of top1 by
        bootstrap over images, no accuracy of a class without images; and counts (classes,classes)
        by true and predicted class.
    """
    confusion = metrics.confusion_matrix(
        predictions.labels, predictions.ranked[:, 0], labels=np.arange(len(class_names))
    )
    counts = zip(class_names, np.diag(confusion), confusion.sum(1), strict=True)
    return {
        "top1": predictions.accuracy(),
        "interval": interval(predictions.correct()),
        "top5": predictions.accuracy(RANKED),
        "per_class": {name: round(n / of, 4) if of else None for name, n, of in counts},
    }, confusion


def interval(values):
    """The 95 % interval of the mean of `values` (N,), by bootstrap, as [low, high]."""
    if len(values) < 2:  # which have no spread to be drawn from
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
