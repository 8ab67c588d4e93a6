"""The multiscale objective without its matrices of scores, for large batches.

Those of a batch of 4096 take 5 GB each. Here the scores of a block of images at a time become a
running log-sum-exp, and are computed again for the gradient, which is written by hand and in place:
beside the embeddings and their gradients, memory holds a few blocks.
"""

import math

from keras import ops

from amdim_tf.nce import clipped, score

# Above this size the scores of a task are not kept ...
SCORE_BYTES = 2**28
# ... and are computed in blocks of about this size.
BLOCK_BYTES = 2**24
# Of prediction: from the antecedents of one view to the consequents of the other.
DIRECTIONS = ((0, 1), (1, 0))


def block_size(batch, groups):
    """How many of `batch` images form a block; 0 if all scores are small enough to be kept.

    `groups` are of `nce_of_groups`.
    """
    image_bytes = max(4 * (batch or 0) * len(scales) * m * m for m, scales in groups.items())
    if image_bytes * (batch or 0) <= SCORE_BYTES:
        return 0
    most = max(BLOCK_BYTES // image_bytes, 1)
    return max(size for size in range(1, most + 1) if batch % size == 0)


def nce_of_groups(views, locations, groups, clip, regulariser, block):
    """`nce.nce` of several groups of tasks, with the same values and gradients.

    Args:
        views: two of {n: (B,n*n,D)}.
        locations: two of {n: (B,)}, where the antecedents are.
        groups: {m: [n, ...]}, the tasks with the consequents of scale m.
        clip, regulariser: see `nce.nce`.
        block: images whose scores are computed at a time, a divisor of B.

    Returns:
        [(losses, penalties), ...] for each group, in both directions.
    """
    names = sorted(views[0])

    def unflatten(tensors):
        return [dict(zip(names, part, strict=True)) for part in (tensors[:3], tensors[3:])]

    @ops.custom_gradient
    def compute(*embeddings):
        sides, kept, values = unflatten(embeddings), [], []
        for m, scales in groups.items():
            for source, target in DIRECTIONS:
                antecedents = draw_antecedents(sides[source], scales, locations[source])
                consequents = sides[target][m]
                pairs = math.prod(consequents.shape[:2]) * consequents.shape[0]
                positives, negatives, squares = _forward(antecedents, consequents, clip, block)
                kept.append((antecedents, positives, negatives))
                loss = ops.mean(ops.softplus(negatives[..., None] - positives), axis=(1, 2))
                values += [loss, regulariser / pairs * squares]

        def gradient(*upstream):
            sides, gradients, drawn = unflatten(embeddings), ({}, {}), []
            passes = [(m, *side) for m in groups for side in DIRECTIONS]
            for i, (m, source, target) in enumerate(passes):
                to_loss, to_penalty = upstream[2 * i], regulariser * upstream[2 * i + 1]
                to_antecedents, gradients[target][m] = _backward(
                    *kept[i], sides[target][m], to_loss, to_penalty, clip, block
                )
                drawn += [(source, n, to_antecedents[j]) for j, n in enumerate(groups[m])]
            for side, n, rows in drawn:
                present = gradients[side].get(n, ops.zeros_like(sides[side][n]))
                gradients[side][n] = _add_rows(present, rows, locations[side][n], block)
            return [
                gradients[side].get(n, ops.zeros_like(sides[side][n]))
                for side in (0, 1)
                for n in names
            ]

        return values, gradient

    values = compute(*(view[n] for view in views for n in names))
    return list(zip(values[::2], values[1::2], strict=True))


def _block(antecedents, consequents, number, clip, block):
    """A block of consequents (K,L,D), its scores (T,B,K,L) before and after the clip, and which
    pairs (B,K,1) are of the same image."""
    first = number * block
    part = ops.slice(consequents, (first, 0, 0), (block, *consequents.shape[1:]))
    raw = score(antecedents, part)
    same_image = ops.arange(antecedents.shape[1])[:, None] == first + ops.arange(block)
    return part, raw, clipped(raw, clip), same_image[..., None]


def _forward(antecedents, consequents, clip, block):
    """Scores of the positives (T,B,L), log-sum-exp of the negatives (T,B), sum of squares (T,)."""
    (tasks, batch, _), locations = antecedents.shape, consequents.shape[1]

    def step(number, carry):
        positives, negatives, squares = carry
        _, raw, scores, same_image = _block(antecedents, consequents, number, clip, block)
        own = ops.sum(ops.where(same_image, scores, 0), axis=1)  # (T, K, L)
        positives = ops.slice_update(positives, (0, number * block, 0), own)
        others = ops.where(same_image, -float("inf"), scores)
        negatives = ops.logaddexp(negatives, ops.logsumexp(others, axis=(2, 3)))
        return positives, negatives, squares + ops.sum(ops.square(raw), axis=(1, 2, 3))

    dtype = score(antecedents[:, :1], consequents[:1]).dtype
    start = (
        ops.zeros((tasks, batch, locations), dtype),
        ops.full((tasks, batch), -float("inf"), dtype),
        ops.zeros((tasks,), dtype),
    )
    return ops.fori_loop(0, batch // block, step, start)


def _backward(antecedents, positives, negatives, consequents, to_loss, to_penalty, clip, block):
    """Gradients of the antecedents (T,B,D) and of the consequents."""
    tasks, batch, width = antecedents.shape
    locations = consequents.shape[1]
    # The gradient of a positive is -pull; that of a negative is its share of the sum of the pulls.
    pull = ops.sigmoid(negatives[..., None] - positives) * to_loss[:, None, None]
    pull = pull / (batch * locations)  # (T, B, L)
    push = ops.sum(pull, axis=2)[..., None, None]
    spread = (2 / (batch * batch * locations) * to_penalty)[:, None, None, None]

    def step(number, carry):
        to_antecedents, to_consequents = carry
        part, raw, scores, same_image = _block(antecedents, consequents, number, clip, block)
        to_scores = push * ops.exp(scores - negatives[..., None, None])
        to_scores = ops.where(same_image, -pull[:, :, None], to_scores)
        if clip is not None:
            to_scores = to_scores * (1 - ops.square(scores / clip))
        to_scores = (to_scores + spread * raw) / math.sqrt(width)
        to_scores = ops.reshape(to_scores, (tasks * batch, block * locations))
        flat = ops.cast(ops.reshape(antecedents, (tasks * batch, width)), to_scores.dtype)
        part = ops.cast(ops.reshape(part, (-1, width)), to_scores.dtype)
        to_antecedents = to_antecedents + ops.matmul(to_scores, part)
        to_part = ops.reshape(ops.matmul(ops.transpose(to_scores), flat), (block, locations, width))
        to_part = ops.cast(to_part, to_consequents.dtype)
        place = (number * block, 0, 0)
        return to_antecedents, ops.slice_update(to_consequents, place, to_part)

    # Every block of the second is overwritten: what it starts as does not matter.
    start = ops.zeros((tasks * batch, width), pull.dtype), consequents
    to_antecedents, to_consequents = ops.fori_loop(0, batch // block, step, start)
    return ops.reshape(to_antecedents, antecedents.shape), to_consequents


def _add_rows(accumulated, rows, places, block):
    """Adds to `accumulated` (B,L,D), of each image at its place (B,), a row of `rows` (B,D)."""
    batch, locations, width = accumulated.shape

    def step(number, accumulated):
        first = number * block
        row = ops.slice(rows, (first, 0), (block, width))[:, None]
        place = ops.slice(places, (first,), (block,))[:, None]
        here = (ops.arange(locations, dtype=place.dtype) == place)[..., None]
        part = ops.slice(accumulated, (first, 0, 0), (block, locations, width))
        part = part + ops.cast(ops.where(here, row, 0), part.dtype)
        return ops.slice_update(accumulated, (first, 0, 0), part)

    return ops.fori_loop(0, batch // block, step, accumulated)


def draw_antecedents(view, scales, locations):
    """Antecedents (T,B,D) of a view {n: (B,n*n,D)} at `locations` {n: (B,)}, for each scale."""
    drawn = []
    for n in scales:
        index = ops.reshape(locations[n], (-1, 1, 1))
        drawn.append(ops.squeeze(ops.take_along_axis(view[n], index, axis=1), axis=1))
    return ops.stack(drawn)
