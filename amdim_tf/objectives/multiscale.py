"""The multiscale objective: n-to-m tasks between two views (3.3, Equation 5)."""

import math

from keras import ops

from amdim_tf.errors import InputError
from amdim_tf.objectives import blockwise
from amdim_tf.objectives.mixture import expectation
from amdim_tf.objectives.nce import DIRECTIONS, antecedent_rows, draw_antecedents, nce

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
    components=None,
    tau=1.0,
):
    """The multiscale objective (Equations 5 and 6): every task in both directions.

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

        components: mixture features (b,k,D) of both views, which are then the antecedents at scale
            1 in place of the embeddings; see `mixture`.
        tau: of their posterior.

    Returns:
        (losses, penalty, entropies): {"n-m": scalar}, each the mean of both directions, in nats;
        the regulariser, the mean of both directions summed over tasks; and of the posteriors of
        `components` {"n-m": scalar}, in nats. The objective is the sum of the first two less that
        of the entropies / tau.
    """

    def flat(views):
        return [
            {n: ops.reshape(view[n], (-1, n * n, view[n].shape[-1])) for n in view}
            for view in views
        ]

    locations = [{n: drawn[side] for n, drawn in locations.items()} for side in (0, 1)]
    views = flat((view1, view2))
    targets = views if consequents is None else flat(consequents)
    groups = {m: [n for n, to in tasks if to == m] for m in consequent_scales(tasks)}
    if components is not None:
        targets = [{m: view[m] for m in groups} for view in targets]
        views = [
            {1: features} | {n: view[n] for n in antecedent_scales(tasks)}
            for view, features in zip(views, components, strict=True)
        ]
    rows = {m: antecedent_rows(views[0], scales) for m, scales in groups.items()}
    images, others = views[0][1].shape[0], targets[0][min(groups)].shape[0]
    counts = {m: max(part.stop for part in rows[m].values()) for m in groups}
    block = blockwise.block_size(images, others, counts, score_bytes)
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

    losses, entropies, penalty = {}, {}, 0
    for m, *both in zip(groups, values[::2], values[1::2], strict=True):
        for n, part in rows[m].items():
            expected = [expectation(loss[part], tau) for loss, _ in both]
            losses[n, m], entropies[n, m] = (sum(pair) / 2 for pair in zip(*expected, strict=True))
            penalty += sum(ops.mean(each[part]) for _, each in both) / 2
    mixed = [(n, m) for n, m in tasks if n == 1 and components is not None]
    return (
        {f"{n}-{m}": losses[n, m] for n, m in tasks},
        penalty,
        {f"{n}-{m}": entropies[n, m] for n, m in mixed},
    )


def information_bound(loss, batch, m):
    """The lower bound on mutual information, in nats, that an n-to-m `loss` implies (3.2).

    It is the log of the number of candidates, one positive and (`batch` - 1) * m * m negatives,
    minus the loss.
    """
    return math.log(1 + (batch - 1) * m * m) - loss
