"""Scores and the noise-contrastive loss (3.2, 3.3, 3.5)."""

import math

import keras
from keras import ops

from amdim_tf.errors import InputError

# Of prediction: from the antecedents of one view to the consequents of the other.
DIRECTIONS = ((0, 1), (1, 0))


def nce(antecedents, consequents, clip=20.0, regulariser=5e-2, first=0):
    """The loss of picking an image's own consequents among those of all other images (Equation 2).

    Each location of image i is a positive for antecedent i, against all locations of every other
    image; the other locations of image i count neither for nor against it. With N_i the
    log-sum-exp of the negatives of antecedent i, the loss of the positive score s is
    softplus(N_i - s), so one pass over the scores serves all positives.

    Args:
        antecedents: (T,b,D) float: T tasks, each with an antecedent of every image, or of those of
            one replica.
        consequents: (B,L,D) float, L locations of each image.
        clip: c of the soft clip c*tanh(s/c) of the scores (3.5); None leaves them as they are.
        regulariser: weight of the mean squared score, taken before the clip (3.5).
        first: the first of the b images, among B.

    Returns:
        (losses, penalties): (T,b,L), at least float32, -s_nce of each positive, in nats; and (T,),
        the weighted score regulariser.

    Raises:
        InputError: fewer than two images, which leave no negatives.
    """
    batch = consequents.shape[0]
    if batch is not None and batch < 2:
        raise InputError(f"NCE needs at least 2 images for negatives. Received: {batch}")
    scores = score(antecedents, consequents)  # (T, b, B, L)
    penalties = regulariser * ops.mean(ops.square(scores), axis=(1, 2, 3))
    scores = clipped(scores, clip)
    images, others = ops.shape(scores)[1:3]
    same_image = ops.arange(images)[:, None] + first == ops.arange(others)  # (b, B)
    positives = ops.sum(ops.where(same_image[..., None], scores, 0), axis=2)  # (T, b, L)
    of_image = ops.where(same_image, -float("inf"), ops.logsumexp(scores, axis=3))  # (T, b, B)
    negatives = ops.logsumexp(of_image, axis=2, keepdims=True)  # (T, b, 1)
    return ops.softplus(negatives - positives), penalties


def score(antecedents, consequents):
    """Scores (T,B,K,L), at least float32, of antecedents (T,B,D) and consequents (K,L,D)."""
    locations, width = consequents.shape[1:]
    dtype = keras.backend.result_type(antecedents.dtype, "float32")
    antecedents, consequents = ops.cast(antecedents, dtype), ops.cast(consequents, dtype)
    # One product of two matrices: a batched one that broadcasts may leave its operands' memory in
    # oneDNN (TensorFlow issue 117700, in 2.21).
    rows, columns = (ops.reshape(x, (-1, width)) for x in (antecedents, consequents))
    scores = ops.matmul(rows, ops.transpose(columns)) / math.sqrt(width)
    return ops.reshape(scores, (*ops.shape(antecedents)[:2], -1, locations))


def clipped(scores, clip):
    """The soft clip c*tanh(s/c) (3.5)."""
    return scores if clip is None else clip * ops.tanh(scores / clip)


def draw_antecedents(view, scales, locations):
    """Antecedents (T,b,D) of a view {n: (b,n*n,D)} at `locations` {n: (b,)}, for each scale.

    At scale 1 all there are: f1, or the components of a mixture (b,k,D) in its place.
    """
    drawn = []
    for n in scales:
        if n == 1:
            drawn.append(ops.transpose(view[1], (1, 0, 2)))
            continue
        index = ops.reshape(locations[n], (-1, 1, 1))
        row = ops.take_along_axis(view[n], index, axis=1)
        drawn.append(ops.transpose(row, (1, 0, 2)))
    return ops.concatenate(drawn)


def antecedent_rows(view, scales):
    """Which rows T of `draw_antecedents` are of each scale, {n: slice}."""
    rows, start = {}, 0
    for n in scales:
        count = view[1].shape[1] if n == 1 else 1
        rows[n] = slice(start, start + count)
        start += count
    return rows
