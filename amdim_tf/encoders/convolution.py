"""Convolutions: by products of matrices where these are faster, and in groups without XLA."""

from typing import Any

import keras
import numpy as np
from keras import ops

from amdim_tf import distribution
from amdim_tf.typing import Tensor


@keras.saving.register_keras_serializable("amdim_tf")
class Convolution(keras.layers.Conv2D):
    """Keras's Conv2D without padding, by products of matrices where these are faster.

    On CPUs the convolutions of libraries, above all their gradients, take longer than products of
    that size. Where no pixel is in two windows, all is a product: if the stride is the width, as in
    1x1, or if there is only one window. Where windows overlap, see `by_pixel`.

    Example:
    >>> Convolution(16, 2, strides=2)(keras.ops.zeros((4, 14, 14, 8))).shape
    TensorShape([4, 7, 7, 16])
    """

    def __init__(self, filters: int, kernel_size: int, strides: int = 1, **kwargs: Any):
        # Whatever Keras's own setting is: features are (B,n,n,C).
        kwargs["data_format"] = "channels_last"
        super().__init__(filters, kernel_size, strides, **kwargs)

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        # A tensor: gradients of one's own take no variables.
        kernel = ops.cast(self.kernel, self.compute_dtype)
        outputs = self.convolution_op(inputs, kernel, training)
        return self.activation(outputs + self.bias if self.use_bias else outputs)

    def convolution_op(self, inputs: Tensor, kernel: Tensor, training: bool = False) -> Tensor:
        if not self._apart(inputs.shape):
            # Only in training: who loads an exported graph has no such gradient. Slices with
            # strides take longer than they save.
            if training and self.strides == (1, 1) and distribution.on_cpus():
                return by_pixel(inputs, kernel)
            return super().convolution_op(inputs, kernel)
        (height, width, channels), (high, wide) = inputs.shape[1:], self.kernel_size
        rows, columns = height // high, width // wide
        windows = inputs
        if high > 1 and columns > 1:  # else the pixels of a window are neighbours already
            windows = ops.reshape(inputs, (-1, rows, high, columns, wide, channels))
            windows = ops.transpose(windows, (0, 1, 3, 2, 4, 5))
        windows = ops.reshape(windows, (-1, high * wide * channels))
        product = ops.matmul(windows, ops.reshape(kernel, (-1, self.filters)))
        return ops.reshape(product, (-1, rows, columns, self.filters))

    def _apart(self, shape):
        """Whether no pixel of inputs of this `shape` is in two windows, or in none."""
        (height, width), (high, wide) = shape[1:3], self.kernel_size
        one = (height, width) == (high, wide)
        return one or ((high, wide) == self.strides and not (height % high or width % wide))


def by_pixel(inputs: Tensor, kernel: Tensor) -> Tensor:
    """The convolution of windows that overlap; its kernel's gradient is a product for each pixel.

    A pixel of the kernel meets the same slice of the inputs in all images, without a copy of the
    windows. That takes less time than the libraries' own gradient. It needs TensorFlow.

    Args:
        inputs: (B,H,W,C).
        kernel: (h,w,C,F), at most as large as the inputs.

    Returns:
        (B,H-h+1,W-w+1,F).

    Example:
    >>> by_pixel(keras.ops.ones((2, 7, 7, 8)), keras.ops.ones((3, 3, 8, 4))).shape
    TensorShape([2, 5, 5, 4])
    """

    @ops.custom_gradient
    def convolve(inputs, kernel):
        def gradients(upstream):
            rows, columns, filters = upstream.shape[1:]
            flat = ops.reshape(upstream, (-1, filters))
            pixels = []
            for i, j in np.ndindex(*kernel.shape[:2]):
                # Memory for one slice at a time.
                with distribution.tf.control_dependencies(pixels[-1:]):
                    seen = inputs[:, i : i + rows, j : j + columns]
                    seen = ops.transpose(ops.reshape(seen, (-1, seen.shape[-1])))
                    pixels.append(ops.matmul(seen, flat))
            of_inputs = ops.conv_transpose(upstream, kernel, data_format="channels_last")
            return of_inputs, ops.reshape(ops.stack(pixels), kernel.shape)

        return ops.conv(inputs, kernel, data_format="channels_last"), gradients

    return convolve(inputs, kernel)


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
