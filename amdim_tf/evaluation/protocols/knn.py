"""Nearest neighbours: an image has the classes of those that it is most like."""

import numpy as np
import tensorflow as tf

from amdim_tf.evaluation.classifiers import check_enough
from amdim_tf.evaluation.neighbours import QUERIES, nearest
from amdim_tf.evaluation.predictions import Predictions, rank
from amdim_tf.evaluation.protocols.protocol import Protocol

NEIGHBOURS = 10


class Knn(Protocol):
    """The votes of the 10 nearest by cosine."""

    def predictions(self, evaluation):
        known, test = evaluation.known_features, evaluation.test_features
        return knn(known, test, evaluation.classes) if evaluation.chief else None


def knn(train, test, classes):
    """`Predictions` for the `Features` `test` by the votes of the 10 nearest of `train` by cosine.

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
