"""Scores and the noise-contrastive loss over several scales (3.2, 3.3, 3.5)."""

import math

import keras
from keras import ops

from amdim_tf.errors import InputError

SCALES = (1, 5, 7)


def nce(antecedents, consequents, clip=20.0, regulariser=5e-2):
    """The loss of picking an image's own consequents among those of all other images (Equation 2).

    Each location of image i is a positive for antecedent i, against all locations of every other
    image; the other locations of image i count neither for nor against it. With N_i the
    log-sum-exp of the negatives of antecedent i, the loss of the positive score s is
    softplus(N_i - s), so one pass over the scores serves all positives.

    Args:
        antecedents: (B,D) float.
        consequents: (B,L,D) float, L locations of each image.
        clip: c of the soft clip c*tanh(s/c) of the scores (3.5); None leaves them as they are.
        regulariser: weight of the mean squared score, taken before the clip (3.5).

    Returns:
        (loss, penalty): scalars, at least float32; the mean over the B*L positives, in nats, and
        the weighted score regulariser.

    Raises:
        InputError: fewer than two images, which leave no negatives.
    """
    batch, locations, width = consequents.shape
    if batch is not None and batch < 2:
        raise InputError(f"NCE needs at least 2 images for negatives. Received: {batch}")
    dtype = keras.backend.result_type(antecedents.dtype, "float32")
    antecedents = ops.cast(antecedents, dtype)
    consequents = ops.cast(ops.reshape(consequents, (-1, width)), dtype)

    scores = ops.matmul(antecedents, ops.transpose(consequents)) / math.sqrt(width)  # (B, B*L)
    penalty = regulariser * ops.mean(ops.square(scores))
    if clip is not None:
        scores = clip * ops.tanh(scores / clip)

    scores = ops.reshape(scores, (-1, ops.shape(scores)[0], locations))  # (B, B, L)
    same_image = ops.eye(ops.shape(scores)[0], dtype="bool")  # (B, B)
    positives = ops.transpose(ops.diagonal(scores, axis1=0, axis2=1))  # (B, L)
    of_image = ops.where(same_image, -float("inf"), ops.logsumexp(scores, axis=2))  # (B, B)
    negatives = ops.logsumexp(of_image, axis=1, keepdims=True)  # (B, 1)
    return ops.mean(ops.softplus(negatives - positives)), penalty


def parse_tasks(text):
    """The n-to-m tasks of `text`, as pairs: `"1-5,5-5"` -> ((1, 5), (5, 5)).

    Raises:
        InputError: no task, a task twice, or a scale other than 1, 5, 7.
    """
    valid = [f"{n}-{m}" for n in SCALES for m in SCALES]
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(valid) or len(set(names)) < len(names):
        raise InputError(
            f"tasks must be different ones of {', '.join(valid)}, separated by commas. "
            f"Received: tasks={text!r}"
        )
    return tuple((int(name[0]), int(name[2])) for name in names)


def antecedent_scales(tasks):
    """The scales n > 1 at which `tasks` draw one antecedent location per image, ascending."""
    return sorted({n for n, _ in tasks if n > 1})


def multiscale_nce(view1, view2, locations, tasks, clip=20.0, regulariser=5e-2):
    """The multiscale objective (Equation 5): every task in both directions.

    Args:
        view1, view2: embeddings of the two views, {n: (B,n,n,D)} and (B,D) for n = 1.
        locations: {n: (2,B) int}, for each scale of `antecedent_scales` the flat location i*n + j
            whose embedding is the antecedent, in view 1 and in view 2.
        tasks: as `parse_tasks` returns them.
        clip, regulariser: see `nce`.

    Returns:
        (losses, penalty): {"n-m": scalar}, each the mean of both directions, in nats, and the
        regulariser, the mean of both directions summed over tasks. The objective is their sum.
    """

    def antecedents(view, side, n):
        if n == 1:
            return view[1]
        vectors = flat(view, n)
        index = ops.reshape(locations[n][side], (-1, 1, 1))
        return ops.squeeze(ops.take_along_axis(vectors, index, axis=1), axis=1)

    def flat(view, m):
        return ops.reshape(view[m], (-1, m * m, view[m].shape[-1]))

    losses, penalties = {}, []
    for n, m in tasks:
        loss12, penalty12 = nce(antecedents(view1, 0, n), flat(view2, m), clip, regulariser)
        loss21, penalty21 = nce(antecedents(view2, 1, n), flat(view1, m), clip, regulariser)
        losses[f"{n}-{m}"] = (loss12 + loss21) / 2
        penalties.append((penalty12 + penalty21) / 2)
    return losses, sum(penalties)


def information_bound(loss, batch, m):
    """The lower bound on mutual information, in nats, that an n-to-m `loss` implies (3.2).

    It is the log of the number of candidates, one positive and (`batch` - 1) * m * m negatives,
    minus the loss.
    """
    return math.log(1 + (batch - 1) * m * m) - loss
