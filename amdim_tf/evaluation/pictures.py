"""Pictures of what a model learned: Figure 2, a map of its features, curves, confusion."""

import dataclasses
import functools
import io
import pathlib
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import ConfusionMatrixDisplay

from amdim_tf.data import pipeline
from amdim_tf.data.data import Data
from amdim_tf.errors import InputError
from amdim_tf.evaluation import maps
from amdim_tf.evaluation.frame import Frame, bar, common_limits, grid, shown_channels
from amdim_tf.training.learner import Learner
from amdim_tf.typing import Config, Tensor

COLOURS = plt.get_cmap("tab10")(range(10))[:, :3]
# Rows of the pictures, and images to the right of a query.
QUERIES, PAIRS, NEIGHBOURS = 4, 5, 7
LEAST = 16
# A picture with more class names than this cannot be read.
NAMED_CLASSES = 20


@dataclasses.dataclass(frozen=True)
class Shown:
    """What is drawn: images (N,S,S,3) with labels (N,), and views (B,S,S,3), all normalised."""

    images: np.ndarray
    labels: np.ndarray
    x1: np.ndarray
    x2: np.ndarray


def choose(data: Data, config: Config, count: int) -> Shown:
    """The first `count` test images, and two views of a batch of them, whatever training sees.

    Data without a test set gives training images.

    Raises:
        InputError: there are too few to draw.
    """
    split = data.test or data.train
    if min(count, split.size) < LEAST:
        raise InputError(
            f"Pictures take at least {LEAST} images. Received: images={count}, of {split.size}"
        )
    split = split.sample(min(count, split.size))
    batches = pipeline.test_batches(data, split, config).as_numpy_iterator()
    places, images, labels = map(np.concatenate, zip(*batches, strict=True))
    images, labels = images[places >= 0], labels[places >= 0]
    config = config.copy_and_resolve_references()
    config.batch_size = min(maps.BATCH, split.size)
    config.views.number, config.views.small_crops = 2, 0
    data = dataclasses.replace(data, train=split)
    (((x1, x2), _),) = pipeline.train_batches(data, config, 0, 1).as_numpy_iterator()
    return Shown(images, labels, x1, x2)


def pixels_of(config: Config, images: np.ndarray) -> np.ndarray:
    """Normalised `images` (...,C) as pixels (...,3) in 0..1."""
    return shown_channels(np.clip(images * np.array(config.std) + config.mean, 0, 1))


def draw(
    model: Learner,
    config: Config,
    shown: Shown,
    class_names: Sequence[str],
    controls: Mapping[str, Learner] | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Yields (name, figure) for each picture of a model.

    Maps and posteriors are drawn if the model's objective offers the features that they show.

    Args:
        model: a `Learner`.
        config: its config.
        shown: a `Shown`.
        class_names: may be empty.
        controls: {title: model}, to be drawn next to a mixture.
    """
    frame, pixels = Frame(model.encoder), functools.partial(pixels_of, config)
    offered = maps.offered(model, shown.images)
    scored = maps.scored(offered)
    f1 = maps.feature(model, shown.images, "f1")
    places, cosines = maps.neighbours(f1, NEIGHBOURS)
    rows = []
    for query in range(QUERIES):
        chosen, scores = [query, *places[query]], None
        if scored:
            (r1,) = maps.feature(model, shown.images[query : query + 1], "r1")
            found = maps.feature(model, shown.images[chosen], f"r{scored[-1]}")
            scores = maps.matching(r1, found)
        rows.append((pixels(shown.images[chosen]), scores, cosines[query]))
    yield "retrieval", retrieval(frame, rows)

    x1, x2 = shown.x1[:PAIRS], shown.x2[:PAIRS]
    if scored:
        smallest, largest = scored[0], scored[-1]
        matches = {}
        for n, m in ((1, largest), (largest, largest), (smallest, smallest)):
            antecedents = maps.feature(model, x1, f"r{n}")
            if n > 1:
                antecedents = antecedents[:, n // 2, n // 2]
            matches[n, m] = maps.matching(antecedents, maps.feature(model, x2, f"r{m}"))
        yield "views", views(frame, pixels(x1), pixels(x2), matches)

    if "mixture" in offered:
        models = {f"trained, k = {offered['mixture'][1]}": model, **(controls or {})}
        q = {
            title: maps.posteriors(each, shown.x1, shown.x2)[:PAIRS]
            for title, each in models.items()
        }
        yield "segmentation", segmentation(frame, pixels(x1), pixels(x2), q)

    pair = pixels(shown.images), f1, shown.labels
    yield "map", feature_map(*pair, class_names, config.seed)


def save(figure: Figure, path: str | pathlib.Path) -> None:
    """Writes `path`.png and `path`.svg, and closes the figure."""
    for kind in ("png", "svg"):
        figure.savefig(pathlib.Path(f"{path}.{kind}"), dpi=120)
        figure.set_layout_engine("none")  # as it is now: to lay out many axes takes seconds
    plt.close(figure)


def to_pixels(figure: Figure) -> Tensor:
    """The figure as an image (H,W,4) uint8; closes it."""
    file = io.BytesIO()
    figure.savefig(file)
    plt.close(figure)
    return tf.io.decode_png(file.getvalue())


def retrieval(frame: Frame, rows: Sequence[tuple]) -> Figure:
    """Queries with their nearest images (Figure 2 a, b).

    Args:
        rows: for each query (images (1+K,S,S,3), scores (1+K,n,n), similarities (K,)), with the
            query first. The scores are None if the model has none.
    """
    scored = rows[0][1] is not None
    each = 2 if scored else 1
    figure, axes = grid(each * len(rows), len(rows[0][0]), 1.35, 1.3)
    limits = common_limits([scores for _, scores, _ in rows]) if scored else {}
    for i, (images, scores, cosines) in enumerate(rows):
        titles = ["query", *(f"cosine {value:.2f}" for value in cosines)]
        for j, title in enumerate(titles):
            frame.image(axes[each * i, j], images[j], title)
            if scored:
                drawn = frame.map(axes[2 * i + 1, j], images[j], scores[j], cmap="magma", **limits)
    title = "Queries, their nearest images by cosine of f1"
    figure.suptitle(title + ", and where these match the query's f1" * scored)
    if scored:
        n = len(rows[0][1][0])
        bar(figure, drawn, axes, f"matching score of the query's f1 with each f{n}")
    return figure


def views(
    frame: Frame, x1: np.ndarray, x2: np.ndarray, maps: Mapping[tuple[int, int], np.ndarray]
) -> Figure:
    """Two views of images and what matches between them (Figure 2 c, d).

    Args:
        x1, x2: (N,S,S,3).
        maps: {(n, m): scores (N,m,m)} of an antecedent in x1 with the locations of x2. The
            antecedent is f1, or f<n> at the middle location.
    """
    figure, axes = grid(len(x1), 2 + len(maps), 1.7, 1.75)
    for i, row in enumerate(axes):
        frame.image(row[0], x1[i], "" if i else "x1")
        frame.image(row[1], x2[i], "" if i else "x2")
        for column, ((n, m), scores) in enumerate(maps.items()):
            if n > 1:
                frame.box(row[0], n, (n // 2, n // 2), COLOURS[column])
            title = "" if i else f"f{n}(x1) with f{m}(x2)"
            limits = common_limits(scores)
            drawn = frame.map(row[2 + column], x2[i], scores[i], title, cmap="magma", **limits)
            if i == len(x1) - 1:
                bar(figure, drawn, axes[:, 2 + column], "score", "horizontal")
    boxes = [
        Line2D([], [], color=COLOURS[column], label=f"the f{n}(x1) that is matched")
        for column, (n, _) in enumerate(maps)
        if n > 1
    ]
    figure.legend(handles=boxes, loc="outside lower left", fontsize=8, ncols=2)
    figure.suptitle("What in x2 matches x1", fontsize=11)
    return figure


def segmentation(
    frame: Frame, x1: np.ndarray, x2: np.ndarray, posteriors: Mapping[str, np.ndarray]
) -> Figure:
    """The posterior over the components of x1, at each location of x2 (Figure 2 e to h).

    Args:
        x1, x2: (N,S,S,3).
        posteriors: {title: (N,k,n,n)}; the components of the first have a column each, too.
    """
    trained = next(iter(posteriors.values()))
    k = trained.shape[1]
    figure, axes = grid(len(x1), 2 + k + len(posteriors), 1.5, 1.6)
    for i, row in enumerate(axes):
        frame.image(row[0], x1[i], "" if i else "x1")
        frame.image(row[1], x2[i], "" if i else "x2")
        for j in range(k):
            title = "" if i else f"q of component {j + 1}"
            limits = {"vmin": 0, "vmax": 1, "cmap": "viridis"}
            drawn = frame.map(row[2 + j], x2[i], trained[i, j], title, **limits)
        for column, (title, q) in enumerate(posteriors.items(), 2 + k):
            colours = np.tensordot(q[i], COLOURS[: q.shape[1]], (0, 0))
            frame.map(row[column], x2[i], colours, "" if i else title)
    bar(figure, drawn, axes[:, 2 : 2 + k], "posterior q", "horizontal")
    names = [Patch(color=COLOURS[j], label=f"component {j + 1}") for j in range(k)]
    figure.legend(handles=names, loc="outside lower left", fontsize=8, ncols=k)
    n = trained.shape[-1]
    figure.suptitle(f"Which component of x1 accounts for each f{n} of x2", fontsize=11)
    return figure


def curves(lines: Sequence[Mapping[str, float]]) -> Figure:
    """Losses, bounds, accuracies and the health of f1 by step.

    Args:
        lines: the records in metrics.jsonl, see `callbacks.Measurements`.
    """
    panels = {
        "loss": ("", r"(loss)"),
        "loss of each task": ("nats", r"nce_(.+)"),
        "bound on the mutual information": ("nats", r"bound_(.+)|(bound|information)"),
        "accuracy": ("fraction of the images", r"(.+)_accuracy"),
        "spread of f1": ("", r"f1_(std|alignment|uniformity)"),
        "effective rank of f1": ("dimensions", r"f1_effective_(rank)"),
    }
    names = sorted({name for line in lines for name in line})
    found = {
        title: (unit, [match for match in map(re.compile(pattern).fullmatch, names) if match])
        for title, (unit, pattern) in panels.items()
    }
    found = {title: panel for title, panel in found.items() if panel[1]}
    rows = max(-(-len(found) // 3), 1)
    figure, axes = plt.subplots(
        rows, 3, figsize=(12, 3.6 * rows), squeeze=False, layout="constrained"
    )
    for place in axes.flat[len(found) :]:
        place.remove()
    for place, (title, (unit, matches)) in zip(axes.flat, found.items(), strict=False):
        for match in matches:
            name, label = match[0], match[match.lastindex or 0].replace("_", " ")
            points = [(line["step"], line[name]) for line in lines if name in line]
            style = "o--" if name.startswith("test_") or "rank" in name else "-"
            place.plot(*zip(*points, strict=True), style, label=label, markersize=3)
        place.set(title=title, xlabel="step", ylabel=unit)
        place.grid(alpha=0.3)
        place.legend(fontsize=8)
    return figure


def feature_map(
    images: np.ndarray,
    f1: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    seed: int = 0,
) -> Figure:
    """Images at the places that t-SNE gives their features, on a grid so that none hides another.

    Args:
        images: (N,S,S,3); the first side * side are drawn, at most 400.
        f1: (N,D).
        labels: (N,), -1 if unknown.
        class_names: may be empty.
    """
    from sklearn.manifold import TSNE  # takes a while, and few runs draw this

    side = int(np.sqrt(min(len(images), 400)))
    images, f1, labels = images[: side**2], f1[: side**2], labels[: side**2]
    places = TSNE(
        metric="cosine", perplexity=min(30, side**2 / 4), random_state=seed
    ).fit_transform(f1)
    places = (places - places.min(0)) / np.ptp(places, axis=0) * (side - 1)
    cells = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    distances = ((places[:, None] - cells[None]) ** 2).sum(-1)
    figure, axes = plt.subplots(figsize=(10, 9), layout="constrained")
    colours = plt.get_cmap("tab20")(range(20))[:, :3]
    named = 1 < len(class_names) <= len(colours)
    for image, label, cell in zip(
        images, labels, cells[linear_sum_assignment(distances)[1]], strict=True
    ):
        left, top = cell
        axes.imshow(image, extent=(left + 0.08, left + 0.92, top + 0.92, top + 0.08))
        if named and label >= 0:
            frame = Rectangle((left + 0.05, top + 0.05), 0.9, 0.9, fill=False)
            frame.set(edgecolor=colours[label], linewidth=1.8)
            axes.add_patch(frame)
    axes.set(xlim=(0, side), ylim=(side, 0), xticks=[], yticks=[])
    axes.set_title(f"f1 of {side**2} images by t-SNE, moved to the nearest free cell")
    if named:
        seen = sorted({*labels} - {-1})
        patches = [Patch(color=colours[j], label=plain(class_names[j])) for j in seen]
        figure.legend(handles=patches, loc="outside right upper", fontsize=8)
    return figure


def draw_confusion(
    confusion: np.ndarray, class_names: Sequence[str], heading: str, path: str | pathlib.Path
) -> None:
    """Draws counts (classes,classes) by true and predicted class, in shares of the true class."""
    rates = confusion / confusion.sum(1, keepdims=True).clip(1)
    named = len(class_names) <= NAMED_CLASSES
    figure, axes = plt.subplots(figsize=(8, 7), layout="constrained")
    display = ConfusionMatrixDisplay(
        rates, display_labels=list(map(plain, class_names)) if named else None
    )
    display.plot(
        ax=axes,
        include_values=named,
        values_format=".2f",
        cmap="Blues",
        xticks_rotation="vertical",
        text_kw={"fontsize": 7},
    )
    if not named:
        axes.xaxis.set_major_locator(plt.MaxNLocator(10, integer=True))
        axes.yaxis.set_major_locator(plt.MaxNLocator(10, integer=True))
    display.im_.colorbar.set_label("fraction of the images of the true class")
    figure.suptitle(textwrap.fill(heading, 90), fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def plain(name: str) -> str:
    """The name of a class as text that Matplotlib neither reads as a formula nor leaves out."""
    name = name.replace("$", r"\$")
    # Legends leave out labels that begin with an underscore, unless a space of no width is first.
    return f"\u200b{name}" if name.startswith("_") else name
