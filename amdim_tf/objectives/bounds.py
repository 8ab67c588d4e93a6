"""Lower bounds on mutual information, from scores: NCE, Jensen-Shannon, Donsker-Varadhan.

Scores (N,N) are those of N samples of a first variable with N of a second. The pairs (i,i) come
from the joint distribution, and the others stand for the product of the marginals.
"""

import math
from collections.abc import Callable

from keras import ops

from amdim_tf.typing import Tensor


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
