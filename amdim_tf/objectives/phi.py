"""phi_n, one for each scale: features become embeddings that a dot product can score (3.3).

phi_1 is the identity where f1 has the dimensions of the embeddings, as AMDIM's encoder makes it:
f1 is then both what the objective trains and what is used afterwards.
"""

from typing import Any

import keras
from keras import ops

from amdim_tf.encoders.amdim import bias_uniform, fan_in_uniform
from amdim_tf.encoders.batch_norm import BatchNorm
from amdim_tf.encoders.convolution import Convolution
from amdim_tf.encoders.relu import relu
from amdim_tf.precision import at_least_float32
from amdim_tf.typing import Tensor


@keras.saving.register_keras_serializable("amdim_tf")
class NearIdentity(keras.initializers.Initializer):
    """A 1x1 kernel (1,1,C,nrkhs) with ones on its diagonal and uniform +-0.01 elsewhere.

    The embeddings then start as the features themselves, not as a random projection of them.

    Example:
    >>> kernel = NearIdentity()((1, 1, 2, 3), "float32")
    >>> bool(ops.max(ops.abs(kernel[0, 0] - ops.eye(2, 3))) <= 0.01)
    True
    """

    def __call__(self, shape: tuple, dtype: str | None = None) -> Tensor:
        noise = keras.initializers.RandomUniform(-0.01, 0.01)(shape[-2:], dtype)
        kernel = ops.where(ops.eye(*shape[-2:], dtype="bool"), ops.ones_like(noise), noise)
        return ops.reshape(kernel, shape)


@keras.saving.register_keras_serializable("amdim_tf")
class Phi(keras.layers.Layer):
    """phi_n: features (B,n,n,C) to embeddings (B,n,n,nrkhs).

    conv 1x1 -> ReLU -> conv 1x1, plus a 1x1 shortcut, then batch norm.

    Args:
        nrkhs: dimensions of the embedding.
        use_bn: whether a second batch norm follows the first convolution.
        kwargs: arguments of `keras.layers.Layer`.

    Example:
    >>> tuple(Phi(nrkhs=16)(ops.ones((2, 5, 5, 8))).shape)
    (2, 5, 5, 16)
    """

    def __init__(self, nrkhs: int, use_bn: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.nrkhs, self.use_bn = nrkhs, use_bn

    def build(self, input_shape: tuple) -> None:
        width = input_shape[-1]
        hidden_shape = (*input_shape[:-1], self.nrkhs)

        def conv(name, shape, kernel, bias=None):
            layer = Convolution(
                self.nrkhs,
                1,
                use_bias=bias is not None,
                kernel_initializer=kernel,
                bias_initializer=bias,
                dtype=self.dtype_policy,
                name=name,
            )
            layer.build(shape)
            return layer

        def batch_norm(name, dtype):
            layer = BatchNorm(dtype=dtype, name=name)
            layer.build(hidden_shape)
            return layer

        self.conv1 = conv("conv1", input_shape, fan_in_uniform())
        self.bn_hidden = batch_norm("bn_hidden", self.dtype_policy) if self.use_bn else None
        self.conv2 = conv("conv2", hidden_shape, "zeros")
        # In fewer dimensions the features have no identity.
        kernel = NearIdentity() if width <= self.nrkhs else fan_in_uniform()
        self.shortcut = conv("shortcut", input_shape, kernel, bias_uniform(width))
        self.bn = batch_norm("bn", at_least_float32(self.variable_dtype))

    def project(self, x: Tensor, training: bool = False, views: int = 1) -> Tensor:
        """phi without its last batch norm; unless `use_bn`, each image by itself."""
        hidden = self.conv1(x)
        if self.bn_hidden:
            hidden = self.bn_hidden(hidden, training=training, views=views)
        return self.conv2(relu(hidden, training)) + self.shortcut(x)

    def call(self, x: Tensor, training: bool = False, views: int = 1) -> Tensor:
        return self.bn(self.project(x, training, views), training=training, views=views)

    def get_config(self) -> dict:
        return super().get_config() | {"nrkhs": self.nrkhs, "use_bn": self.use_bn}
