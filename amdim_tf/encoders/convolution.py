"""Convolutions, of which those whose windows do not overlap are products of two matrices."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("amdim_tf")
class Convolution(keras.layers.Conv2D):
    """Keras's Conv2D without padding, faster where no pixel is in two windows.

    So it is if the stride is the width, as in 1x1, or if there is but one window. On CPUs the
    convolutions of libraries, above all their gradients, take longer than products of that size.
    """

    def __init__(self, filters, kernel_size, strides=1, **kwargs):
        # Whatever Keras's own setting is: features are (B,n,n,C).
        kwargs["data_format"] = "channels_last"
        super().__init__(filters, kernel_size, strides, **kwargs)

    def convolution_op(self, inputs, kernel):
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
