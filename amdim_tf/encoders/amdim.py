"""The encoder: an image becomes f1, f5 and f7, whose locations see little of each other (3.6).

Nothing is padded, so a location of f7 depends only on its own patch of the image, and the large
receptive fields that would make the prediction of f7 from f1 trivial do not arise.
"""

from typing import Any

import keras
from keras import ops

from amdim_tf.encoders.batch_norm import BatchNorm
from amdim_tf.encoders.convolution import Convolution
from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.encoders.relu import relu
from amdim_tf.errors import InputError
from amdim_tf.precision import at_least_float32
from amdim_tf.typing import Tensor

IMAGE_SIZES = (32, 64, 128, 256)


def fan_in_uniform() -> keras.Initializer:
    """The reference's initial kernel: uniform within 1/sqrt(fan_in).

    Each layer needs its own: a shared one would give layers of the same shape the same weights.

    Example:
    >>> bool(keras.ops.max(keras.ops.abs(fan_in_uniform()((100, 8)))) <= 0.1)
    True
    """
    return keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")


def bias_uniform(fan_in: int) -> keras.Initializer:
    """The reference's initial bias: uniform within 1/sqrt(`fan_in`).

    Example:
    >>> bool(keras.ops.max(keras.ops.abs(bias_uniform(100)((8,)))) <= 0.1)
    True
    """
    return keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5)


@keras.saving.register_keras_serializable("amdim_tf")
class InputConv(keras.layers.Layer):
    """Convolution with bias and ReLU, over an input with a reflected border of `reflect` pixels.

    Example:
    >>> InputConv(filters=8, width=5, stride=2, reflect=2)(keras.ops.zeros((4, 128, 128, 3))).shape
    TensorShape([4, 64, 64, 8])
    """

    def __init__(self, filters: int, width: int, stride: int = 1, reflect: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters, self.width, self.stride, self.reflect = filters, width, stride, reflect

    def build(self, input_shape: tuple) -> None:
        self.conv = keras.layers.Conv2D(
            self.filters,
            self.width,
            self.stride,
            activation="relu",
            kernel_initializer=fan_in_uniform(),
            bias_initializer=bias_uniform(self.width**2 * input_shape[-1]),
            data_format="channels_last",
            dtype=self.dtype_policy,
            name="conv",
        )
        self.conv.build(input_shape)

    def call(self, x: Tensor) -> Tensor:
        if self.reflect:
            border = (self.reflect, self.reflect)
            x = ops.pad(x, ((0, 0), border, border, (0, 0)), mode="reflect")
        return self.conv(x)

    def get_config(self) -> dict:
        fields = ("filters", "width", "stride", "reflect")
        return super().get_config() | {field: getattr(self, field) for field in fields}


@keras.saving.register_keras_serializable("amdim_tf")
class ResidualLayer(keras.layers.Layer):
    """conv width/stride -> ReLU -> conv 1x1, plus the mean-pooled input, zero-padded in channels.

    Maps (B,H,W,C) to (B,H',W',filters) with H' = (H - width) // stride + 1; C must not exceed
    `filters`. The second convolution starts at zero, so the layer starts as its pooled input.

    Args:
        filters: output channels.
        width: that of the first convolution and of the pooling, in pixels of the input.
        stride: that of both.
        use_bn: batch norm after the first convolution.

    Example:
    >>> ResidualLayer(filters=16, width=4, stride=2)(keras.ops.zeros((4, 30, 30, 8))).shape
    TensorShape([4, 14, 14, 16])
    """

    def __init__(
        self, filters: int, width: int, stride: int = 1, use_bn: bool = False, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.filters, self.width, self.stride, self.use_bn = filters, width, stride, use_bn

    def build(self, input_shape: tuple) -> None:
        channels = input_shape[-1]
        if channels > self.filters:
            raise InputError(
                f"A residual layer cannot reduce its channels: its input has {channels}, "
                f"filters must be at least that. Received: filters={self.filters}"
            )
        options = {"use_bias": False, "dtype": self.dtype_policy}
        self.conv1 = Convolution(
            self.filters,
            self.width,
            self.stride,
            kernel_initializer=fan_in_uniform(),
            name="conv1",
            **options,
        )
        self.bn = BatchNorm(dtype=self.dtype_policy, name="bn") if self.use_bn else None
        self.conv2 = Convolution(
            self.filters, 1, kernel_initializer="zeros", name="conv2", **options
        )
        self.growth = self.filters - channels
        self.conv1.build(input_shape)
        hidden_shape = self.conv1.compute_output_shape(input_shape)
        if self.bn:
            self.bn.build(hidden_shape)
        self.conv2.build(hidden_shape)

    def call(self, x: Tensor, training: bool = False, views: int = 1) -> Tensor:
        hidden = self.conv1(x, training=training)
        if self.bn:
            hidden = self.bn(hidden, training=training, views=views)
        if self.width > 1:
            x = ops.average_pool(x, self.width, self.stride, "valid", "channels_last")
        if self.growth:
            x = ops.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.growth)))
        return self.conv2(relu(hidden, training)) + x

    def get_config(self) -> dict:
        fields = ("filters", "width", "stride", "use_bn")
        return super().get_config() | {field: getattr(self, field) for field in fields}


@keras.saving.register_keras_serializable("amdim_tf")
class Block(keras.layers.Layer):
    """A residual layer width/stride followed by `depth` - 1 of width 1, at the same resolution.

    Example:
    >>> block = Block(filters=16, width=4, stride=2, depth=3)
    >>> block(keras.ops.zeros((4, 30, 30, 8))).shape
    TensorShape([4, 14, 14, 16])
    """

    def __init__(
        self,
        filters: int,
        width: int,
        stride: int,
        depth: int,
        use_bn: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.filters, self.width, self.stride = filters, width, stride
        self.depth, self.use_bn = depth, use_bn
        sizes = [(width, stride)] + [(1, 1)] * (depth - 1)
        self.residual = [
            ResidualLayer(filters, w, s, use_bn, dtype=self.dtype_policy, name=f"residual{i}")
            for i, (w, s) in enumerate(sizes)
        ]

    def build(self, input_shape: tuple) -> None:
        self.call(keras.KerasTensor(input_shape))

    def call(self, x: Tensor, training: bool = False, views: int = 1) -> Tensor:
        for layer in self.residual:
            x = layer(x, training=training, views=views)
        return x

    def get_config(self) -> dict:
        fields = ("filters", "width", "stride", "depth", "use_bn")
        return super().get_config() | {field: getattr(self, field) for field in fields}


@keras.saving.register_keras_serializable("amdim_tf")
class Encoder(ImageEncoder):
    """The AMDIM encoder: normalised images (B,S,S,3) float to a dictionary of features.

    Returns `f1` (B,nrkhs), `f5` (B,5,5,c) and `f7` (B,7,7,c) with c = 4*ndf for images of 32
    pixels and 8*ndf for larger ones.

    Args:
        image_size: S, one of 32, 64, 128, 256.
        ndf: channels of the first layer.
        nrkhs: channels of f1, at least c.
        ndepth: residual layers in each block.
        use_bn: batch norm inside the residual layers and on f7; f1 always has it.
        channels: channels of an image.

    Raises:
        InputError: a size that leaves no 7x7, 5x5 and 1x1 features, or an impossible width.

    Example:
    >>> encoder = Encoder(image_size=32, ndf=16, nrkhs=64, ndepth=2)
    >>> encoder(keras.ops.zeros((4, 32, 32, 3)))["f7"].shape
    TensorShape([4, 7, 7, 64])
    """

    # Runs of all versions hold phi5 and phi7, whatever their tasks.
    embedded = (5, 7)

    def __init__(
        self,
        image_size: int = 32,
        ndf: int = 32,
        nrkhs: int = 256,
        ndepth: int = 2,
        use_bn: bool = False,
        channels: int = 3,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_encoder(image_size, ndf, nrkhs, ndepth)
        self.image_size, self.ndf, self.nrkhs = image_size, ndf, nrkhs
        self.ndepth, self.use_bn, self.channels = ndepth, use_bn, channels

        def residual(filters, width, name):
            return ResidualLayer(filters, width, use_bn=use_bn, name=name, dtype=self.dtype_policy)

        def block(factor, width, stride, name):
            return Block(
                factor * ndf, width, stride, ndepth, use_bn, name=name, dtype=self.dtype_policy
            )

        def conv(width, stride=1, reflect=0, name="conv"):
            return InputConv(ndf, width, stride, reflect, name=name, dtype=self.dtype_policy)

        # (factor, width, stride) of the blocks down to 7x7
        small = image_size == 32
        blocks = [(2, 4, 2), (4, 2, 2)] if small else [(2, 4, 2), (4, 4, 2), (8, 2, 2)]
        top = blocks[-1][0]

        halvings = {128: ["conv_half"], 256: ["conv_half", "conv_quarter"]}.get(image_size, [])
        self.stem = [conv(5, stride=2, reflect=2, name=name) for name in halvings] + [conv(3)]
        self.to_7x7 = [block(*sizes, name=f"block{i + 1}") for i, sizes in enumerate(blocks)]
        if small:
            self.to_7x7.insert(0, residual(ndf, 1, "residual"))
        self.bn7 = BatchNorm(name="bn7", dtype=self.dtype_policy) if use_bn else None
        self.to_5x5 = block(top, 3, 1, "block_5x5")
        self.to_3x3 = block(top, 3, 1, "block_3x3")
        self.to_1x1 = residual(nrkhs, 3, "residual_1x1")
        # f1 and the embeddings have full precision, whatever the trunk has.
        self.bn1 = BatchNorm(name="bn1", dtype=at_least_float32(self.variable_dtype))
        self.build((None, image_size, image_size, channels))

    def build(self, input_shape: tuple) -> None:
        self.call(keras.KerasTensor(input_shape))  # symbolic: each layer builds where it is used

    def trunk(self, images: Tensor, training: bool = False, views: int = 1) -> dict:
        """Features as `call` has them, except f1: (V*B,1,1,nrkhs), before its batch norm.

        Images do not see each other here, unless `use_bn`.
        """
        mode = {"training": training, "views": views}
        f7 = images
        for layer in self.stem:
            f7 = layer(f7)
        for layer in self.to_7x7:
            f7 = layer(f7, **mode)
        if self.bn7:
            f7 = self.bn7(f7, **mode)
        f5 = self.to_5x5(f7, **mode)
        f1 = self.to_1x1(self.to_3x3(f5, **mode), **mode)
        return {"f1": f1, "f5": f5, "f7": f7}

    @property
    def phrase(self) -> str:
        return f"ndf {self.ndf}, nrkhs {self.nrkhs}, ndepth {self.ndepth}"

    @property
    def stages(self) -> list[list[keras.layers.Layer]]:
        each: list[list] = [self.stem, *([block] for block in self.to_7x7)]
        each[-1].extend([self.bn7] if self.bn7 else [])
        return [*each, [self.to_5x5], [self.to_3x3], [self.to_1x1, self.bn1]]

    def receptive_field(self, n: int) -> tuple[int, int, int]:
        layers = [*self.stem, *self.to_7x7]
        layers += {7: [], 5: [self.to_5x5], 1: [self.to_5x5, self.to_3x3, self.to_1x1]}[n]
        start, size, stride = 0, 1, 1
        for layer in layers:
            start -= getattr(layer, "reflect", 0) * stride
            size += (layer.width - 1) * stride
            stride *= layer.stride
        return start, size, stride

    def head(self, f1: Tensor, training: bool = False, views: int = 1) -> Tensor:
        """f1 (V*B,nrkhs), normalised, from the trunk's `f1` (V*B,1,1,nrkhs)."""
        return ops.squeeze(self.bn1(f1, training=training, views=views), axis=(1, 2))

    def get_config(self) -> dict:
        fields = ("image_size", "ndf", "nrkhs", "ndepth", "use_bn", "channels")
        return super().get_config() | {field: getattr(self, field) for field in fields}


def check_encoder(image_size: int, ndf: int, nrkhs: int, ndepth: int) -> None:
    """Raises `InputError` for sizes from which no encoder can be built.

    Example:
    >>> check_encoder(image_size=32, ndf=16, nrkhs=64, ndepth=2)
    """
    if image_size not in IMAGE_SIZES:
        raise InputError(
            f"image_size must be one of {', '.join(map(str, IMAGE_SIZES))}: no other leaves 7x7, "
            f"5x5 and 1x1 features. Received: image_size={image_size}"
        )
    if ndf < 1 or ndepth < 1:
        raise InputError(f"ndf and ndepth must be at least 1. Received: ndf={ndf}, ndepth={ndepth}")
    least = (4 if image_size == 32 else 8) * ndf
    if nrkhs < least:
        raise InputError(
            f"nrkhs must be at least {least}, the width of f5 at image_size={image_size} and "
            f"ndf={ndf}. Received: nrkhs={nrkhs}"
        )
