"""Convolutions: one that may be a product of two matrices, and one in groups without XLA."""

from typing import Any

import keras
from keras import ops

from amdim_tf.typing import Tensor


@keras.saving.register_keras_serializable("amdim_tf")
class Convolution(keras.layers.Conv2D):
    """Keras's Conv2D without padding, faster where no pixel is in two windows.

    That holds if the stride is the width, as in 1x1, or if there is only one window. On CPUs the
    convolutions of libraries, above all their gradients, take longer than products of that size.

    Example:
    >>> Convolution(16, 2, strides=2)(keras.ops.zeros((4, 14, 14, 8))).shape
    TensorShape([4, 7, 7, 16])
    """

    def __init__(self, filters: int, kernel_size: int, strides: int = 1, **kwargs: Any):
        # Whatever Keras's own setting is: features are (B,n,n,C).
        kwargs["data_format"] = "channels_last"
        super().__init__(filters, kernel_size, strides, **kwargs)

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        (height, width, channels), (high, wide) = inputs.shape[1:], self.kernel_size
        one = (height, width) == (high, wide)
        if not one and ((high, wide) != self.strides or height % high or width % wide):
            return super().convolution_op(inputs, kernel)
        rows, columns = height // high, width // wide
        windows = ops.reshape(inputs, (-1, rows, high, columns, wide, channels))
        windows = ops.transpose(windows, (0, 1, 3, 2, 4, 5))
        windows = ops.reshape(windows, (-1, high * wide * channels))
        product = ops.matmul(windows, ops.reshape(kernel, (-1, self.filters)))
        return ops.reshape(product, (-1, rows, columns, self.filters))


@keras.saving.register_keras_serializable("amdim_tf")
class GroupedConvolution(keras.layers.Conv2D):
    """Keras's Conv2D with several groups of channels, which on CPUs would otherwise need XLA.

    A model server refuses what only XLA runs.

    Example:
    >>> GroupedConvolution(16, 3, groups=8)(keras.ops.zeros((4, 14, 14, 8))).shape
    TensorShape([4, 12, 12, 16])
    """

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        options = {
            "strides": self.strides,
            "padding": self.padding,
            "dilation_rate": self.dilation_rate,
            "data_format": "channels_last",
        }
        channels = inputs.shape[-1]
        if self.groups == channels:
            kernel = ops.reshape(kernel, (*self.kernel_size, channels, -1))
            return ops.depthwise_conv(inputs, kernel, **options)
        pairs = zip(
            ops.split(inputs, self.groups, axis=-1),
            ops.split(kernel, self.groups, axis=-1),
            strict=True,
        )
        return ops.concatenate([ops.conv(x, k, **options) for x, k in pairs], axis=-1)
