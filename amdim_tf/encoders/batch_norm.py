"""Batch normalisation that sees the views of a batch apart."""

import keras
from keras import ops

from amdim_tf.distribution import all_mean, replicas


@keras.saving.register_keras_serializable("amdim_tf")
class BatchNorm(keras.layers.BatchNormalization):
    """Batch norm over (B,...,C) whose training statistics are taken per view.

    The trunk runs on all views as one batch, the first half view 1 and the second half view 2.
    Each view is normalised with its own statistics, and each updates the running averages once,
    in order, as if the layer had been called once per view.

    One row alone has no variance: it is normalised by the running averages, and these stay.
    Statistics are those of the global batch, whatever the number of replicas, and never of less
    precision than float32. Two details follow the reference rather than Keras: the running variance
    is the unbiased one, and epsilon is 1e-5.

    Example:
    >>> layer = BatchNorm()
    >>> layer(keras.ops.ones((8, 5, 5, 16)), training=True, views=2).shape
    TensorShape([8, 5, 5, 16])
    """

    def __init__(self, momentum=0.9, epsilon=1e-5, **kwargs):
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)

    def call(self, inputs, training=False, views=1):
        """Normalises `inputs` (V*B,...,C); `views` is V, the number of equal parts of the batch."""
        if not (training and self.trainable):
            return super().call(inputs, training=False)
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        x = ops.reshape(ops.cast(inputs, dtype), (views, -1, *inputs.shape[1:]))
        axes = list(range(1, x.ndim - 1))
        count = ops.cast(replicas() * ops.size(x[0]) / inputs.shape[-1], dtype)
        alone = count < 2
        mean = all_mean(ops.mean(x, axes, keepdims=True))
        mean = ops.where(alone, self.moving_mean, mean)
        x = x - mean
        variance = all_mean(ops.mean(ops.square(x), axes, keepdims=True))
        variance = ops.where(alone, self.moving_variance, variance)
        for view in range(views):
            unbiased = variance[view] * count / ops.maximum(count - 1, 1)
            self._update(self.moving_mean, mean[view])
            self._update(self.moving_variance, unbiased)
        x = x * (self.gamma * ops.rsqrt(variance + self.epsilon)) + self.beta
        return ops.cast(ops.reshape(x, ops.shape(inputs)), inputs.dtype)

    def _update(self, average, value):
        value = ops.reshape(value, average.shape)
        average.assign(self.momentum * average + (1 - self.momentum) * value)
