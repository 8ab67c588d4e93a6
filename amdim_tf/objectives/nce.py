"""Scores and the noise-contrastive loss (3.2, 3.3, 3.5)."""

import math
from collections.abc import Iterable

from keras import ops

from amdim_tf import distribution
from amdim_tf.errors import InputError
from amdim_tf.precision import at_least_float32
from amdim_tf.typing import Tensor

# (a, b): the antecedents of view a predict the consequents of view b.
DIRECTIONS = ((0, 1), (1, 0))


def nce(
    antecedents: Tensor,
    consequents: Tensor,
    clip: float | None = 20.0,
    regulariser: float = 5e-2,
    first: Tensor = 0,
) -> tuple[Tensor, Tensor]:
    """The loss of telling an image's own consequents from the other images' (Equation 2).

    Each location of image i is a positive for antecedent i, against all locations of every other
    image; the other locations of image i count neither for nor against it. With N_i the
    log-sum-exp of the negatives of antecedent i, the loss of the positive score s is
    softplus(N_i - s), so one pass over the scores serves all positives.

    Args:
        antecedents: (T,b,D) float: T tasks, each with one antecedent per image of this replica.
        consequents: (B,L,D) float, L locations of each image of all replicas.
        clip: c of the soft clip c*tanh(s/c) of the scores (3.5); None leaves them as they are.
        regulariser: weight of the mean squared score, taken before the clip (3.5).
        first: index of this replica's first image among the B images.

    Returns:
        (losses, penalties): (T,b,L), at least float32, -s_nce of each positive, in nats; and (T,),
        the weighted score regulariser.

    Raises:
        InputError: fewer than two images, which leave no negatives.

    Example:
    >>> antecedents, consequents = 8 * ops.eye(4)[None], 8 * ops.eye(4)[:, None]
    >>> losses, penalties = nce(antecedents, consequents)
    >>> tuple(losses.shape), tuple(penalties.shape)
    ((1, 4, 1), (1,))
    >>> bool(ops.max(losses) < 1e-4)  # each antecedent scores its own image highest
    True
    """
    positives, negatives, penalties = contrasted(antecedents, consequents, clip, regulariser, first)
    return ops.softplus(negatives - positives), penalties


def contrasted(
    antecedents: Tensor,
    consequents: Tensor,
    clip: float | None,
    regulariser: float,
    first: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """All that `nce` needs of the scores; its arguments.

    The gradient is written by hand: on CPUs each operation is a pass over the scores, and
    TensorFlow's own gradient takes twice as many.

    Returns:
        (positives, negatives, penalties): (T,b,L), the scores of the positives; (T,b,1), the
        log-sum-exp of the negatives; and (T,).

    Example:
    >>> found = contrasted(ops.ones((1, 2, 4)), ops.ones((2, 5, 4)), None, 0.0, 0)
    >>> [tuple(each.shape) for each in found], round(float(found[1][0, 0, 0]), 3)  # 2 + log 5
    ([(1, 2, 5), (1, 2, 1), (1,)], 3.609)
    """
    unit = 1.0 if clip is None else clip
    raw = score(antecedents, consequents, unit)
    scores = raw if clip is None else ops.tanh(raw)
    same_image = same_images(scores, first)

    @ops.custom_gradient
    def compute(raw, scores):
        _, images, others, locations = ops.shape(scores)
        by_pair = ops.reshape(scores, (-1, images * others, locations))
        own = ops.arange(images) * (others + 1) + first
        positives = unit * ops.take(by_pair, own, axis=1)
        most = ops.where(same_image, -float("inf"), ops.max(scores, axis=3))
        most = ops.max(most, axis=2)[..., None, None]  # (T, b, 1, 1)
        odds = ops.exp(unit * (scores - most))
        total = ops.where(same_image, 0, ops.sum(odds, axis=3))
        total = ops.sum(total, axis=2, keepdims=True)  # (T, b, 1)
        negatives = unit * most[..., 0] + ops.log(total)
        weight = regulariser * unit**2
        penalties = weight * ops.mean(ops.square(raw), axis=(1, 2, 3))

        def gradients(to_positives, to_negatives, to_penalties):
            push = (unit * to_negatives / total)[..., None]
            pull = unit * to_positives[:, :, None]
            to_scores = ops.where(same_image[..., None], pull, push * odds)
            pairs = ops.prod(ops.cast(ops.shape(raw)[1:], raw.dtype))
            return (2 * weight / pairs * to_penalties)[:, None, None, None] * raw, to_scores

        return (positives, negatives, penalties), gradients

    return compute(raw, scores)


def same_images(scores: Tensor, first: Tensor) -> Tensor:
    """Which of the B images of `scores` (T,b,B,L) is the antecedent's own (b,B), see `nce`.

    Raises:
        InputError: fewer than two images.

    Example:
    >>> same_images(ops.zeros((1, 2, 3, 5)), first=1).numpy().astype(int).tolist()
    [[0, 1, 0], [0, 0, 1]]
    """
    images, others = ops.shape(scores)[1:3]
    if isinstance(others, int) and others < 2:
        raise InputError(f"NCE needs at least 2 images for negatives. Received: {others}")
    return ops.arange(images)[:, None] + first == ops.arange(others)


def score(antecedents: Tensor, consequents: Tensor, unit: float = 1.0) -> Tensor:
    """Scores (T,B,K,L), at least float32, of antecedents (T,B,D) and consequents (K,L,D).

    They are multiples of `unit`.

    Example:
    >>> scores = score(ops.ones((1, 2, 4)), ops.ones((3, 5, 4)))
    >>> tuple(scores.shape), float(scores[0, 0, 0, 0])  # 4 / sqrt(4)
    ((1, 2, 3, 5), 2.0)
    """
    locations, width = consequents.shape[1:]
    dtype = at_least_float32(antecedents.dtype)
    antecedents, consequents = ops.cast(antecedents, dtype), ops.cast(consequents, dtype)
    # One product of two matrices: oneDNN's batched one, when it broadcasts, may access memory
    # outside its operands (TensorFlow issue 117700, in 2.21).
    rows, columns = (ops.reshape(x, (-1, width)) for x in (antecedents, consequents))
    rows = rows / (unit * math.sqrt(width))  # of the two, and the scores, the smallest
    if tf := distribution.tf:
        scores = tf.matmul(rows, columns, transpose_b=True)  # whose gradient transposes nothing
    else:
        scores = ops.matmul(rows, ops.transpose(columns))
    return ops.reshape(scores, (*ops.shape(antecedents)[:2], -1, locations))


def clipped(scores: Tensor, clip: float | None) -> Tensor:
    """`scores` after the soft clip c*tanh(s/c) (3.5), or as they are if `clip` is None.

    Example:
    >>> clipped(ops.array([0.0, 1000.0]), clip=20.0).numpy().round().tolist()
    [0.0, 20.0]
    """
    return scores if clip is None else clip * ops.tanh(scores / clip)


def draw_antecedents(
    view: dict[int, Tensor], scales: Iterable[int], locations: dict[int, Tensor]
) -> Tensor:
    """Antecedents (T,b,D) of a view {n: (b,n*n,D)} at `locations` {n: (b,)}, for each scale.

    Scale 1 gives all that `view` has there: f1, or the k components of a mixture (b,k,D).

    Example:
    >>> view = {1: ops.ones((2, 1, 8)), 5: ops.ones((2, 25, 8))}
    >>> tuple(draw_antecedents(view, [1, 5], {5: ops.array([0, 24])}).shape)
    (2, 2, 8)
    """
    drawn = []
    for n in scales:
        if n == 1:
            drawn.append(ops.transpose(view[1], (1, 0, 2)))
            continue
        images, places, width = ops.shape(view[n])
        # Of rows, since TensorFlow's take_along_axis transposes all of its input.
        index = ops.arange(images) * places + ops.cast(locations[n], "int32")
        drawn.append(ops.take(ops.reshape(view[n], (-1, width)), index, axis=0)[None])
    return ops.concatenate(drawn)


def antecedent_rows(view: dict[int, Tensor], scales: Iterable[int]) -> dict[int, slice]:
    """Which rows T of `draw_antecedents` belong to each scale: {n: slice}.

    Example:
    >>> antecedent_rows({1: ops.ones((2, 3, 8))}, [1, 5])  # a mixture of three components
    {1: slice(0, 3, None), 5: slice(3, 4, None)}
    """
    rows, start = {}, 0
    for n in scales:
        count = view[1].shape[1] if n == 1 else 1
        rows[n] = slice(start, start + count)
        start += count
    return rows
