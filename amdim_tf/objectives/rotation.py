"""Rotation: which way up is an image (Gidaris, Singh, Komodakis 2018, arXiv 1803.07728)."""

from collections.abc import Sequence

import keras
from keras import ops

from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.objectives import choice
from amdim_tf.objectives.objective import Losses, Objective
from amdim_tf.typing import Tensor

ANGLES = 4


class Rotation(Objective):
    """A linear classifier on f1 tells by how many right angles an image is turned.

    All four rotations of an image are in the batch, which the paper found best (Section 3.1). Batch
    norm takes its statistics over all of them together.

    Example:
    >>> objective = Rotation()
    >>> view = ops.reshape(ops.arange(4.0), (1, 2, 2, 1))
    >>> ops.reshape(objective.present([view], ()), (4, 4)).numpy().astype(int).tolist()
    [[0, 1, 2, 3], [1, 3, 0, 2], [3, 2, 1, 0], [2, 0, 3, 1]]
    """

    views, copies = 1, ANGLES
    metrics = choice.METRICS
    role_of_f1 = "which tells how an image is turned"

    def build(self, encoder: ImageEncoder) -> dict[str, keras.layers.Layer]:
        super().build(encoder)
        self.head = choice.head(ANGLES, encoder.variable_dtype)
        self.head.build((None, encoder.nrkhs))
        return {"rotation_head": self.head}

    def present(self, views: Sequence[Tensor], draws: Tensor) -> Tensor:
        """(4*B,S,S,C): the view, and turned counterclockwise by one, two and three right angles."""
        (view,) = views
        return ops.concatenate([ops.rot90(view, k, axes=(1, 2)) for k in range(ANGLES)])

    def losses(self, embeddings: dict[int, Tensor], labels: Tensor, draws: Tensor) -> Losses:
        f1 = embeddings[1]
        angles = ops.repeat(ops.arange(ANGLES), ops.shape(f1)[0] // ANGLES)
        return choice.choice(self.head(f1), angles)

    def flops(self, batch: int) -> int:
        """Operations of the classifier, forward and for both operands' gradients."""
        return 3 * 2 * ANGLES * batch * self.encoder.nrkhs * ANGLES
