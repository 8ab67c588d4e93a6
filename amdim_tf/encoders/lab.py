"""An encoder of lightness and one of colour, side by side (Tian et al. 2019, arXiv 1906.05849)."""

from typing import Any

import keras
import numpy as np
from keras import ops

from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.precision import at_least_float32
from amdim_tf.typing import Tensor

# sRGB (IEC 61966-2-1) to CIE XYZ, over that of its white (D65).
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
TO_XYZ /= TO_XYZ.sum(axis=1, keepdims=True)


@keras.saving.register_keras_serializable("amdim_tf")
class LabEncoder(ImageEncoder):
    """The features of lightness and, after them, those of colour: channels of `f1` and all maps.

    Images are pixels (B,S,S,3) in 0..1.

    Args:
        lightness, colour: encoders with the same scales, of images of one and two channels.
        kwargs: arguments of `keras.Model`.

    Example:
    >>> from amdim_tf.encoders.amdim import Encoder
    >>> lightness, colour = (Encoder(ndf=4, nrkhs=16, ndepth=1, channels=c) for c in (1, 2))
    >>> LabEncoder(lightness, colour).scales
    {1: 32, 5: 32, 7: 32}
    """

    normalisation = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(self, lightness: ImageEncoder, colour: ImageEncoder, **kwargs: Any):
        super().__init__(**{"dtype": lightness.dtype_policy} | kwargs)
        self.lightness, self.colour = lightness, colour
        self.image_size, self.use_bn = lightness.image_size, lightness.use_bn
        self.nrkhs = lightness.nrkhs + colour.nrkhs
        self.built = True

    def trunk(self, images: Tensor, training: bool = False, views: int = 1) -> dict:
        """Features as `call` has them, except f1, which is as the two trunks have it."""
        lab = to_lab(images)
        mode: dict[str, Any] = {"training": training, "views": views}
        ours = self.lightness.trunk(lab[..., :1], **mode)
        others = self.colour.trunk(lab[..., 1:], **mode)
        return {name: ops.concatenate([ours[name], others[name]], axis=-1) for name in ours}

    def head(self, f1: Tensor, training: bool = False, views: int = 1) -> Tensor:
        mode: dict[str, Any] = {"training": training, "views": views}
        ours = self.lightness.head(f1[..., : self.lightness.nrkhs], **mode)
        others = self.colour.head(f1[..., self.lightness.nrkhs :], **mode)
        return ops.concatenate([ours, others], axis=-1)

    @property
    def phrase(self) -> str:
        return f"{self.lightness.phrase}, for lightness and for colour"

    @property
    def stages(self) -> list[list[keras.layers.Layer]]:
        pairs = zip(self.lightness.stages, self.colour.stages, strict=True)
        return [ours + others for ours, others in pairs]

    def receptive_field(self, n: int) -> tuple[int, int, int] | None:
        return self.lightness.receptive_field(n)

    def get_config(self) -> dict:
        names = ("lightness", "colour")
        own = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in names}
        return super().get_config() | own

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "LabEncoder":
        names = ("lightness", "colour")
        inner = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in names
        }
        return cls(**config | inner)


def to_lab(pixels: Tensor) -> Tensor:
    """sRGB in 0..1 (...,3) as CIE L*a*b* over 50, at least float32; L*, without sign, minus 1.

    Example:
    >>> white, red = to_lab(ops.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])).numpy() * 50 + (50, 0, 0)
    >>> white.round().astype(int).tolist(), red.round().astype(int).tolist()
    ([100, 0, 0], [53, 80, 67])
    """
    dtype = at_least_float32(pixels.dtype)
    pixels = ops.clip(ops.cast(pixels, dtype), 0, 1)
    linear = ops.where(pixels > 0.04045, ops.power((pixels + 0.055) / 1.055, 2.4), pixels / 12.92)
    xyz = ops.matmul(linear, ops.cast(TO_XYZ.T, dtype))
    root = ops.power(ops.maximum(xyz, 1e-6), 1 / 3)
    root = ops.where(xyz > (6 / 29) ** 3, root, xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = ops.unstack(root, 3, axis=-1)
    lab = ops.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
    return lab / 50 - ops.cast([1.0, 0.0, 0.0], dtype)
