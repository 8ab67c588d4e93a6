"""Patch offset: where a patch lies, next to another (Doersch et al. 2015, arXiv 1505.05192)."""

from typing import Any

import keras
import numpy as np
from keras import ops

from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.objectives import choice, patches
from amdim_tf.objectives.draws import draw
from amdim_tf.objectives.objective import Losses
from amdim_tf.typing import Tensor

NEIGHBOURS = np.array([place for place in range(patches.CELLS) if place != patches.CELLS // 2])


class PatchOffset(patches.JitteredObjective):
    """A classifier on f1 of two patches tells at which of eight places the first one is.

    The patches are cells of a 3 x 3 grid, the second its centre, with gaps and jitter between them
    (Section 3). All eight neighbours of an image count, as in Kolesnikov et al. (arXiv 1901.09005).
    Against the trivial clue of chromatic aberration (Section 3.1) colour is dropped: the variant
    `patch_offset` has 66 % of the views in grey, as their code does (github.com/google/
    revisiting-self-supervised), whose patches have 64 pixels in cells of 85. The classifier has one
    hidden layer, without their batch norm and dropout.

    Args:
        hidden: width of the hidden layer.

    Example:
    >>> from amdim_tf.encoders.amdim import Encoder
    >>> from amdim_tf.encoders.patches import PatchEncoder
    >>> inner = Encoder(image_size=32, ndf=4, nrkhs=16, ndepth=1)
    >>> objective = PatchOffset()
    >>> layers = objective.build(PatchEncoder(inner, image_size=128, grid=3))
    >>> losses = objective.losses({3: ops.ones((2, 3, 3, 16))}, None, ())
    >>> round(float(losses.total), 3)  # log 8
    2.079
    """

    metrics = choice.METRICS
    role_of_f1 = "which tells where a patch is"

    def __init__(self, hidden: int = 1024):
        self.hidden_width = hidden

    def build(self, encoder: ImageEncoder) -> dict[str, keras.layers.Layer]:
        super().build(encoder)
        self.hidden, self.head = choice.mlp(
            2 * encoder.nrkhs, self.hidden_width, len(NEIGHBOURS), encoder.variable_dtype
        )
        return {"offset_hidden": self.hidden, "offset_head": self.head}

    def draw(self, seed: int, step: Tensor, batch: int) -> dict[str, Tensor]:
        return {"jitter": draw(seed, step, batch, (patches.CELLS, 2))}

    def losses(self, embeddings: dict[int, Tensor], labels: Tensor, draws: Any) -> Losses:
        maps = embeddings[patches.GRID]
        f1 = ops.reshape(maps, (-1, patches.CELLS, maps.shape[-1]))
        first = ops.take(f1, NEIGHBOURS, axis=1)
        second = ops.broadcast_to(f1[:, patches.CELLS // 2, None], ops.shape(first))
        logits = self.head(self.hidden(ops.concatenate([first, second], axis=-1)))  # (B, 8, 8)
        places = ops.tile(ops.arange(len(NEIGHBOURS)), [ops.shape(f1)[0]])
        return choice.choice(ops.reshape(logits, (-1, len(NEIGHBOURS))), places)

    def flops(self, batch: int) -> int:
        """Operations of the classifier, forward and for both operands' gradients."""
        rows = len(NEIGHBOURS) * batch
        return 3 * 2 * rows * self.hidden_width * (2 * self.encoder.nrkhs + len(NEIGHBOURS))

    def get_config(self) -> dict:
        return {"hidden": self.hidden_width}
