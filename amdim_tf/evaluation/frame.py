"""What pictures are made of: maps drawn on images, grids of axes, and scales."""

from collections.abc import Sequence
from typing import Any

import keras
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

OPACITY = 0.6


class Frame:
    """Draws maps (n,n) on images (S,S,3), at the centres of their receptive fields.

    Args:
        encoder: an `Encoder`, which knows `receptive_field`.
    """

    def __init__(self, encoder: keras.Model):
        self.encoder, self.side = encoder, encoder.image_size

    def image(self, axes: Axes, image: np.ndarray, title: str = "") -> None:
        """Draws the image (S,S,3)."""
        axes.imshow(image, extent=(0, self.side, self.side, 0))
        axes.set(xlim=(0, self.side), ylim=(self.side, 0), xticks=[], yticks=[])
        axes.set_title(title, fontsize=9)

    def map(
        self, axes: Axes, image: np.ndarray, values: np.ndarray, title: str = "", **options: Any
    ) -> matplotlib.image.AxesImage:
        """Draws `values` (n,n) or colours (n,n,3) over the image in grey."""
        self.image(axes, np.repeat(image.mean(-1, keepdims=True), 3, -1), title)
        start, size, stride = self._field(len(values))
        low = start + (size - stride) / 2
        high = low + len(values) * stride
        extent = (low, high, high, low)
        return axes.imshow(values, extent=extent, alpha=OPACITY, interpolation="nearest", **options)

    def box(self, axes: Axes, n: int, location: tuple[int, int], colour: np.ndarray) -> None:
        """Marks the receptive field of a location (row, column) of the n x n features."""
        start, size, stride = self._field(n)
        row, column = location
        corner = (start + column * stride, start + row * stride)
        axes.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=colour, linewidth=1.5))

    def _field(self, n):
        """The receptive field, or where a location sees everything its share of the image."""
        return self.encoder.receptive_field(n) or (0, self.side / n, self.side / n)


def shown_channels(images: np.ndarray) -> np.ndarray:
    """`images` (...,C) in three channels: the first three, or the first one in grey.

    Example:
    >>> shown_channels(np.ones((8, 8, 5))).shape
    (8, 8, 3)
    """
    return images[..., :3] if images.shape[-1] >= 3 else np.repeat(images[..., :1], 3, -1)


def grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of `rows` x `columns` axes, each `width` x `height` inches."""
    return plt.subplots(
        rows,
        columns,
        figsize=(columns * width + 1, rows * height + 1),
        layout="constrained",
        squeeze=False,
    )


def bar(
    figure: Figure,
    drawn: matplotlib.image.AxesImage,
    axes: np.ndarray,
    label: str,
    orientation: str = "vertical",
) -> None:
    """Draws the colour scale of what was `drawn`, next to `axes`."""
    colours = figure.colorbar(drawn, ax=axes, orientation=orientation, shrink=0.9, aspect=30)
    colours.set_label(label, fontsize=8)
    colours.ax.tick_params(labelsize=7)


def common_limits(scores: np.ndarray | Sequence) -> dict[str, Any]:
    """The scale on which all `scores` are drawn, except single extremes."""
    low, high = np.quantile(scores, (0.01, 0.99))
    return {"vmin": low, "vmax": high}
