"""Nearest neighbours: an image gets the class of the images that are most like it."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from amdim_tf.errors import InputError
from amdim_tf.evaluation.classifiers import check_enough
from amdim_tf.evaluation.features import Features
from amdim_tf.evaluation.neighbours import QUERIES, nearest
from amdim_tf.evaluation.predictions import Predictions, rank
from amdim_tf.evaluation.protocols import NEIGHBOURS
from amdim_tf.evaluation.protocols.protocol import Protocol

if TYPE_CHECKING:
    from amdim_tf.evaluation.evaluation import Evaluation

# That of the weights exp(cosine / temperature) in DINO (arXiv 2104.14294) and, before, in instance
# discrimination (arXiv 1805.01978).
TEMPERATURE = 0.07


@dataclasses.dataclass(frozen=True)
class Votes(Predictions):
    """Classes by plain votes, and by weighted ones.

    Args:
        weighted: those by votes that count the more, the nearer the neighbour.
        neighbours: how many voted.
        feature: what was compared, in a phrase.
    """

    weighted: Predictions
    neighbours: int
    feature: str = ""

    def report(self, class_names: Sequence[str]) -> tuple[dict[str, Any], np.ndarray]:
        """As for `Predictions`, with {"top1", "top5", "interval"} of the weighted votes."""
        report, confusion = super().report(class_names)
        weighted, _ = self.weighted.report(class_names)
        del weighted["per_class"]
        how = {"neighbours": self.neighbours, "feature": self.feature}
        return report | how | {"weighted": weighted | {"temperature": TEMPERATURE}}, confusion


class Knn(Protocol):
    """Measures the votes of the nearest images by cosine."""

    votes = True

    def predictions(self, evaluation: "Evaluation") -> Votes | None:
        known, test = evaluation.known_features, evaluation.test_features
        if not evaluation.chief:
            return None
        found = knn(known, test, evaluation.classes, evaluation.settings.neighbours)
        return dataclasses.replace(found, feature=evaluation.feature)


def knn(train: Features, test: Features, classes: int, count: int = NEIGHBOURS) -> Votes:
    """`Votes` for `test`, by the `count` nearest in `train` by cosine.

    Classes without a vote are not ranked.

    Raises:
        InputError: `train` has fewer features.
    """
    check_enough(train)
    if NEIGHBOURS < count > len(train):
        raise InputError(
            f"knn must be at most the {len(train)} labelled images. Received: knn={count}"
        )
    count = min(count, len(train))
    places, cosines = nearest(train, test, count)
    # The nearest has the weight 1: its own exponential may be too large for a float.
    weights = np.exp((cosines - cosines[:, :1]) / TEMPERATURE)
    plain, weighted = (
        Predictions(test.labels, _ranked(train.labels[places], each, classes))
        for each in (np.ones_like(weights), weights)
    )
    return Votes(plain.labels, plain.ranked, weighted, count)


def _ranked(voters, weights, classes):
    """The classes (N,5) by the sum of the `weights` (N,k) of `voters` (N,k), the best first."""
    ranked = []
    for start in range(0, len(voters), QUERIES):
        own = voters[start : start + QUERIES]
        votes = np.zeros((len(own), classes), "float32")
        np.add.at(votes, (np.arange(len(own))[:, None], own), weights[start : start + QUERIES])
        best = rank(tf.constant(votes)).numpy()
        ranked.append(np.where(np.take_along_axis(votes, best, 1) > 0, best, -1))
    return np.concatenate(ranked)
