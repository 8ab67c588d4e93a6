"""Measures the multiscale NCE by itself, for batches of several sizes."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import tensorflow as tf

from amdim_tf.objectives import multiscale
from amdim_tf.speed.timing import MEMORY


def nce_step(batch: int, nrkhs: int, kept: bool) -> tuple[Callable, int]:
    """A function that computes loss and gradients of the default tasks, and the gradients' bytes.

    Args:
        batch: images in the batch.
        nrkhs: size of the features.
        kept: whether the scores stay in memory, or are computed in blocks.
    """
    tasks = multiscale.parse_tasks("1-5,1-7,5-5")
    shapes = {1: (batch, nrkhs), 5: (batch, 5, 5, nrkhs), 7: (batch, 7, 7, nrkhs)}
    pair = [
        {n: tf.random.stateless_normal(shape, (n, seed)) for n, shape in shapes.items()}
        for seed in (1, 2)
    ]

    @tf.function
    def step(view1, view2):
        locations = {5: tf.zeros((2, batch), tf.int32)}
        with tf.GradientTape() as tape:
            tape.watch((view1, view2))
            losses, penalty, _ = multiscale.multiscale_nce(
                view1, view2, locations, tasks, score_bytes=2**62 if kept else 0
            )
            total = sum(losses.values()) + penalty
        return total, tape.gradient(total, (view1, view2))

    return lambda: float(step(*pair)[0]), sum(4 * math.prod(s) for s in shapes.values()) * 2


def nce_name(batch: int, kept: bool) -> str:
    """The name of the row for a `nce_step`."""
    return f"NCE of batch {batch}, scores {'kept' if kept else 'in blocks'}"


def draw_nce(rows: Mapping[str, Mapping], batches: Sequence[int], path: str | pathlib.Path) -> None:
    """Draws time and memory of the loss against the `batches`."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for suffix, label, panel in (
        ("", "loss and gradients, s", axes[0]),
        (MEMORY, "memory without embeddings\nand gradients, MiB", axes[1]),
    ):
        for kept, marker in ((True, "o"), (False, "s")):
            values = [rows[nce_name(batch, kept) + suffix]["value"] for batch in batches]
            kind = "scores kept" if kept else "scores in blocks"
            panel.loglog(batches, values, marker=marker, label=kind)
        panel.set(xlabel="images in a batch", ylabel=label)
        panel.set_xticks(batches, [str(batch) for batch in batches])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
