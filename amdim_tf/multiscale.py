"""The multiscale objective: n-to-m tasks between two views (3.3, Equation 5)."""

import math

from keras import ops

from amdim_tf import blockwise
from amdim_tf.errors import InputError
from amdim_tf.nce import DIRECTIONS, draw_antecedents, nce

SCALES = (1, 5, 7)


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


def consequent_scales(tasks):
    """The scales m of which `tasks` need all replicas' embeddings, ascending."""
    return sorted({m for _, m in tasks})


def multiscale_nce(
    view1,
    view2,
    locations,
    tasks,
    clip=20.0,
    regulariser=5e-2,
    score_bytes=2**28,
    consequents=None,
    first=0,
):
    """The multiscale objective (Equation 5): every task in both directions.

    Args:
        view1, view2: embeddings of the two views, {n: (b,n,n,D)} and (b,D) for n = 1.
        locations: {n: (2,b) int}, for each scale of `antecedent_scales` the flat location i*n + j
            whose embedding is the antecedent, in view 1 and in view 2.
        tasks: as `parse_tasks` returns them.
        clip, regulariser: see `nce`.
        score_bytes: of a matrix of scores; a larger one is computed in blocks and not kept.
        consequents: view 1 and view 2 of the images of all replicas (B), at least at the scales of
            `consequent_scales`; None if there are no others.
        first: the place among them of this replica's first image.

    Returns:
        (losses, penalty): {"n-m": scalar}, each the mean of both directions, in nats, and the
        regulariser, the mean of both directions summed over tasks. The objective is their sum.
    """

    def flat(views):
        return [
            {n: ops.reshape(view[n], (-1, n * n, view[n].shape[-1])) for n in view}
            for view in views
        ]

    locations = [
        {1: ops.zeros_like(view[1][..., 0], "int32")}
        | {n: drawn[side] for n, drawn in locations.items()}
        for side, view in enumerate((view1, view2))
    ]
    views = flat((view1, view2))
    targets = views if consequents is None else flat(consequents)
    groups = {m: [n for n, to in tasks if to == m] for m in consequent_scales(tasks)}
    images, others = views[0][1].shape[0], targets[0][min(groups)].shape[0]
    block = blockwise.block_size(images, others, groups, score_bytes)
    if block:
        values = blockwise.nce_of_groups(
            views, targets, locations, groups, clip, regulariser, first, block
        )
    else:
        # Tasks with the same consequents share one product for their scores.
        values = [
            nce(
                draw_antecedents(views[a], scales, locations[a]),
                targets[b][m],
                clip,
                regulariser,
                first,
            )
            for m, scales in groups.items()
            for a, b in DIRECTIONS
        ]

    losses, penalty = {}, 0
    for (m, scales), (loss12, penalty12), (loss21, penalty21) in zip(
        groups.items(), values[::2], values[1::2], strict=True
    ):
        penalty += ops.sum(penalty12 + penalty21) / 2
        for i, n in enumerate(scales):
            losses[n, m] = (loss12[i] + loss21[i]) / 2
    return {f"{n}-{m}": losses[n, m] for n, m in tasks}, penalty


def information_bound(loss, batch, m):
    """The lower bound on mutual information, in nats, that an n-to-m `loss` implies (3.2).

    It is the log of the number of candidates, one positive and (`batch` - 1) * m * m negatives,
    minus the loss.
    """
    return math.log(1 + (batch - 1) * m * m) - loss
