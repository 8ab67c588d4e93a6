"""An encoder of patches as an encoder of images: it runs on each patch of a grid."""

from typing import Any

import keras
from keras import ops

from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.errors import InputError
from amdim_tf.precision import at_least_float32
from amdim_tf.typing import Tensor


@keras.saving.register_keras_serializable("amdim_tf")
class PatchEncoder(ImageEncoder):
    """Encodes a grid of n x n patches; f1 of the image is the mean of their f1.

    The patches reach from border to border at equal distances, and may overlap. Each is
    standardised by itself, channel by channel, so that brightness and contrast do not tell where
    in the image it comes from (Noroozi and Favaro 2016, arXiv 1603.09246). The only map is `f<n>`,
    the patches' f1 before its last batch norm.

    In place of images (B,S,S,C) it takes patches (B,n*n,P,P,C), row by row, that an objective cut.

    Args:
        encoder: an encoder of images of P pixels.
        image_size: S, at least P.
        grid: n, at least 2.
        kwargs: arguments of `keras.Model`.

    Raises:
        InputError: patches that are larger than the image, or a grid of a single one.

    Example:
    >>> from amdim_tf.encoders.amdim import Encoder
    >>> inner = Encoder(image_size=32, ndf=4, nrkhs=16, ndepth=1)
    >>> encoder = PatchEncoder(inner, image_size=64, grid=3)
    >>> features = encoder(ops.ones((2, 64, 64, 3)))
    >>> tuple(features["f1"].shape), tuple(features["f3"].shape)
    ((2, 16), (2, 3, 3, 16))
    """

    def __init__(self, encoder: ImageEncoder, image_size: int, grid: int, **kwargs: Any):
        super().__init__(**{"dtype": encoder.dtype_policy} | kwargs)
        if grid < 2 or encoder.image_size > image_size:
            raise InputError(
                "patch_size must be at most image_size, and patch_grid at least 2. Received: "
                f"patch_size={encoder.image_size}, image_size={image_size}, patch_grid={grid}"
            )
        self.encoder, self.image_size, self.grid = encoder, image_size, grid
        self.nrkhs, self.channels, self.use_bn = encoder.nrkhs, encoder.channels, encoder.use_bn
        self.patch_size, self.normalisation = encoder.image_size, encoder.normalisation
        self.built = True

    @property
    def starts(self) -> list[int]:
        """The first pixel of the patches of each row and column of the grid."""
        rest = self.image_size - self.patch_size
        return [i * rest // (self.grid - 1) for i in range(self.grid)]

    def cut(self, images: Tensor) -> Tensor:
        """The patches (B,n*n,P,P,C) of `images` (B,S,S,C), row by row."""
        size = self.patch_size
        patches = [images[:, y : y + size, x : x + size] for y in self.starts for x in self.starts]
        return ops.stack(patches, axis=1)

    def trunk(self, images: Tensor, training: bool = False, views: int = 1) -> dict:
        """Features as `call` has them, except f1: (V*B,n,n,...), of each patch by itself."""
        patches = images if len(images.shape) == 5 else self.cut(images)
        patches = ops.reshape(patches, (-1, *patches.shape[2:]))
        f1 = self.encoder.trunk(standardised(patches), training=training, views=views)["f1"]
        f1 = ops.reshape(f1, (-1, self.grid, self.grid, *f1.shape[1:]))
        maps = ops.reshape(f1, (-1, self.grid, self.grid, self.nrkhs))
        return {"f1": f1, f"f{self.grid}": maps}

    def by_patch(self, f1: Tensor, training: bool = False, views: int = 1) -> Tensor:
        """f1 of the patches (V*B,n,n,nrkhs) from the trunk's."""
        rows = ops.reshape(f1, (-1, *f1.shape[3:]))
        rows = self.encoder.head(rows, training=training, views=views)
        return ops.reshape(rows, (-1, self.grid, self.grid, self.nrkhs))

    def head(self, f1: Tensor, training: bool = False, views: int = 1) -> Tensor:
        return ops.mean(self.by_patch(f1, training, views), axis=(1, 2))

    @property
    def phrase(self) -> str:
        grid, size = self.grid, self.patch_size
        return f"{grid} x {grid} patches of {size} pixels: {self.encoder.phrase}"

    @property
    def stages(self) -> list[list[keras.layers.Layer]]:
        return self.encoder.stages

    def receptive_field(self, n: int) -> tuple[int, int, int]:
        return 0, self.patch_size, self.starts[1]

    def get_config(self) -> dict:
        own = {"image_size": self.image_size, "grid": self.grid}
        own["encoder"] = keras.saving.serialize_keras_object(self.encoder)
        return super().get_config() | own

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "PatchEncoder":
        inner = keras.saving.deserialize_keras_object(config["encoder"], custom_objects)
        return cls(**config | {"encoder": inner})


def standardised(patches: Tensor) -> Tensor:
    """`patches` (N,P,P,C) with mean 0 and deviation 1 in each channel; flat ones become zeros.

    Example:
    >>> float(ops.max(standardised(ops.ones((1, 4, 4, 3)))))
    0.0
    """
    patches = ops.cast(patches, at_least_float32(patches.dtype))
    mean, variance = ops.moments(patches, axes=(1, 2), keepdims=True)
    return (patches - mean) / ops.sqrt(variance + 1e-5)
