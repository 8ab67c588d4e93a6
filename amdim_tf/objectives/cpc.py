"""CPC: patches predict those in the rows below (van den Oord et al. 2018, arXiv 1807.03748)."""

from typing import Any

import keras
from keras import ops

from amdim_tf import distribution
from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.objectives.nce import nce
from amdim_tf.objectives.objective import Losses
from amdim_tf.objectives.patches import PatchObjective
from amdim_tf.precision import at_least_float32
from amdim_tf.typing import Tensor


class Context(keras.layers.Layer):
    """f1 of patches (B,n,n,D) to contexts (B,n,n,D), each of its own row and those above.

    Residual blocks of masked convolutions, as in the appendix of Hénaff et al. (arXiv 1905.09272).

    Args:
        blocks: number of residual blocks; each sees one more row above, and one more column on
            both sides.
        width: channels inside the blocks.
        kwargs: arguments of `keras.layers.Layer`.

    Example:
    >>> tuple(Context(blocks=1, width=8)(ops.ones((2, 3, 3, 16))).shape)
    (2, 3, 3, 16)
    """

    def __init__(self, blocks: int = 5, width: int = 256, **kwargs: Any):
        super().__init__(**kwargs)
        self.blocks, self.width = blocks, width

    def build(self, input_shape: tuple) -> None:
        def conv(filters, size):
            return keras.layers.Conv2D(filters, size, dtype=self.dtype_policy)

        sizes = [(self.width, 1), (self.width, (1, 3)), (self.width, (2, 1)), (input_shape[-1], 1)]
        self.convolutions = [conv(*size) for _ in range(self.blocks) for size in sizes]
        self.call(keras.KerasTensor(input_shape))  # symbolic: each layer builds where it is used

    def call(self, f1: Tensor) -> Tensor:
        context = f1
        for block in range(self.blocks):
            narrow, across, above, wide = self.convolutions[4 * block : 4 * block + 4]
            x = ops.relu(narrow(context))
            x = across(ops.pad(x, [[0, 0], [0, 0], [1, 1], [0, 0]]))
            x = ops.relu(above(ops.pad(x, [[0, 0], [1, 0], [0, 0], [0, 0]])))
            context = ops.relu(context + wide(x))
        return context


class Cpc(PatchObjective):
    """The context of a patch and of the rows above picks the patches below among other images'.

    The context at row i and column j predicts the patches of column j in the rows i + 1 to i +
    `steps`. The candidates are that patch and, of each other image in the batch, all patches of the
    same row; the paper adds other patches of the same image. The grid of overlapping patches is the
    encoder's: 7 x 7 patches of a quarter of the side have half of their side in common, as in the
    paper (Section 3.3). Context, and embeddings of 64 dimensions, are those in the appendix of
    Hénaff et al. (arXiv 1905.09272). Predictions start as zeros, and the loss so by chance.

    Args:
        steps: rows to predict; the paper has five.
        width: dimensions in which a prediction meets a patch.

    Example:
    >>> from amdim_tf.encoders.amdim import Encoder
    >>> from amdim_tf.encoders.patches import PatchEncoder
    >>> inner = Encoder(image_size=32, ndf=4, nrkhs=16, ndepth=1)
    >>> objective = Cpc()
    >>> layers = objective.build(PatchEncoder(inner, image_size=64, grid=3))
    >>> losses = objective.losses({3: ops.ones((2, 3, 3, 16))}, None, ())
    >>> round(float(losses.total), 3)  # log 4: the patch, and three of the other image
    1.386
    """

    least_images = 2  # a single image has no negatives
    metrics = ("loss", "bound")
    role_of_f1 = "which other patches of the image predict"

    def __init__(self, steps: int = 5, width: int = 64):
        self.steps, self.width = steps, width

    def build(self, encoder: ImageEncoder) -> dict[str, keras.layers.Layer]:
        super().build(encoder)
        dtype = at_least_float32(encoder.variable_dtype)
        shape = (None, encoder.grid, encoder.grid, encoder.nrkhs)
        self.rows = min(self.steps, encoder.grid - 1)
        self.context = Context(dtype=dtype)
        self.prediction = keras.layers.Dense(
            self.rows * self.width, kernel_initializer="zeros", dtype=dtype
        )
        self.target = keras.layers.Dense(self.width, dtype=dtype)
        layers = (self.context, self.prediction, self.target)
        for layer in layers:
            layer.build(shape)
        return dict(zip(("cpc_context", "cpc_prediction", "cpc_target"), layers, strict=True))

    def losses(self, embeddings: dict[int, Tensor], labels: Tensor, draws: Tensor) -> Losses:
        maps = embeddings[self.encoder.grid]
        grid, images = maps.shape[1], ops.shape(maps)[0]
        predicted = ops.reshape(
            self.prediction(self.context(maps)), (-1, grid, grid, self.rows, self.width)
        )
        targets = distribution.gather(self.target(maps))
        first = distribution.first_image(images)
        column, found = ops.eye(grid, dtype=targets.dtype), []
        for row in range(1, grid):
            # From each row above, by the prediction so many rows ahead.
            ahead = range(1, min(row, self.rows) + 1)
            above = ops.stack([predicted[:, row - k, :, k - 1] for k in ahead])  # (K,b,n,D)
            antecedents = ops.reshape(ops.transpose(above, (0, 2, 1, 3)), (-1, images, self.width))
            losses, _ = nce(antecedents, targets[:, row], clip=None, regulariser=0.0, first=first)
            losses = ops.reshape(losses, (len(ahead), grid, -1, grid))
            own = losses * ops.reshape(column, (1, grid, 1, grid))
            found.append(ops.sum(own, axis=(1, 3)) / grid)  # (K,b)
        loss = ops.mean(ops.concatenate(found))
        candidates = (images * distribution.replicas() - 1) * grid + 1
        bound = ops.log(ops.cast(candidates, loss.dtype)) - loss
        return Losses(loss, {"nce": loss}, {"loss": loss, "bound": bound})

    def flops(self, batch: int) -> int:
        """Operations of dense layers and scores, forward and for both operands' gradients."""
        grid = self.encoder.grid
        predictions = sum(min(row, self.rows) for row in range(1, grid)) * grid
        dense = grid * grid * (self.rows + 1) * self.encoder.nrkhs
        return 3 * 2 * batch * self.width * (dense + batch * predictions * grid)

    def get_config(self) -> dict:
        return {"steps": self.steps, "width": self.width}
