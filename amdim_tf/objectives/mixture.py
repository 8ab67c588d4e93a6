"""Mixture features: k antecedents in place of f1, each free to explain other locations (3.7)."""

import keras
from keras import ops

from amdim_tf.encoders.amdim import fan_in_uniform
from amdim_tf.encoders.encoder import ImageEncoder


@keras.saving.register_keras_serializable("amdim_tf")
class Spread(keras.initializers.Initializer):
    """A kernel (hidden,k,D) by fan-in, less its mean over the k components.

    Components then start apart, or else they would stay alike, and around f1: one alone is f1.
    """

    def __call__(self, shape, dtype=None):
        kernel = ops.reshape(fan_in_uniform()((shape[0], shape[1] * shape[2]), dtype), shape)
        return kernel - ops.mean(kernel, axis=1, keepdims=True)


@keras.saving.register_keras_serializable("amdim_tf")
class Mixture(keras.layers.Layer):
    """m_k: f1 (B,D) to mixture features (B,k,D) of its type, by dense -> ReLU -> dense, plus f1.

    The paper leaves the hidden width open; here it is D.

    Args:
        components: k.
    """

    def __init__(self, components, **kwargs):
        # f1 is of full precision, whatever the trunk's, and so are its components.
        super().__init__(autocast=False, **kwargs)
        self.components = components

    def build(self, input_shape):
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

    def call(self, f1):
        return f1[:, None] + ops.cast(self.offsets(self.hidden(f1)), f1.dtype)

    def get_config(self):
        return super().get_config() | {"components": self.components}


class BagOfFeatures(ImageEncoder):
    """An encoder whose `f1` (B,k*D) are the mixture features side by side, for classifiers."""

    def __init__(self, encoder, mixture, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.mixture, self.image_size = encoder, mixture, encoder.image_size
        self.nrkhs, self.use_bn = mixture.components * encoder.nrkhs, encoder.use_bn

    def trunk(self, images, training=False, views=1):
        return self.encoder.trunk(images, training=training, views=views)

    def head(self, f1, training=False, views=1):
        f1 = self.encoder.head(f1, training=training, views=views)
        return ops.reshape(self.mixture(f1), (-1, self.nrkhs))


def posterior(losses, tau):
    """q (Equation 7): which component accounts for a consequent.

    Args:
        losses: (k,b,L) float, -s_nce of each component with each consequent, in nats.
        tau: inverse temperature; towards 0 the posterior is uniform, towards infinity one-hot.

    Returns:
        (k,b,L), which sums to one over components.
    """
    return ops.exp(_log_posterior(losses, tau))


def _log_posterior(losses, tau):
    return -tau * losses - ops.logsumexp(-tau * losses, axis=0, keepdims=True)


def expectation(losses, tau):
    """The terms of Equation 6, to minimise as `loss - entropy / tau`.

    With alpha = 1/tau the posterior of Equation 7 is the best there is, so the gradient by way of
    it is zero (envelope theorem) and it may be held constant. The entropy counts once for each
    consequent.

    Args:
        losses, tau: see `posterior`.

    Returns:
        (loss, entropy): scalars, the NCE loss expected under q, and q's entropy in nats, both means
        over consequents; all of the gradient is in the first.
    """
    log_q = ops.stop_gradient(_log_posterior(losses, tau))
    q = ops.exp(log_q)
    return ops.mean(ops.sum(q * losses, axis=0)), -ops.mean(ops.sum(q * log_q, axis=0))
