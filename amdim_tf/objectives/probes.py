"""Linear and MLP classifiers on f1: they measure the representation and never shape it (4)."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from amdim_tf import distribution
from amdim_tf.encoders.amdim import bias_uniform, fan_in_uniform
from amdim_tf.encoders.batch_norm import BatchNorm
from amdim_tf.errors import InputError
from amdim_tf.typing import Tensor

NAMES = ("linear", "mlp")
HIDDEN_UNITS = 1024
DROPOUT = 0.2


@keras.saving.register_keras_serializable("amdim_tf")
class Probes(keras.layers.Layer):
    """Features (B,D) to logits {"linear": (B,classes), "mlp": (B,classes)}.

    The MLP is dropout, dense, batch norm, ReLU, dropout, dense, as in the reference.

    Args:
        classes: number of classes; 0 for no logits.
        kwargs: arguments of `keras.layers.Layer`.

    Attributes:
        dropped_widths: the width of each dropout's input.

    Example:
    >>> probes = Probes(classes=10)
    >>> {name: tuple(x.shape) for name, x in probes(ops.ones((4, 16))).items()}
    {'linear': (4, 10), 'mlp': (4, 10)}
    """

    def __init__(self, classes: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.classes = classes
        self.dropped_widths: tuple[int, ...] = ()

    def build(self, input_shape: tuple) -> None:
        if not self.classes:
            return
        self.dropped_widths = input_shape[-1], HIDDEN_UNITS

        def dense(units, fan_in, use_bias=True):
            return keras.layers.Dense(
                units,
                use_bias=use_bias,
                kernel_initializer=fan_in_uniform(),
                bias_initializer=bias_uniform(fan_in),
                dtype=self.dtype_policy,
            )

        width = input_shape[-1]
        self.linear = dense(self.classes, width)
        self.mlp = keras.Sequential(
            [
                keras.layers.Dropout(DROPOUT, dtype=self.dtype_policy),
                dense(HIDDEN_UNITS, width, use_bias=False),
                BatchNorm(dtype=self.dtype_policy),
                keras.layers.ReLU(dtype=self.dtype_policy),
                keras.layers.Dropout(DROPOUT, dtype=self.dtype_policy),
                dense(self.classes, HIDDEN_UNITS),
            ]
        )
        self.linear.build(input_shape)
        self.mlp.build(input_shape)

    def call(
        self, features: Tensor, training: bool = False, draws: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Logits of `features`.

        Args:
            draws: random numbers (B,width) in [0, 1), for each of `dropped_widths`; dropout in
                training uses them. By default Keras's own generator draws.
        """
        if not self.classes:
            return {}
        hidden, remaining = features, iter(draws or ())
        for layer in self.mlp.layers:
            if draws and training and isinstance(layer, keras.layers.Dropout):
                hidden = ops.where(next(remaining) >= layer.rate, hidden / (1 - layer.rate), 0)
            elif isinstance(layer, (keras.layers.Dropout, BatchNorm)):
                hidden = layer(hidden, training=training)
            else:
                hidden = layer(hidden)
        return {"linear": self.linear(features), "mlp": hidden}

    def draw(self, seed: int, step: Tensor, batch: int, views: int) -> list[Tensor]:
        """[(views*batch,D), ...] in [0, 1) for each dropout, view 1 first; see `call`.

        An image of the global batch gets the same ones for any number of replicas.

        Args:
            step: number of the batch, an integer variable.
            batch: number of images of this replica.
        """
        pair = tf.stack([tf.constant(seed, tf.int64), tf.cast(step.value, tf.int64)])
        first, images = distribution.first_image(batch), batch * distribution.replicas()
        drawn = []
        for number, width in enumerate(self.dropped_widths):
            own = tf.random.experimental.stateless_fold_in(pair, number)
            draws = tf.random.stateless_uniform((views, images, width), own, alg="philox")
            drawn.append(tf.reshape(draws[:, first : first + batch], (-1, width)))
        return drawn

    def get_config(self) -> dict:
        return super().get_config() | {"classes": self.classes}


def probe_losses(labels: Tensor, logits: dict[str, Tensor]) -> dict[str, Tensor]:
    """The `probe_loss` of each classifier in `logits`: {name: scalar}.

    Example:
    >>> losses = probe_losses(ops.array([0, 1]), {"linear": ops.zeros((2, 4))})
    >>> {name: round(float(loss), 3) for name, loss in losses.items()}  # log 4
    {'linear': 1.386}
    """
    return {name: probe_loss(labels, values) for name, values in logits.items()}


def probe_loss(labels: Tensor, logits: Tensor) -> Tensor:
    """Cross entropy of softly clipped `logits` (B,classes) plus a penalty on their square; scalar.

    The clip 10*tanh(logits/10) and the penalty's weight 1e-3 are the reference's. Images with the
    label -1, whose class is unknown, do not count in the cross entropy.

    Example:
    >>> round(float(probe_loss(ops.array([0, -1]), ops.zeros((2, 4)))), 3)
    1.386
    """
    known = ops.cast(labels >= 0, "float32")
    entropy, penalty = image_losses(labels, logits)
    return ops.sum(known * entropy) / ops.maximum(ops.sum(known), 1.0) + ops.mean(penalty)


def image_losses(labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy (B,) and penalty (B,) of each image, see `probe_loss`.

    Raises:
        InputError: labels (B,1), which would be compared with every image of the batch.

    Example:
    >>> entropy, penalty = image_losses(ops.array([0, 1, 2]), ops.zeros((3, 4)))
    >>> tuple(entropy.shape), tuple(penalty.shape)
    ((3,), (3,))
    """
    if len(labels.shape) != 1:
        raise InputError(f"Labels must have the shape (B,). Received: {tuple(labels.shape)}")
    logits = ops.cast(logits, "float32")
    clipped = 10 * ops.tanh(logits / 10)
    entropy = keras.losses.sparse_categorical_crossentropy(
        ops.maximum(labels, 0), clipped, from_logits=True
    )
    return entropy, 1e-3 * ops.mean(ops.square(logits), axis=-1)
