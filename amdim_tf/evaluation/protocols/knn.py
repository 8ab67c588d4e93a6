"""Nearest neighbours: an image gets the class of the images that are most like it."""

from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from amdim_tf.evaluation.classifiers import check_enough
from amdim_tf.evaluation.features import Features
from amdim_tf.evaluation.neighbours import QUERIES, nearest
from amdim_tf.evaluation.predictions import Predictions, rank
from amdim_tf.evaluation.protocols.protocol import Protocol

if TYPE_CHECKING:
    from amdim_tf.evaluation.evaluation import Evaluation

NEIGHBOURS = 10


class Knn(Protocol):
    """Measures the votes of the 10 nearest images by cosine."""

    def predictions(self, evaluation: "Evaluation") -> Predictions | None:
        known, test = evaluation.known_features, evaluation.test_features
        return knn(known, test, evaluation.classes) if evaluation.chief else None


def knn(train: Features, test: Features, classes: int) -> Predictions:
    """`Predictions` for `test`, by the votes of the 10 nearest in `train` by cosine.

    Classes without a vote are not ranked.
    """
    check_enough(train)
    places, _ = nearest(train, test, min(NEIGHBOURS, len(train)))
    ranked = []
    for start in range(0, len(test), QUERIES):
        voters = train.labels[places[start : start + QUERIES]]
        votes = np.zeros((len(voters), classes), "float32")
        np.add.at(votes, (np.arange(len(voters))[:, None], voters), 1)
        best = rank(tf.constant(votes)).numpy()
        ranked.append(np.where(np.take_along_axis(votes, best, 1) > 0, best, -1))
    return Predictions(test.labels, np.concatenate(ranked))
