"""Estimates the mutual information of two sets of features, by a critic that is trained for it."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from scipy import stats

from amdim_tf.data.statistics import moments
from amdim_tf.errors import InputError
from amdim_tf.objectives.bounds import BOUNDS, RATE, mean_of_others
from amdim_tf.typing import Tensor

# Pairs that share a batch; NCE cannot say more than its log.
BATCH = 512
# Rows that are read at a time, of files that may not fit in memory.
BLOCK = 1024
# How often a critic is compared with what it was before, and in how many batches at most.
CHECKS, CHECKED = 20, 20


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A lower bound on mutual information, from pairs that the critic did not learn from.

    Args:
        bound: its name.
        nats: the mean over batches.
        interval: the 95 % interval of that mean, by Student's t; None for a single batch.
        batch: pairs in a batch.
    """

    bound: str
    nats: float
    interval: tuple[float, float] | None
    batch: int

    @property
    def most(self) -> float:
        """What NCE can say at most, in nats."""
        return float(np.log(self.batch))


class Critic(keras.Model):
    """Scores (N,N) of all pairs of features (N,D) and others (N,D'): f(x) . g(y) + a(x) + b(y).

    f and a, g and b are the outputs of networks with two hidden layers each.

    Args:
        width: dimensions of f and g.
        hidden: width of the hidden layers.
    """

    def __init__(self, width: int = 64, hidden: int = 256):
        super().__init__(dtype="float32")
        self.width = width
        self.embed = [
            keras.Sequential(
                [
                    keras.layers.Dense(hidden, "relu", dtype="float32"),
                    keras.layers.Dense(hidden, "relu", dtype="float32"),
                    keras.layers.Dense(width + 1, dtype="float32"),
                ]
            )
            for _ in range(2)
        ]

    def call(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        x, y = (embed(each) for embed, each in zip(self.embed, pair, strict=True))
        scores = ops.matmul(x[:, :-1], ops.transpose(y[:, :-1])) / self.width**0.5
        return scores + x[:, -1:] + ops.transpose(y[:, -1:])


def estimate(
    first: np.ndarray,
    second: np.ndarray,
    bound: str,
    updates: int = 4000,
    seed: int = 0,
) -> Estimate:
    """A lower bound on the mutual information of two variables, in nats, from samples of pairs.

    A critic learns from three fifths of the pairs. Another fifth chooses among what it is after
    each twentieth of the updates, since it may learn the pairs themselves. The bound is that of the
    last fifth.

    Args:
        first, second: (M,D) and (M,D'), row by row of one pair; M is at least 20.
        bound: "nce", "jsd" or "dv"; see `objectives.bounds`.
        updates: of the critic, by Adam.
        seed: draws the critic's first weights, the batches, and which pairs are for what.

    Raises:
        InputError: too few pairs, numbers that are not finite, or another bound.

    Example:
    >>> x = np.random.default_rng(0).normal(size=(400, 2))
    >>> found = estimate(x, x, "nce", updates=50)
    >>> found.bound, found.batch
    ('nce', 80)
    """
    if bound not in BOUNDS:
        raise InputError(f"bound must be one of {', '.join(BOUNDS)}. Received: bound={bound!r}")
    if len(first) != len(second) or len(first) < 20:
        raise InputError(
            "There must be at least 20 pairs, and as many rows in both. "
            f"Received: {len(first)} and {len(second)} rows"
        )
    order = np.random.default_rng(seed).permutation(len(first))
    known, choosing, test = np.split(order, [len(order) * 3 // 5, len(order) * 4 // 5])
    batch = min(BATCH, len(choosing), len(test))
    sides = [(each, *_moments(each, known)) for each in (first, second)]

    def pairs(rows):
        """Standardised only here: in memory, a copy of both sets may take more than there is."""
        return tuple(
            tf.constant((x[rows] - mean) / deviation, "float32") for x, mean, deviation in sides
        )

    def measured(critic, rows):
        """The bound of each batch of `rows`."""
        starts = range(0, len(rows) - batch + 1, batch)
        scores = (critic(pairs(rows[start : start + batch])) for start in starts)
        return [float(BOUNDS[bound](each, mean_of_others(each))[1]) for each in scores]

    best, weights = -np.inf, list[np.ndarray]()
    for critic in _training(pairs, known, bound, updates, seed, batch):
        found = np.mean(measured(critic, choosing[: CHECKED * batch]))
        if not weights or found > best:
            best, weights = found, critic.get_weights()
    critic.set_weights(weights)
    values, interval = measured(critic, test), None
    if len(values) > 1:
        low, high = stats.ttest_1samp(values, 0).confidence_interval()
        interval = (float(low), float(high))
    return Estimate(bound, float(np.mean(values)), interval, batch)


def _moments(values, known):
    """Mean and deviation (D,) of the `known` rows of `values` (M,D), which have to be finite."""
    for start in range(0, len(values), BLOCK):
        if not np.isfinite(values[start : start + BLOCK]).all():
            raise InputError("Features must be finite numbers. Received: NaN or infinity")
    chosen = (known[start : start + BLOCK] for start in range(0, len(known), BLOCK))
    _, mean, deviation = moments((values[np.sort(rows)] for rows in chosen), values.shape[1])
    return mean, np.where(deviation > 0, deviation, 1)


def _training(pairs, known, bound, updates, seed, batch):
    """Yields a `Critic` while it makes so many `updates` on `pairs` of the `known` rows."""
    keras.utils.set_random_seed(seed)
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, updates)
    critic, optimizer, moving = Critic(), keras.optimizers.Adam(schedule), tf.Variable(np.nan)

    @tf.function(reduce_retracing=True)
    def update(x, y):
        with tf.GradientTape() as tape:
            scores = critic((x, y))
            mean = mean_of_others(tf.stop_gradient(scores))
            moved = ops.logaddexp(moving + np.log(1 - RATE), mean + np.log(RATE))
            moving.assign(tf.where(tf.math.is_nan(moving), mean, moved))  # the first is the mean
            loss, _ = BOUNDS[bound](scores, moving)
        gradients = tape.gradient(loss, critic.trainable_variables)
        optimizer.apply(gradients, critic.trainable_variables)

    generator, order = np.random.default_rng([seed, 1]), np.array([], int)
    critic(pairs(known[:2]))
    optimizer.build(critic.trainable_variables)
    for number in range(1, updates + 1):
        if len(order) < batch:
            order = generator.permutation(known)
        rows, order = order[:batch], order[batch:]
        update(*pairs(rows))
        if number == updates or number % -(-updates // CHECKS) == 0:
            yield critic
