"""CMC: an image's lightness and its colour pick each other (Tian et al. 2019, arXiv 1906.05849)."""

import keras
from keras import ops

from amdim_tf import distribution
from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.encoders.lab import LabEncoder
from amdim_tf.errors import InputError
from amdim_tf.objectives.nce import nce
from amdim_tf.objectives.objective import Losses, Objective
from amdim_tf.precision import at_least_float32
from amdim_tf.typing import Tensor


class Cmc(Objective):
    """NCE between f1 of lightness and f1 of colour, in both directions.

    Linear layers embed both in 128 dimensions, at length 1, with the temperature 0.07 of the
    paper's code (github.com/HobbitLong/CMC). The negatives are the other images in the batch, where
    the paper takes 16,384 from a memory bank.

    Args:
        width: dimensions of the embeddings.
        temperature: what cosines are divided by.

    Example:
    >>> from amdim_tf.encoders.amdim import Encoder
    >>> lightness, colour = (Encoder(ndf=4, nrkhs=16, ndepth=1, channels=c) for c in (1, 2))
    >>> objective = Cmc()
    >>> sorted(objective.build(LabEncoder(lightness, colour)))
    ['cmc_colour', 'cmc_lightness']
    >>> losses = objective.losses({1: ops.ones((4, 32))}, None, ())
    >>> round(float(losses.total), 3)  # log 4, if all images are alike
    1.386
    """

    views = 1
    least_images = 2  # a single image has no negatives
    metrics = ("loss", "bound")
    role_of_f1 = "whose halves pick each other"

    def __init__(self, width: int = 128, temperature: float = 0.07):
        self.width, self.temperature = width, temperature

    def build(self, encoder: ImageEncoder) -> dict[str, keras.layers.Layer]:
        super().build(encoder)
        if not isinstance(encoder, LabEncoder):
            raise InputError("lab must be True if the objective is cmc. Received: lab=False")
        dtype = at_least_float32(encoder.variable_dtype)
        self.heads = [keras.layers.Dense(self.width, dtype=dtype) for _ in range(2)]
        for head, inner in zip(self.heads, (encoder.lightness, encoder.colour), strict=True):
            head.build((None, inner.nrkhs))
        return dict(zip(("cmc_lightness", "cmc_colour"), self.heads, strict=True))

    def losses(self, embeddings: dict[int, Tensor], labels: Tensor, draws: Tensor) -> Losses:
        halves = ops.split(embeddings[1], [self.encoder.lightness.nrkhs], axis=-1)
        pairs = zip(self.heads, halves, strict=True)
        embedded = [ops.normalize(head(half), axis=-1) for head, half in pairs]
        images = ops.shape(embedded[0])[0]
        first, losses = distribution.first_image(images), []
        for ours, theirs in (embedded, embedded[::-1]):
            # `nce` divides scores by the root of the width.
            antecedents = ours[None] * (self.width**0.5 / self.temperature)
            candidates = distribution.gather(theirs)[:, None]
            found, _ = nce(antecedents, candidates, clip=None, regulariser=0.0, first=first)
            losses.append(ops.mean(found))
        loss = (losses[0] + losses[1]) / 2
        candidates = ops.cast(images * distribution.replicas(), loss.dtype)
        return Losses(loss, {"nce": loss}, {"loss": loss, "bound": ops.log(candidates) - loss})

    def flops(self, batch: int) -> int:
        """Operations of the heads and of the scores in both directions, and of their gradients."""
        return 3 * 2 * batch * self.width * (self.encoder.nrkhs + 2 * batch)

    def get_config(self) -> dict:
        return {"width": self.width, "temperature": self.temperature}
