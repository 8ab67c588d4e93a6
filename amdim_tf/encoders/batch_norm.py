"""Batch normalisation that normalises each view of a batch by itself."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from amdim_tf.distribution import all_mean, replicas
from amdim_tf.precision import at_least_float32
from amdim_tf.typing import Tensor


class _Batch(threading.local):  # replicas are traced by threads of their own
    views = 1


_batch = _Batch()


@contextlib.contextmanager
def views_in_batch(views: int) -> Iterator[None]:
    """Tells the `BatchNorm` layers of models that pass no `views` on how many a batch holds.

    Example:
    >>> with views_in_batch(2):
    ...     y = BatchNorm()(keras.ops.ones((8, 16)), training=True)
    """
    before, _batch.views = _batch.views, views
    try:
        yield
    finally:
        _batch.views = before


def _mean(x):
    """The mean (V,1,...,1,C) of `x` (V,...,C) over all axes but the first and the last."""
    return ops.mean(x, range(1, x.ndim - 1), keepdims=True)


def _normalised(x, gamma, beta, centred, scale, rows, alone):
    """`centred` * gamma * `scale` + beta, with the gradient of statistics that are those of `x`.

    If `alone`, they are constants. `rows` is the number of rows of a view on this replica. The
    gradient is by hand: each operation is a pass over x, and TensorFlow's own takes nearly twice as
    many.
    """

    @ops.custom_gradient
    def compute(x, gamma, beta):
        weight = gamma * scale

        def gradients(upstream):
            axes = range(x.ndim - 1)
            slope = _mean(upstream * centred)
            to_gamma = rows * ops.sum(slope * scale, axes)
            slope = ops.where(alone, 0, ops.square(scale) * all_mean(slope))
            tilted = upstream - slope * centred
            # That of `upstream`, too, since `centred` has none. Of `tilted` it leaves less rounding
            # noise to what comes before, such as a bias, whose gradient is zero.
            level = _mean(tilted)
            to_beta = rows * ops.sum(level, axes)
            level = ops.where(alone, 0, all_mean(level))
            return weight * (tilted - level), to_gamma, to_beta

        return weight * centred + beta, gradients

    return compute(x, gamma, beta)


@keras.saving.register_keras_serializable("amdim_tf")
class BatchNorm(keras.layers.BatchNormalization):
    """Batch norm over (B,...,C) whose training statistics are taken per view.

    The trunk runs on all views as one batch, the first half view 1 and the second half view 2.
    Each view is normalised with its own statistics, and each updates the running averages once,
    in order, as if the layer had been called once per view.

    A single row has no variance: it is normalised by the running averages, which stay as they are.
    Statistics are those of the global batch, whatever the number of replicas, and never less
    precise than float32. Two details follow the reference rather than Keras: the running variance
    is the unbiased one, and epsilon is 1e-5.

    Example:
    >>> layer = BatchNorm()
    >>> layer(keras.ops.ones((8, 5, 5, 16)), training=True, views=2).shape
    TensorShape([8, 5, 5, 16])
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs: Any):
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)

    def call(
        self,
        inputs: Tensor,
        training: bool = False,
        views: int | None = None,
        mask: None = None,
    ) -> Tensor:
        """Normalises `inputs` (V*B,...,C); `views` is V, by default that of `views_in_batch`."""
        several = views or _batch.views
        if not (training and self.trainable):
            return super().call(inputs, training=False)
        dtype = at_least_float32(inputs.dtype)
        x = ops.reshape(ops.cast(inputs, dtype), (several, -1, *inputs.shape[1:]))
        rows = ops.cast(ops.size(x[0]) / inputs.shape[-1], dtype)
        count = replicas() * rows
        alone = count < 2
        fixed = ops.stop_gradient(x)
        mean = all_mean(_mean(fixed))
        mean = ops.where(alone, self.moving_mean, mean)
        centred = fixed - mean
        variance = all_mean(_mean(ops.square(centred)))
        variance = ops.where(alone, self.moving_variance, variance)
        for view in range(several):
            unbiased = variance[view] * count / ops.maximum(count - 1, 1)
            self._update(self.moving_mean, mean[view])
            self._update(self.moving_variance, unbiased)
        scale = ops.rsqrt(variance + self.epsilon)
        gamma = self.gamma if self.scale else ops.ones(x.shape[-1:], dtype)
        beta = self.beta if self.center else ops.zeros(x.shape[-1:], dtype)
        gamma, beta = ops.cast(gamma, dtype), ops.cast(beta, dtype)
        x = _normalised(x, gamma, beta, centred, scale, rows, alone)
        return ops.cast(ops.reshape(x, ops.shape(inputs)), inputs.dtype)

    def _update(self, average, value):
        value = ops.reshape(value, average.shape)
        average.assign(self.momentum * average + (1 - self.momentum) * value)
