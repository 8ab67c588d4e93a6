"""Mixture features: k antecedents in place of f1, each free to explain other locations (3.7)."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from amdim_tf.encoders.amdim import fan_in_uniform
from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.typing import Tensor


@keras.saving.register_keras_serializable("amdim_tf")
class Spread(keras.initializers.Initializer):
    """A kernel (hidden,k,D) by fan-in, minus its mean over the k components.

    Components then start different, since equal ones would stay equal, and with f1 as their mean:
    a single component is f1.

    Example:
    >>> kernel = Spread()((4, 3, 8), "float32")
    >>> bool(ops.max(ops.abs(ops.mean(kernel, axis=1))) < 1e-6)
    True
    """

    def __call__(self, shape: tuple, dtype: str | None = None) -> Tensor:
        kernel = ops.reshape(fan_in_uniform()((shape[0], shape[1] * shape[2]), dtype), shape)
        return kernel - ops.mean(kernel, axis=1, keepdims=True)


@keras.saving.register_keras_serializable("amdim_tf")
class Mixture(keras.layers.Layer):
    """m_k: f1 (B,D) to mixture features (B,k,D) of the same dtype: f1 + dense(ReLU(dense(f1))).

    The paper leaves the hidden width open; here it is D.

    Args:
        components: k.
        kwargs: arguments of `keras.layers.Layer`.

    Example:
    >>> tuple(Mixture(components=3)(ops.ones((2, 8))).shape)
    (2, 3, 8)
    """

    def __init__(self, components: int, **kwargs: Any):
        # f1 has full precision whatever the trunk's, and so have its components.
        super().__init__(autocast=False, **kwargs)
        self.components = components

    def build(self, input_shape: tuple) -> None:
        width = input_shape[-1]
        self.hidden = keras.layers.Dense(
            width,
            activation="relu",
            kernel_initializer=fan_in_uniform(),
            dtype=self.dtype_policy,
            name="hidden",
        )
        self.offsets = keras.layers.EinsumDense(
            "bh,hkd->bkd",
            (self.components, width),
            bias_axes="kd",
            kernel_initializer=Spread(),
            dtype=self.dtype_policy,
            name="offsets",
        )
        self.hidden.build(input_shape)
        self.offsets.build(input_shape)

    def call(self, f1: Tensor) -> Tensor:
        return f1[:, None] + ops.cast(self.offsets(self.hidden(f1)), f1.dtype)

    def get_config(self) -> dict:
        return super().get_config() | {"components": self.components}


class BagOfFeatures(ImageEncoder):
    """An encoder with all mixture features as its `f1` (B,k*D), for classifiers.

    Args:
        encoder: the encoder that the mixture was trained with.
        mixture: its `Mixture`.
        embed_f1: what makes r1, which the mixture takes, of f1.
        kwargs: arguments of `keras.Model`.

    Example:
    >>> from amdim_tf.encoders.amdim import Encoder
    >>> encoder = Encoder(image_size=32, ndf=4, nrkhs=16, ndepth=1)
    >>> bag = BagOfFeatures(encoder, Mixture(components=3))
    >>> tuple(bag(ops.ones((2, 32, 32, 3)))["f1"].shape)
    (2, 48)
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        mixture: Mixture,
        embed_f1: Callable = lambda f1: f1,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.encoder, self.mixture, self.embed_f1 = encoder, mixture, embed_f1
        self.image_size, self.channels = encoder.image_size, encoder.channels
        self.use_bn = encoder.use_bn
        r1 = embed_f1(keras.KerasTensor((None, encoder.nrkhs)))
        self.nrkhs = mixture.components * r1.shape[-1]

    def trunk(self, images: Tensor, training: bool = False, views: int = 1) -> dict[str, Tensor]:
        return self.encoder.trunk(images, training=training, views=views)

    def head(self, f1: Tensor, training: bool = False, views: int = 1) -> Tensor:
        f1 = self.encoder.head(f1, training=training, views=views)
        return ops.reshape(self.mixture(self.embed_f1(f1)), (-1, self.nrkhs))


def posterior(losses: Tensor, tau: float) -> Tensor:
    """q (Equation 7): which component accounts for a consequent.

    Args:
        losses: (k,b,L) float, -s_nce of each component with each consequent, in nats.
        tau: inverse temperature; towards 0 the posterior is uniform, towards infinity one-hot.

    Returns:
        (k,b,L), which sums to one over components.

    Example:
    >>> q = posterior(ops.reshape(ops.array([0.0, 1.0]), (2, 1, 1)), tau=1.0)
    >>> [round(float(x), 2) for x in ops.reshape(q, -1)]
    [0.73, 0.27]
    """
    return ops.exp(_log_posterior(losses, tau))


def _log_posterior(losses, tau):
    return -tau * losses - ops.logsumexp(-tau * losses, axis=0, keepdims=True)


def expectation(losses: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """The terms of Equation 6, to minimise as `loss - entropy / tau`.

    With alpha = 1/tau the posterior of Equation 7 is optimal, so the gradient through it is zero
    (envelope theorem) and it may be held constant. The entropy counts once for each consequent.

    Args:
        losses, tau: see `posterior`.

    Returns:
        (loss, entropy): scalars, the NCE loss expected under q, and q's entropy in nats, both means
        over consequents; only the loss has a gradient.

    Example:
    >>> loss, entropy = expectation(ops.ones((2, 3, 5)), tau=1.0)
    >>> float(loss), round(float(entropy), 3)  # log 2
    (1.0, 0.693)
    """
    log_q = ops.stop_gradient(_log_posterior(losses, tau))
    q = ops.exp(log_q)
    return ops.mean(ops.sum(q * losses, axis=0)), -ops.mean(ops.sum(q * log_q, axis=0))
