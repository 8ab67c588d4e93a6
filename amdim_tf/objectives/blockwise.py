"""The multiscale objective without its matrices of scores, for large batches.

With a batch of 4096 each matrix takes 5 GB. Here the scores of one block of images at a time enter
a running log-sum-exp, and the gradient computes them again. The gradient is written by hand and in
place: memory holds the embeddings, their gradients and a few blocks.
"""

import dataclasses
import math
from collections.abc import Sequence

from keras import ops

from amdim_tf import distribution
from amdim_tf.objectives.nce import DIRECTIONS, antecedent_rows, clipped, draw_antecedents, score
from amdim_tf.typing import Tensor

# The most that the scores of one block may take.
BLOCK_BYTES = 2**24


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How scores are computed, one block of images at a time.

    Args:
        size: number of images in a block, a divisor of B.
        clip, first: see `nce.nce`.

    Example:
    >>> blocks = Blocks(size=2, clip=20.0, first=0)
    >>> chunk, raw, scores, same_image = blocks.scores(ops.ones((1, 4, 8)), ops.ones((4, 25, 8)), 1)
    >>> tuple(scores.shape), same_image[:, :, 0].numpy().astype(int).tolist()
    ((1, 4, 2, 25), [[0, 0], [0, 0], [1, 0], [0, 1]])
    """

    size: int
    clip: float | None
    first: Tensor

    def scores(
        self, antecedents: Tensor, consequents: Tensor, number: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The block of consequents with this `number`, and its scores.

        Returns:
            Its consequents (K,L,D); its scores (T,b,K,L), before and after the clip; and whether
            antecedent and consequent belong to the same image, (b,K,1).
        """
        start = number * self.size
        chunk = ops.slice(consequents, (start, 0, 0), (self.size, *consequents.shape[1:]))
        raw = score(antecedents, chunk)
        images = self.first + ops.arange(antecedents.shape[1])
        same_image = images[:, None] == start + ops.arange(self.size)
        return chunk, raw, clipped(raw, self.clip), same_image[..., None]


def block_size(
    images: int | None, others: int | None, antecedents: dict[int, int], score_bytes: int
) -> int:
    """How many images' consequents form a block; 0 if all scores are small enough to be kept.

    Args:
        images: b, the number of images with antecedents; None if not known.
        others: B, the number of images with consequents; None if not known.
        antecedents: {m: T}, how many of each image are scored against consequents of scale m.
        score_bytes: the most that the scores of one m may take to be kept.

    Example:
    >>> block_size(64, 64, {5: 2}, score_bytes=2**28)
    0
    >>> block_size(4096, 4096, {5: 2}, score_bytes=2**28)
    16
    """
    if images is None or others is None:
        return 0
    image_bytes = max(4 * images * count * m * m for m, count in antecedents.items())
    if image_bytes * others <= score_bytes:
        return 0
    most = max(BLOCK_BYTES // image_bytes, 1)
    return max(size for size in range(1, most + 1) if others % size == 0)


def nce_of_groups(
    views: Sequence[dict[int, Tensor]],
    targets: Sequence[dict[int, Tensor]],
    locations: Sequence[dict[int, Tensor]],
    groups: dict[int, list[int]],
    regulariser: float,
    blocks: Blocks,
) -> list[tuple[Tensor, Tensor]]:
    """`nce.nce` for several groups of tasks, with the same values and gradients.

    Args:
        views: {n: (b,n*n,D)} for each view: antecedents are drawn there, see `draw_antecedents`.
        targets: {m: (B,m*m,D)} for each view, the consequents; may be `views`.
        locations: {n: (b,)} for each view, where the antecedents are.
        groups: {m: [n, ...]}, the tasks with the consequents of scale m.
        regulariser: see `nce.nce`.
        blocks: how scores are computed.

    Returns:
        [(losses, penalties), ...] for each group, in both directions; see `nce.nce`.

    Example:
    >>> views = [{1: ops.ones((4, 1, 8))}, {1: ops.ones((4, 1, 8))}]
    >>> values = nce_of_groups(views, views, [{}, {}], {1: [1]}, 5e-2, Blocks(2, 20.0, 0))
    >>> [tuple(losses.shape) for losses, _ in values]
    [(1, 4, 1), (1, 4, 1)]
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
            positives, negatives, squares = _forward(antecedents, consequents, blocks)
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
            to_values = upstream[2 * i], regulariser * upstream[2 * i + 1]
            to_antecedents, gradients[key] = _backward(
                antecedents, tensors[key], sums, to_values, blocks
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
        # Compiled loops write in place; TensorFlow's own copy what they carry at every step.
        values, kept = distribution.compiled(forward)(tensors)

        def gradient(*upstream):
            return distribution.compiled(backward)(tensors, kept, upstream)

        return values, gradient

    values = compute(*(owners[o][side][n] for o, side, n in keys))
    return list(zip(values[::2], values[1::2], strict=True))


def _forward(antecedents, consequents, blocks):
    """Scores of the positives (T,b,L), log-sum-exp of the negatives (T,b), sum of squares (T,)."""
    (tasks, images, _), (others, locations, _) = antecedents.shape, consequents.shape

    def step(number, carry):
        positives, negatives, squares = carry
        _, raw, scores, same_image = blocks.scores(antecedents, consequents, number)
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
    return ops.fori_loop(0, others // blocks.size, step, start)


def _backward(antecedents, consequents, sums, to_values, blocks):
    """Gradients of the antecedents (T,b,D) and of the consequents (B,L,D).

    Args:
        sums: scores of the positives and log-sum-exp of the negatives, see `_forward`.
        to_values: gradients of the losses (T,b,L) and of the sums of squares (T,), per pair.
    """
    (positives, negatives), (to_loss, to_penalty) = sums, to_values
    tasks, images, width = antecedents.shape
    others, locations, _ = consequents.shape
    # A positive's gradient is -pull; a negative's is its share of the sum of the pulls.
    pull = ops.sigmoid(negatives[..., None] - positives) * to_loss  # (T, b, L)
    push = ops.sum(pull, axis=2)[..., None, None]
    spread = (2 / (images * others * locations) * to_penalty)[:, None, None, None]

    def step(number, carry):
        to_antecedents, to_consequents = carry
        chunk, raw, scores, same_image = blocks.scores(antecedents, consequents, number)
        to_scores = push * ops.exp(scores - negatives[..., None, None])
        to_scores = ops.where(same_image, -pull[:, :, None], to_scores)
        if blocks.clip is not None:
            to_scores = to_scores * (1 - ops.square(scores / blocks.clip))
        to_scores = (to_scores + spread * raw) / math.sqrt(width)
        to_scores = ops.reshape(to_scores, (tasks * images, blocks.size * locations))
        flat = ops.cast(ops.reshape(antecedents, (tasks * images, width)), to_scores.dtype)
        flat_chunk = ops.cast(ops.reshape(chunk, (-1, width)), to_scores.dtype)
        to_antecedents = to_antecedents + ops.matmul(to_scores, flat_chunk)
        to_chunk = ops.matmul(ops.transpose(to_scores), flat)
        to_chunk = ops.reshape(to_chunk, (blocks.size, locations, width))
        to_chunk = ops.cast(to_chunk, to_consequents.dtype)
        place = (number * blocks.size, 0, 0)
        return to_antecedents, ops.slice_update(to_consequents, place, to_chunk)

    # Every block of the consequents' gradient is overwritten, so its start does not matter.
    start = ops.zeros((tasks * images, width), pull.dtype), consequents
    to_antecedents, to_consequents = ops.fori_loop(0, others // blocks.size, step, start)
    return ops.reshape(to_antecedents, antecedents.shape), to_consequents


def _add_rows(accumulated, rows, places):
    """Adds a row of `rows` (b,D) to each image of `accumulated` (b,L,D), at its place (b,)."""
    images, locations, width = accumulated.shape

    def step(image, accumulated):
        start = (image, ops.cast(places[image], "int32"), 0)
        there = ops.slice(accumulated, start, (1, 1, width))
        row = ops.cast(ops.reshape(rows[image], (1, 1, width)), there.dtype)
        return ops.slice_update(accumulated, start, there + row)

    return ops.fori_loop(0, images, step, accumulated)
