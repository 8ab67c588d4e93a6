"""Linear and MLP classifiers on f1: they measure the representation and never shape it (4)."""

import keras
from keras import ops

from amdim_tf.batch_norm import BatchNorm
from amdim_tf.encoder import bias_uniform, fan_in_uniform

NAMES = ("linear", "mlp")
HIDDEN_UNITS = 1024


@keras.saving.register_keras_serializable("amdim_tf")
class Probes(keras.layers.Layer):
    """Features (B,D) to logits {"linear": (B,classes), "mlp": (B,classes)}.

    The MLP is dropout, dense, batch norm, ReLU, dropout, dense, as in the reference.

    Args:
        classes: number of classes; without any there are no logits.
    """

    def __init__(self, classes, **kwargs):
        super().__init__(**kwargs)
        self.classes = classes

    def build(self, input_shape):
        if not self.classes:
            return

        def dense(units, fan_in, use_bias=True):
            return keras.layers.Dense(
                units,
                use_bias=use_bias,
                kernel_initializer=fan_in_uniform(),
                bias_initializer=bias_uniform(fan_in),
            )

        width = input_shape[-1]
        self.linear = dense(self.classes, width)
        self.mlp = keras.Sequential(
            [
                keras.layers.Dropout(0.2),
                dense(HIDDEN_UNITS, width, use_bias=False),
                BatchNorm(),
                keras.layers.ReLU(),
                keras.layers.Dropout(0.2),
                dense(self.classes, HIDDEN_UNITS),
            ]
        )
        self.linear.build(input_shape)
        self.mlp.build(input_shape)

    def call(self, features, training=False):
        if not self.classes:
            return {}
        return {"linear": self.linear(features), "mlp": self.mlp(features, training=training)}

    def get_config(self):
        return super().get_config() | {"classes": self.classes}


def probe_losses(labels, logits):
    """The `probe_loss` of each classifier of `logits`, {name: scalar}."""
    return {name: probe_loss(labels, values) for name, values in logits.items()}


def probe_loss(labels, logits):
    """Cross entropy of softly clipped `logits` (B,classes) plus a penalty on their square; scalar.

    The clip 10*tanh(logits/10) and the penalty's weight 1e-3 are the reference's. Images of label
    -1, of no known class, do not count in the cross entropy.
    """
    logits = ops.cast(logits, "float32")
    known = ops.cast(labels >= 0, "float32")
    clipped = 10 * ops.tanh(logits / 10)
    entropy = keras.losses.sparse_categorical_crossentropy(
        ops.maximum(labels, 0), clipped, from_logits=True
    )
    entropy = ops.sum(known * entropy) / ops.maximum(ops.sum(known), 1.0)
    return entropy + 1e-3 * ops.mean(ops.square(logits))
