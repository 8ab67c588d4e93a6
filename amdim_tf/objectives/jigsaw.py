"""Jigsaw: in which order are nine patches (Noroozi and Favaro 2016, arXiv 1603.09246)."""

import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.objectives import choice, patches
from amdim_tf.objectives.draws import draw
from amdim_tf.objectives.objective import Losses
from amdim_tf.typing import Tensor

# (100,9): the first one random, each other the farthest by Hamming distance from the nearest of
# those before it. The paper's Algorithm 1 takes the farthest on average, and some of its
# permutations then differ at two places only.
PERMUTATIONS = np.loadtxt(pathlib.Path(__file__).with_name("jigsaw.txt"), int)


class Jigsaw(patches.JitteredObjective):
    """A classifier on f1 of nine patches tells which of 100 permutations they are in.

    The patches are the cells of a 3 x 3 grid with gaps and jitter, each standardised by itself
    (Section 4.2). The permutations, 100 with eight of them for each image, and grey in 66 % of the
    views (the variant `jigsaw`) are those of Kolesnikov et al. (arXiv 1901.09005) and of their code
    (github.com/google/revisiting-self-supervised); each image draws its own eight. The classifier
    has one hidden layer, without their batch norm and dropout.

    Args:
        hidden: width of the hidden layer.
        orders: permutations of each image in a batch.

    Example:
    >>> from amdim_tf.encoders.amdim import Encoder
    >>> from amdim_tf.encoders.patches import PatchEncoder
    >>> inner = Encoder(image_size=32, ndf=4, nrkhs=16, ndepth=1)
    >>> objective = Jigsaw()
    >>> layers = objective.build(PatchEncoder(inner, image_size=128, grid=3))
    >>> losses = objective.losses({3: ops.ones((2, 3, 3, 16))}, None, objective.draw(0, 0, 2))
    >>> round(float(losses.total), 3)  # log 100
    4.605
    """

    metrics = choice.METRICS
    role_of_f1 = "which tells the order of patches"

    def __init__(self, hidden: int = 1024, orders: int = 8):
        self.hidden_width, self.orders = hidden, orders

    def build(self, encoder: ImageEncoder) -> dict[str, keras.layers.Layer]:
        super().build(encoder)
        self.hidden, self.head = choice.mlp(
            patches.CELLS * encoder.nrkhs,
            self.hidden_width,
            len(PERMUTATIONS),
            encoder.variable_dtype,
        )
        return {"jigsaw_hidden": self.hidden, "jigsaw_head": self.head}

    def draw(self, seed: int, step: Tensor, batch: int) -> dict[str, Tensor]:
        drawn = draw(seed, step, batch, (2 * patches.CELLS + self.orders,))
        jitter = ops.reshape(drawn[:, : 2 * patches.CELLS], (-1, patches.CELLS, 2))
        orders = ops.cast(drawn[:, 2 * patches.CELLS :] * len(PERMUTATIONS), "int32")
        return {"jitter": jitter, "orders": orders}

    def losses(self, embeddings: dict[int, Tensor], labels: Tensor, draws: Any) -> Losses:
        maps, orders = embeddings[patches.GRID], draws["orders"]  # (B, orders)
        width = patches.CELLS * maps.shape[-1]
        f1 = ops.reshape(maps, (-1, patches.CELLS, maps.shape[-1]))
        places = ops.take(PERMUTATIONS, orders, axis=0)  # (B, orders, 9)
        ordered = tf.gather(f1, places, axis=1, batch_dims=1)
        logits = self.head(self.hidden(ops.reshape(ordered, (-1, width))))
        return choice.choice(logits, ops.reshape(orders, (-1,)))

    def flops(self, batch: int) -> int:
        """Operations of the classifier, forward and for both operands' gradients."""
        width = patches.CELLS * self.encoder.nrkhs + len(PERMUTATIONS)
        return 3 * 2 * self.orders * batch * self.hidden_width * width

    def get_config(self) -> dict:
        return {"hidden": self.hidden_width, "orders": self.orders}
