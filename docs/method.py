"""Draws docs/method.png: the method in one picture, on a real photograph.

python docs/method.py
"""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import skimage.data  # noqa: E402
from matplotlib.patches import ConnectionPatch, Rectangle  # noqa: E402

from amdim_tf.data.views import Policy, draw, two_views  # noqa: E402

SEED = (0, 7)
# (n, m): cell of the antecedent, cell of the consequent, colour
TASKS = {
    (1, 5): ((0, 0), (2, 3), "#1f77b4"),
    (1, 7): ((0, 0), (1, 5), "#d62728"),
    (5, 5): ((4, 1), (1, 1), "#2ca02c"),
}
# Left edge of each feature map, and the size of a location.
PLACES = {7: 0.28, 5: 1.12, 1: 1.9}
CELL = 0.085


def feature_map(axes, left, n):
    """Draws an n x n feature map; returns the centre of a cell by (row, column)."""
    top = 0.5 + n * CELL / 2
    for row in range(n):
        for column in range(n):
            corner = (left + column * CELL, top - (row + 1) * CELL)
            axes.add_patch(Rectangle(corner, CELL, CELL, facecolor="#f2f2f2", edgecolor="#444444"))
    middle = left + n * CELL / 2
    axes.text(middle, top + 0.04, f"$f_{n}$", ha="center", va="bottom", fontsize=15)
    return lambda row, column: (left + (column + 0.5) * CELL, top - (row + 0.5) * CELL)


def arrow(figure, start, end, axes_start, axes_end, coordinates="data", **style):
    figure.add_artist(
        ConnectionPatch(
            start, end, coordinates, coordinates, axesA=axes_start, axesB=axes_end, **style
        )
    )


def main():
    image = skimage.data.astronaut()[:320, 60:380]
    pair = two_views(image[None], 128, Policy("crop", hue=0.1), draw(SEED, 1))[:, 0] / 255

    figure, axes = plt.subplots(2, 3, figsize=(11, 6.2), width_ratios=(1, 1, 3))
    for ax in axes.flat:
        ax.axis("off")
    original = figure.add_axes((0.02, 0.36, 0.17, 0.30))
    original.imshow(image)
    original.set_title("image $x$", fontsize=12)
    original.axis("off")

    cells = []
    for i, (_, view, features) in enumerate(axes):
        view.imshow(np.array(pair[i]))
        view.set_title(f"view $x_{i + 1}$", fontsize=12)
        features.set(xlim=(0, 2.2), ylim=(0, 1), aspect="equal")
        cells.append({n: feature_map(features, left, n) for n, left in PLACES.items()})
        features.annotate("", (0.2, 0.5), (-0.08, 0.5), arrowprops={"arrowstyle": "->", "lw": 1.5})
        features.text(0.06, 0.55, "encoder", ha="center", fontsize=10)
        ends = (1.02, 0.5), (-0.04, 0.5)
        arrow(figure, *ends, original, view, "axes fraction", arrowstyle="->", lw=1.5)

    # Antecedents of view 1 predict consequents of view 2; the other direction is not drawn.
    for (n, m), (source, target, color) in TASKS.items():
        for view, scale, cell in ((0, n, source), (1, m, target)):
            x, y = cells[view][scale](*cell)
            corner = (x - CELL / 2, y - CELL / 2)
            axes[view, 2].add_patch(Rectangle(corner, CELL, CELL, color=color))
        style = {"arrowstyle": "-|>", "mutation_scale": 16, "lw": 2, "color": color}
        start, end = cells[0][n](*source), cells[1][m](*target)
        arrow(figure, start, end, axes[0, 2], axes[1, 2], shrinkB=8, zorder=5, **style)
    figure.legend(
        handles=[
            plt.Line2D([], [], color=color, lw=2, label=f"{n}-to-{m}")
            for (n, m), (_, _, color) in TASKS.items()
        ],
        loc="lower left",
        bbox_to_anchor=(0.01, 0.03),
        frameon=False,
        fontsize=11,
        title="an antecedent picks\nits own consequents\nfrom all images'",
        title_fontsize=10,
        alignment="left",
    )
    figure.subplots_adjust(left=0.02, right=0.99, top=0.93, bottom=0.03, wspace=0.06, hspace=0.2)
    figure.savefig(pathlib.Path(__file__).with_name("method.png"), dpi=110)


if __name__ == "__main__":
    main()
