"""Lower bounds on mutual information, from scores: NCE, Jensen-Shannon, Donsker-Varadhan.

Scores (N,N) are those of N samples of a first variable with N of a second. The pairs (i,i) come
from the joint distribution, and the others stand for the product of the marginals.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from amdim_tf.objectives import nce as contrastive
from amdim_tf.objectives.nce import clipped, contrasted, same_images, score
from amdim_tf.typing import Tensor

RATE = 0.01  # of MINE's moving average
# What a bound is more than minus its loss; for NCE it depends on the batch.
MOST = {"jsd": 2 * math.log(2), "dv": 0.0}


def nce(scores: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    """The noise-contrastive bound (van den Oord et al. 2018, arXiv 1807.03748), at most log N.

    Returns:
        (loss, bound): scalars; the loss is minus the bound.

    Example:
    >>> loss, bound = nce(100 * ops.eye(8), moving=0.0)
    >>> round(float(bound), 3)  # log 8
    2.079
    """
    own = ops.diagonal(scores)
    bound = math.log(scores.shape[0]) + ops.mean(own - ops.logsumexp(scores, axis=1))
    return -bound, bound


def dv(scores: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    """Donsker and Varadhan's bound, by the gradient of MINE (Belghazi et al. 2018, 1801.04062).

    The gradient of the log of a batch's mean is biased; that of MINE divides by a moving average of
    the mean in its place (their Section 3.2).

    Args:
        scores: (N,N).
        moving: the log of the moving average of `mean_of_others`.

    Returns:
        (loss, bound): scalars; the loss has the value of minus the bound, and MINE's gradient.

    Example:
    >>> loss, bound = dv(2 * ops.eye(8), moving=0.0)
    >>> float(bound), float(loss)
    (2.0, -2.0)
    """
    own, others = ops.mean(ops.diagonal(scores)), mean_of_others(scores)
    corrected = ops.exp(others - ops.stop_gradient(ops.cast(moving, scores.dtype)))
    bound = own - others
    return -own + ops.stop_gradient(others) + corrected - ops.stop_gradient(corrected), bound


def jsd(scores: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    """The Jensen-Shannon loss of Deep InfoMax (Hjelm et al. 2018, arXiv 1808.06670, Equation 4).

    Its scores end at the log of the ratio of the densities. The loss itself is no information in
    nats, so the bound is Donsker and Varadhan's at these scores.

    Returns:
        (loss, bound): scalars.

    Example:
    >>> loss, bound = jsd(ops.zeros((8, 8)), moving=0.0)
    >>> round(float(loss), 3), float(bound)  # 2 log 2
    (1.386, 0.0)
    """
    own = ops.mean(ops.softplus(-ops.diagonal(scores)))
    number = scores.shape[0]
    apart = 1 - ops.eye(number, dtype=scores.dtype)
    others = ops.sum(ops.softplus(scores) * apart) / (number * (number - 1))
    return own + others, dv(scores, moving)[1]


BOUNDS: dict[str, Callable] = {"nce": nce, "jsd": jsd, "dv": dv}


def mean_of_others(scores: Tensor) -> Tensor:
    """The log of the mean of exp(score) over the pairs (i,j) of `scores` (N,N) with i != j.

    Example:
    >>> round(float(mean_of_others(5 * ops.eye(4) + 1)), 3)
    1.0
    """
    number = scores.shape[0]
    apart = ops.where(ops.eye(number) > 0, -float("inf"), scores)
    return ops.logsumexp(apart) - math.log(number * (number - 1))


def jsd_of_tasks(
    antecedents: Tensor,
    consequents: Tensor,
    clip: float | None = 20.0,
    regulariser: float = 5e-2,
    first: Tensor = 0,
) -> tuple[Tensor, Tensor]:
    """The Jensen-Shannon loss in place of `nce.nce`: same arguments, same shapes.

    Example:
    >>> losses, _ = jsd_of_tasks(ops.zeros((1, 4, 8)), ops.ones((4, 2, 8)))
    >>> tuple(losses.shape), round(float(losses[0, 0, 0]), 3)  # 2 log 2
    ((1, 4, 2), 1.386)
    """
    raw = score(antecedents, consequents)  # (T, b, B, L)
    scores, same_image = clipped(raw, clip), same_images(raw, first)
    positives = ops.sum(ops.where(same_image[..., None], scores, 0), axis=2)  # (T, b, L)
    by_image = ops.where(same_image, 0, ops.mean(ops.softplus(scores), axis=3))  # (T, b, B)
    count = ops.cast(ops.shape(scores)[2] - 1, scores.dtype)
    others = ops.sum(by_image, axis=2, keepdims=True) / count
    penalties = regulariser * ops.mean(ops.square(raw), axis=(1, 2, 3))
    return ops.softplus(-positives) + others, penalties


class DonskerVaradhan:
    """Donsker and Varadhan's bound in place of `nce.nce`, for both directions of some groups.

    With a moving average a of the mean of exp(score) over the negatives, the loss of a positive s
    is mean / a + log a - 1 - s. It has MINE's gradient, and minus its mean is a lower bound, too,
    which is Donsker and Varadhan's if a is the mean (Poole et al. 2019, arXiv 1905.06922).

    Args:
        logs: (R,) log a, for each antecedent of each group, in order.

    Attributes:
        means: (T,) mean / a of each call; two calls, one for each direction, make a group.

    Example:
    >>> contrast = DonskerVaradhan(ops.zeros(1))
    >>> for _ in range(2):
    ...     losses, _ = contrast(ops.zeros((1, 4, 8)), ops.ones((4, 2, 8)))
    >>> float(losses[0, 0, 0]), float(contrast.ratios()[0])
    (0.0, 1.0)
    """

    def __init__(self, logs: Tensor):
        self.logs = logs
        self.means: list[Tensor] = []

    def __call__(
        self,
        antecedents: Tensor,
        consequents: Tensor,
        clip: float | None = 20.0,
        regulariser: float = 5e-2,
        first: Tensor = 0,
    ) -> tuple[Tensor, Tensor]:
        """See `nce.nce`."""
        positives, negatives, penalties = contrasted(
            antecedents, consequents, clip, regulariser, first
        )
        tasks, (others, locations, _) = antecedents.shape[0], ops.shape(consequents)
        before = len(self.means) // 2 * 2
        start = sum(each.shape[0] for each in self.means[:before:2])
        logs = ops.cast(self.logs[start : start + tasks], negatives.dtype)[:, None, None]
        count = ops.cast((others - 1) * locations, negatives.dtype)
        ratios = ops.exp(negatives - ops.log(count) - logs)  # (T, b, 1)
        self.means.append(ops.mean(ratios, axis=(1, 2)))
        return ratios + logs - 1 - positives, penalties

    def ratios(self) -> Tensor:
        """(R,) mean / a, over both directions."""
        pairs = zip(self.means[::2], self.means[1::2], strict=True)
        return ops.concatenate([(one + other) / 2 for one, other in pairs])


def contrast_of(bound: str, logs: Tensor = None) -> Callable:
    """What takes the place of `nce.nce` for a `bound`; `logs` are `DonskerVaradhan`'s.

    Example:
    >>> contrast_of("nce").__name__, contrast_of("jsd").__name__
    ('nce', 'jsd_of_tasks')
    """
    if bound == "dv":
        return DonskerVaradhan(logs)
    return {"nce": contrastive.nce, "jsd": jsd_of_tasks}[bound]


class MovingMeans(keras.layers.Layer):
    """MINE's moving averages, as logs: 1 at first.

    Args:
        count: how many.
        kwargs: arguments of `keras.layers.Layer`.

    Example:
    >>> moving = MovingMeans(1)
    >>> moving.update(ops.array([101.0]))
    >>> round(float(moving.logs[0]), 3)  # log 2
    0.693
    """

    def __init__(self, count: int, **kwargs: Any):
        super().__init__(**kwargs)
        options = {"trainable": False, "aggregation": "only_first_replica"}
        self.logs = self.add_weight((count,), "zeros", name="logs", **options)
        self.built = True

    def update(self, ratios: Tensor) -> None:
        """Moves the averages towards what is (count,) `ratios` of them."""
        moved = ops.log(1 - RATE + RATE * ops.cast(ratios, self.logs.dtype))
        self.logs.assign(self.logs + moved)
