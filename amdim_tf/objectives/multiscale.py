"""The multiscale objective: n-to-m tasks between two views (3.3, Equation 5)."""

import math
import re
from collections.abc import Callable, Collection, Sequence

from keras import ops

from amdim_tf.errors import InputError
from amdim_tf.objectives import blockwise
from amdim_tf.objectives.mixture import expectation
from amdim_tf.objectives.nce import DIRECTIONS, antecedent_rows, draw_antecedents, nce
from amdim_tf.typing import Tensor

Tasks = tuple[tuple[int, int], ...]
# A smaller map has too few locations to tell apart.
LEAST_SCALE = 4


def parse_tasks(text: str, scales: Collection[int] | None = None) -> Tasks:
    """The n-to-m tasks in `text`, as pairs.

    Args:
        text: such as "1-5,5-5".
        scales: those that an encoder has; by default any.

    Raises:
        InputError: no task, a task twice, or a scale that the encoder does not have.

    Example:
    >>> parse_tasks("1-5,5-5")
    ((1, 5), (5, 5))
    """
    names = [name.strip() for name in text.split(",")]
    found = [re.fullmatch(r"([1-9]\d*)-([1-9]\d*)", name) for name in names]
    tasks = tuple((int(task[1]), int(task[2])) for task in found if task)
    known = scales is None or {n for task in tasks for n in task} <= {*scales}
    if not known or len(set(tasks)) < len(names):
        among = f", of the encoder's scales {', '.join(map(str, scales))}" if scales else ""
        raise InputError(
            "tasks must be different pairs of scales, such as "
            f"{tasks_text(default_tasks(scales or (1, 5, 7)))}, separated by commas{among}. "
            f"Received: tasks={text!r}"
        )
    return tasks


def tasks_text(tasks: Tasks) -> str:
    """Tasks as `parse_tasks` takes them.

    Example:
    >>> tasks_text(((1, 5), (5, 5)))
    '1-5,5-5'
    """
    return ",".join(f"{n}-{m}" for n, m in tasks)


def default_tasks(scales: Collection[int]) -> Tasks:
    """The paper's three tasks at the two smallest maps of an encoder with `scales` (Section 4).

    Maps of fewer than 4 x 4 locations are used only if there are no others; without maps there is
    only 1-1.

    Example:
    >>> default_tasks((1, 5, 7)), default_tasks((1, 2, 4, 8, 16))
    (((1, 5), (1, 7), (5, 5)), ((1, 4), (1, 8), (4, 4)))
    """
    maps = sorted({*scales} - {1})
    first, second, *_ = [n for n in maps if n >= LEAST_SCALE][:2] * 2 or maps * 2 or (1, 1)
    return tuple(dict.fromkeys([(1, first), (1, second), (first, first)]))


def antecedent_scales(tasks: Tasks) -> list[int]:
    """The scales n > 1 at which `tasks` draw one antecedent location per image, ascending.

    Example:
    >>> antecedent_scales(((1, 5), (1, 7), (5, 5)))
    [5]
    """
    return sorted({n for n, _ in tasks if n > 1})


def consequent_scales(tasks: Tasks) -> list[int]:
    """The scales m at which `tasks` need all replicas' embeddings, ascending.

    Example:
    >>> consequent_scales(((1, 5), (1, 7), (5, 5)))
    [5, 7]
    """
    return sorted({m for _, m in tasks})


def multiscale_nce(
    view1: dict[int, Tensor],
    view2: dict[int, Tensor],
    locations: dict[int, Tensor],
    tasks: Tasks,
    clip: float | None = 20.0,
    regulariser: float = 5e-2,
    score_bytes: int = 2**28,
    consequents: Sequence[dict[int, Tensor]] | None = None,
    first: Tensor = 0,
    components: Sequence[Tensor] | None = None,
    tau: float = 1.0,
    contrast: Callable = nce,
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """The multiscale objective (Equations 5 and 6): every task in both directions.

    Args:
        view1, view2: embeddings of the two views, {n: (b,n,n,D)} and (b,D) for n = 1.
        locations: {n: (2,b) int}, for each scale of `antecedent_scales` the flat location i*n + j
            of the antecedent, in view 1 and in view 2.
        tasks: as `parse_tasks` returns them.
        clip, regulariser: see `nce`.
        score_bytes: the largest matrix of scores to keep; a larger one is computed in blocks.
        consequents: views 1 and 2 of the images of all replicas (B), at least at the scales of
            `consequent_scales`; None with one replica.
        first: index of this replica's first image among the B images.
        components: mixture features (b,k,D) of both views, which replace the embeddings as
            antecedents at scale 1; see `mixture`.
        tau: inverse temperature of their posterior.
        contrast: what compares antecedents with consequents, as `nce` does.

    Raises:
        InputError: a `contrast` other than `nce` for scores that have to be computed in blocks.

    Returns:
        (losses, penalty, entropies): {"n-m": scalar}, each the mean of both directions, in nats;
        the regulariser, the mean of both directions summed over tasks; and the entropies of the
        posteriors of `components`, {"n-m": scalar}, in nats. The objective is sum(losses) + penalty
        - sum(entropies) / tau.

    Example:
    >>> view = {1: ops.eye(4, 8), 5: ops.ones((4, 5, 5, 8))}
    >>> losses, penalty, _ = multiscale_nce(view, view, {}, parse_tasks("1-1,1-5"))
    >>> sorted(losses), tuple(penalty.shape)
    (['1-1', '1-5'], ())
    """

    def flat(views):
        return [
            {n: ops.reshape(view[n], (-1, n * n, view[n].shape[-1])) for n in view}
            for view in views
        ]

    places = [{n: drawn[side] for n, drawn in locations.items()} for side in (0, 1)]
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
    counts = {m: max(span.stop for span in rows[m].values()) for m in groups}
    block = blockwise.block_size(images, others, counts, score_bytes)
    if block and contrast is not nce:
        raise InputError(
            "bound must be nce where scores take more than score_megabytes. Received: scores of "
            f"{images} antecedents with {others} images, score_bytes={score_bytes}"
        )
    if block:
        blocks = blockwise.Blocks(block, clip, first)
        values = blockwise.nce_of_groups(views, targets, places, groups, regulariser, blocks)
    else:
        # Tasks with the same consequents share one product for their scores.
        values = [
            contrast(
                draw_antecedents(views[a], scales, places[a]),
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
        for n, span in rows[m].items():
            expected = [expectation(loss[span], tau) for loss, _ in both]
            losses[n, m], entropies[n, m] = (sum(pair) / 2 for pair in zip(*expected, strict=True))
            penalty += sum(ops.mean(each[span]) for _, each in both) / 2
    mixed = [(n, m) for n, m in tasks if n == 1 and components is not None]
    return (
        {f"{n}-{m}": losses[n, m] for n, m in tasks},
        penalty,
        {f"{n}-{m}": entropies[n, m] for n, m in mixed},
    )


def information_bound(loss: Tensor, batch: int, m: int) -> Tensor:
    """The lower bound on mutual information, in nats, that an n-to-m `loss` implies (3.2).

    It is the log of the number of candidates, one positive and (`batch` - 1) * m * m negatives,
    minus the loss.

    Example:
    >>> round(information_bound(0.0, batch=5, m=5), 3)  # log(1 + 4 * 25)
    4.615
    """
    return math.log(1 + (batch - 1) * m * m) - loss
