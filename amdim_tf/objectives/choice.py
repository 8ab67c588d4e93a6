"""What objectives share that ask for one of several answers: a loss, and how often it is right."""

import keras
from keras import ops

from amdim_tf.objectives.objective import Losses
from amdim_tf.precision import at_least_float32
from amdim_tf.typing import Tensor

METRICS = ("loss", "pretext_accuracy")


def head(answers: int, dtype: str) -> keras.layers.Dense:
    """Features (N,D) to logits (N,answers), at first all zero: no answer is likelier than others.

    Its dtype is at least float32.

    Example:
    >>> tuple(head(4, "float32")(ops.ones((2, 8))).shape)
    (2, 4)
    """
    dtype = at_least_float32(dtype)
    return keras.layers.Dense(answers, kernel_initializer="zeros", dtype=dtype)


def mlp(width: int, hidden: int, answers: int, dtype: str) -> tuple[keras.layers.Layer, ...]:
    """A hidden layer of ReLU and a `head` for features (N,width), both built.

    Example:
    >>> [tuple(layer.kernel.shape) for layer in mlp(8, 16, 4, "float32")]
    [(8, 16), (16, 4)]
    """
    last = head(answers, dtype)
    first = keras.layers.Dense(hidden, "relu", dtype=last.dtype_policy)
    first.build((None, width))
    last.build((None, hidden))
    return first, last


def choice(logits: Tensor, answers: Tensor) -> Losses:
    """The cross entropy of `logits` (N,A) with the right `answers` (N,), a mean, in nats.

    Example:
    >>> losses = choice(ops.zeros((2, 4)), ops.array([0, 3]))
    >>> round(float(losses.total), 3), float(losses.metrics["pretext_accuracy"])  # log 4
    (1.386, 0.5)
    """
    loss = ops.mean(keras.losses.sparse_categorical_crossentropy(answers, logits, from_logits=True))
    right = ops.mean(keras.metrics.sparse_categorical_accuracy(answers, logits))
    return Losses(loss, {"pretext": loss}, dict(zip(METRICS, (loss, right), strict=True)))
