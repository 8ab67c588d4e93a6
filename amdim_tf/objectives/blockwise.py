"""The multiscale objective without its matrices of scores, for large batches.

Those of a batch of 4096 take 5 GB each. Here the scores of a block of images at a time become a
running log-sum-exp, and are computed again for the gradient, which is written by hand and in place:
beside the embeddings and their gradients, memory holds a few blocks.
"""

import math

from keras import ops

from amdim_tf import distribution
from amdim_tf.objectives.nce import DIRECTIONS, antecedent_rows, clipped, draw_antecedents, score

# Of the scores that are computed at a time.
BLOCK_BYTES = 2**24


def block_size(images, others, antecedents, score_bytes):
    """How many images' consequents form a block; 0 if all scores are small enough to be kept.

    Args:
        images: b, how many have antecedents; None if not known.
        others: B, how many have consequents.
        antecedents: {m: T}, how many of each image are scored against consequents of scale m.
        score_bytes: what the scores of one m may take to be kept.
    """
    if images is None or others is None:
        return 0
    image_bytes = max(4 * images * count * m * m for m, count in antecedents.items())
    if image_bytes * others <= score_bytes:
        return 0
    most = max(BLOCK_BYTES // image_bytes, 1)
    return max(size for size in range(1, most + 1) if others % size == 0)


def nce_of_groups(views, targets, locations, groups, clip, regulariser, first, block):
    """`nce.nce` of several groups of tasks, with the same values and gradients.

    Args:
        views: two of {n: (b,n*n,D)}, from which antecedents are drawn, see `draw_antecedents`.
        targets: two of {m: (B,m*m,D)}, the consequents; may be `views`.
        locations: two of {n: (b,)}, where the antecedents are.
        groups: {m: [n, ...]}, the tasks with the consequents of scale m.
        clip, regulariser, first: see `nce.nce`.
        block: images whose scores are computed at a time, a divisor of B.

    Returns:
        [(losses, penalties), ...] for each group, in both directions; see `nce.nce`.
    """
    owners = [views] if targets is views else [views, targets]
    keys = [(o, side, n) for o, pair in enumerate(owners) for side in (0, 1) for n in pair[side]]
    passes = [(m, *direction) for m in groups for direction in DIRECTIONS]

    def forward(tensors):
        kept, values = [], []
        for m, a, b in passes:
            view = {n: tensors[0, a, n] for n in groups[m]}
            antecedents = draw_antecedents(view, groups[m], locations[a])
            consequents = tensors[len(owners) - 1, b, m]
            sums = _forward(antecedents, consequents, clip, first, block)
            positives, negatives, squares = sums
            kept.append((antecedents, positives, negatives))
            losses = ops.softplus(negatives[..., None] - positives)
            pairs = antecedents.shape[1] * math.prod(consequents.shape[:2])
            values += [losses, regulariser / pairs * squares]
        return values, kept

    def backward(tensors, kept, upstream):
        gradients, drawn = {}, []

        def gradient_of(key):
            return gradients[key] if key in gradients else ops.zeros_like(tensors[key])

        for i, (m, a, b) in enumerate(passes):
            antecedents, *sums = kept[i]
            key = len(owners) - 1, b, m
            to_loss, to_penalty = upstream[2 * i], regulariser * upstream[2 * i + 1]
            to_antecedents, gradients[key] = _backward(
                antecedents, tensors[key], *sums, to_loss, to_penalty, clip, first, block
            )
            places = antecedent_rows({1: tensors[0, a, 1]}, groups[m])
            drawn += [((0, a, n), to_antecedents[rows]) for n, rows in places.items()]
        for key, rows in drawn:
            _, side, n = key
            if n == 1:
                rows = ops.cast(ops.transpose(rows, (1, 0, 2)), tensors[key].dtype)
                gradients[key] = gradient_of(key) + rows
            else:
                gradients[key] = _add_rows(gradient_of(key), rows[0], locations[side][n])
        return [gradient_of(key) for key in keys]

    @ops.custom_gradient
    def compute(*embeddings):
        tensors = dict(zip(keys, embeddings, strict=True))
        # Compiled, the loops write in place; TensorFlow's own copy what they carry at every step.
        values, kept = distribution.compiled(forward)(tensors)

        def gradient(*upstream):
            return distribution.compiled(backward)(tensors, kept, upstream)

        return values, gradient

    values = compute(*(owners[o][side][n] for o, side, n in keys))
    return list(zip(values[::2], values[1::2], strict=True))


def _block(antecedents, consequents, number, clip, first, block):
    """A block of consequents (K,L,D), its scores (T,b,K,L) before and after the clip, and which
    pairs (b,K,1) are of the same image."""
    start = number * block
    part = ops.slice(consequents, (start, 0, 0), (block, *consequents.shape[1:]))
    raw = score(antecedents, part)
    images = first + ops.arange(antecedents.shape[1])
    same_image = images[:, None] == start + ops.arange(block)
    return part, raw, clipped(raw, clip), same_image[..., None]


def _forward(antecedents, consequents, clip, first, block):
    """Scores of the positives (T,b,L), log-sum-exp of the negatives (T,b), sum of squares (T,)."""
    (tasks, images, _), (others, locations, _) = antecedents.shape, consequents.shape

    def step(number, carry):
        positives, negatives, squares = carry
        _, raw, scores, same_image = _block(antecedents, consequents, number, clip, first, block)
        positives = positives + ops.sum(ops.where(same_image, scores, 0), axis=2)
        negative = ops.where(same_image, -float("inf"), scores)
        negatives = ops.logaddexp(negatives, ops.logsumexp(negative, axis=(2, 3)))
        return positives, negatives, squares + ops.sum(ops.square(raw), axis=(1, 2, 3))

    dtype = score(antecedents[:, :1], consequents[:1]).dtype
    start = (
        ops.zeros((tasks, images, locations), dtype),
        ops.full((tasks, images), -float("inf"), dtype),
        ops.zeros((tasks,), dtype),
    )
    return ops.fori_loop(0, others // block, step, start)


def _backward(
    antecedents, consequents, positives, negatives, to_loss, to_penalty, clip, first, block
):
    """Gradients of the antecedents (T,b,D) and of the consequents (B,L,D)."""
    tasks, images, width = antecedents.shape
    others, locations, _ = consequents.shape
    # The gradient of a positive is -pull; that of a negative is its share of the sum of the pulls.
    pull = ops.sigmoid(negatives[..., None] - positives) * to_loss  # (T, b, L)
    push = ops.sum(pull, axis=2)[..., None, None]
    spread = (2 / (images * others * locations) * to_penalty)[:, None, None, None]

    def step(number, carry):
        to_antecedents, to_consequents = carry
        part, raw, scores, same_image = _block(antecedents, consequents, number, clip, first, block)
        to_scores = push * ops.exp(scores - negatives[..., None, None])
        to_scores = ops.where(same_image, -pull[:, :, None], to_scores)
        if clip is not None:
            to_scores = to_scores * (1 - ops.square(scores / clip))
        to_scores = (to_scores + spread * raw) / math.sqrt(width)
        to_scores = ops.reshape(to_scores, (tasks * images, block * locations))
        flat = ops.cast(ops.reshape(antecedents, (tasks * images, width)), to_scores.dtype)
        part = ops.cast(ops.reshape(part, (-1, width)), to_scores.dtype)
        to_antecedents = to_antecedents + ops.matmul(to_scores, part)
        to_part = ops.reshape(ops.matmul(ops.transpose(to_scores), flat), (block, locations, width))
        to_part = ops.cast(to_part, to_consequents.dtype)
        place = (number * block, 0, 0)
        return to_antecedents, ops.slice_update(to_consequents, place, to_part)

    # Every block of the second is overwritten: what it starts as does not matter.
    start = ops.zeros((tasks * images, width), pull.dtype), consequents
    to_antecedents, to_consequents = ops.fori_loop(0, others // block, step, start)
    return ops.reshape(to_antecedents, antecedents.shape), to_consequents


def _add_rows(accumulated, rows, places):
    """Adds to `accumulated` (b,L,D), of each image at its place (b,), a row of `rows` (b,D)."""
    images, locations, width = accumulated.shape

    def step(image, accumulated):
        start = (image, ops.cast(places[image], "int32"), 0)
        part = ops.slice(accumulated, start, (1, 1, width))
        row = ops.cast(ops.reshape(rows[image], (1, 1, width)), part.dtype)
        return ops.slice_update(accumulated, start, part + row)

    return ops.fori_loop(0, images, step, accumulated)
