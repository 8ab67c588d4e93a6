"""InfoMax-VAE: a variational autoencoder that keeps information (Rezaabad and Vishwanath 2019)."""

import math

import keras
import tensorflow as tf
from keras import ops

from amdim_tf import distribution
from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.objectives.bounds import MovingMeans, contrast_of
from amdim_tf.objectives.draws import draw
from amdim_tf.objectives.objective import Losses, Objective
from amdim_tf.precision import at_least_float32
from amdim_tf.typing import Config, Tensor

LEAST_SIDE = 4  # of the decoder's first map


class InfomaxVae(Objective):
    """f1 gives a code z, from which a decoder makes the view again, and which tells of its view.

    The loss is that of a variational autoencoder, the reconstruction's error with unit variance and
    `beta` times the divergence of z from a normal distribution, minus `alpha` times a bound on the
    mutual information of view and z (arXiv 1912.13361, Section 3). The bound is that of
    `config.bound`: its critic is the product of a linear layer on f1 and one on z, in both
    directions, with the other images in the batch for the product of the marginals; the paper's
    permutes z. The second layer starts at zero, and NCE so at the log of the batch. Decoder, width
    of z and `alpha` are ours.

    Args:
        width: dimensions of z.
        alpha: weight of the information.
        beta: weight of the divergence.
        bound: "nce", "jsd" or "dv"; see `bounds`.

    Example:
    >>> from amdim_tf.encoders.amdim import Encoder
    >>> objective = InfomaxVae()
    >>> layers = objective.build(Encoder(image_size=32, ndf=4, nrkhs=16, ndepth=1))
    >>> embeddings = {0: ops.zeros((4, 32, 32, 3)), 1: ops.ones((4, 16))}
    >>> losses = objective.losses(embeddings, None, objective.draw(0, 0, 4))
    >>> round(float(losses.metrics["information"]), 3)  # NCE has found nothing yet
    0.0
    """

    views = 1
    least_images = 2  # a single image has no negatives
    reconstructs = True
    metrics = ("loss", "reconstruction", "divergence", "information")
    role_of_f1 = "from which the code comes"

    def __init__(self, width: int = 64, alpha: float = 10.0, beta: float = 1.0, bound: str = "nce"):
        self.width, self.alpha, self.beta, self.bound = width, alpha, beta, bound
        self.moving: MovingMeans | None = None

    @classmethod
    def of(cls, config: Config) -> "InfomaxVae":
        return cls(bound=config.bound)

    def build(self, encoder: ImageEncoder) -> dict[str, keras.layers.Layer]:
        super().build(encoder)
        dtype = at_least_float32(encoder.variable_dtype)
        self.code = keras.layers.Dense(2 * self.width, dtype=dtype)
        self.of_view = keras.layers.Dense(self.width, dtype=dtype)
        self.of_code = keras.layers.Dense(self.width, kernel_initializer="zeros", dtype=dtype)
        self.decoder = decoder(self.width, encoder.image_size, encoder.channels, dtype)
        for layer, width in (
            (self.code, encoder.nrkhs),
            (self.of_view, encoder.nrkhs),
            (self.of_code, self.width),
        ):
            layer.build((None, width))
        layers = {"vae_code": self.code, "vae_decoder": self.decoder}
        layers |= {"vae_of_view": self.of_view, "vae_of_code": self.of_code}
        if self.bound == "dv":
            self.moving = MovingMeans(1, name="moving_means", dtype=dtype)
            layers["moving_means"] = self.moving
        return layers

    def draw(self, seed: int, step: Tensor, batch: int) -> Tensor:
        """(batch,width) from a normal distribution."""
        uniform = draw(seed, step, batch, (self.width,))
        return tf.math.ndtri(tf.clip_by_value(uniform, 1e-6, 1 - 1e-6))

    def losses(self, embeddings: dict[int, Tensor], labels: Tensor, draws: Tensor) -> Losses:
        f1, view = embeddings[1], embeddings[0]
        mean, logs = ops.split(self.code(f1), 2, axis=1)
        z = mean + ops.exp(logs / 2) * ops.cast(draws, mean.dtype)
        error = ops.square(self.decoder(z, training=True) - ops.cast(view, mean.dtype))
        reconstruction = ops.mean(ops.sum(error, axis=(1, 2, 3))) / 2
        terms = ops.exp(logs) + ops.square(mean) - 1 - logs
        divergence = ops.mean(ops.sum(terms, axis=1)) / 2
        information = -self._missing(self.of_view(f1), self.of_code(z))
        total = reconstruction + self.beta * divergence - self.alpha * information
        if self.bound == "nce":
            information += ops.log(
                ops.cast(ops.shape(f1)[0] * distribution.replicas(), information.dtype)
            )
        names = ("reconstruction", "divergence", "information")
        values = dict(zip(names, (reconstruction, divergence, information), strict=True))
        return Losses(total, values, {"loss": total} | values)

    def _missing(self, ours, theirs):
        """The loss of the bound between (b,D) of views and of their codes, in both directions."""
        first = distribution.first_image(ops.shape(ours)[0])
        contrast = contrast_of(self.bound, self.moving and self.moving.logs)
        losses = []
        for one, other in ((ours, theirs), (theirs, ours)):
            candidates = distribution.gather(other)[:, None]
            found, _ = contrast(one[None], candidates, regulariser=0.0, first=first)
            losses.append(ops.mean(found))
        if self.moving:
            self.moving.update(distribution.all_mean(contrast.ratios()))
        return (losses[0] + losses[1]) / 2

    def flops(self, batch: int) -> int:
        """Operations of dense layers and scores, forward and for both operands' gradients."""
        dense = self.code, self.of_view, self.of_code, self.decoder.layers[0]
        weights = sum(math.prod(layer.kernel.shape) for layer in dense)
        return 3 * 2 * batch * (weights + 2 * batch * self.width)

    def get_config(self) -> dict:
        return {name: getattr(self, name) for name in ("width", "alpha", "beta", "bound")}


def decoder(width: int, side: int, channels: int, dtype: str) -> keras.Sequential:
    """Codes (B,width) to images (B,side,side,channels): transposed convolutions that double a map.

    Example:
    >>> tuple(decoder(8, 32, 3, "float32")(ops.ones((2, 8))).shape)
    (2, 32, 32, 3)
    """
    first, doublings = side, 0
    while first % 2 == 0 and first // 2 >= LEAST_SIDE:
        first, doublings = first // 2, doublings + 1
    widths = [max(32, 256 >> i) for i in range(doublings + 1)]
    layers = [keras.Input((width,))]
    layers += [keras.layers.Dense(math.prod((first, first, widths[0])), "relu", dtype=dtype)]
    layers += [keras.layers.Reshape((first, first, widths[0]), dtype=dtype)]
    for filters in widths[1:]:
        layers += [
            keras.layers.Conv2DTranspose(filters, 4, 2, "same", activation="relu", dtype=dtype)
        ]
    layers += [keras.layers.Conv2D(channels, 3, padding="same", dtype=dtype)]
    return keras.Sequential(layers)
