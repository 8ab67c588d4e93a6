"""The contract of encoders: all that objectives, training, evaluation and serving ask of one."""

import functools
import itertools

import keras

from amdim_tf.errors import InputError
from amdim_tf.typing import Tensor


class ImageEncoder(keras.Model):
    """Normalised images (B,S,S,C) to `f1` (B,nrkhs) and maps of features `f<n>` (B,n,n,c).

    A call is the `trunk`, then the `head`. Several devices and micro-batches run the trunk by
    itself, so unless `use_bn` an image may not see the others there.

    A subclass sets `image_size`, S, and `nrkhs`, the width of f1, and has `trunk`.

    Attributes:
        channels: C, channels of an image.
        use_bn: whether the trunk has batch norm.
        normalisation: (mean, std) of pixels in 0..1, by channel, that the encoder expects of its
            images; None for those of the data that it is trained on.
        embedded: scales that an objective embeds whether a task names them or not.

    Example:
    >>> class Pooled(ImageEncoder):
    ...     image_size, nrkhs = 32, 3
    ...
    ...     def trunk(self, images, training=False, views=1):
    ...         f7 = keras.ops.average_pool(images, 8, 4, "valid")
    ...         return {"f1": keras.ops.mean(images, (1, 2)), "f7": f7}
    >>> Pooled().scales
    {1: 3, 7: 3}
    """

    image_size: int
    nrkhs: int
    channels: int = 3
    use_bn: bool = False
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    embedded: tuple[int, ...] = ()

    @functools.cached_property
    def scales(self) -> dict[int, int]:
        """{n: channels of f<n>}, from the smallest n on."""
        images = keras.KerasTensor((None, self.image_size, self.image_size, self.channels))
        features = self.compute_output_spec(images)
        widths = {int(name[1:]): feature.shape[-1] for name, feature in features.items()}
        return dict(sorted(widths.items()))

    @property
    def phrase(self) -> str:
        """What the encoder is, in a phrase."""
        return ", ".join(f"f{n}" for n in self.scales)

    def trunk(self, images: Tensor, training: bool = False, views: int = 1) -> dict:
        """Features of V*B images as `call` has them, except `f1`, which is as the `head` takes it.

        Args:
            views: V; batch norm normalises each view by itself, and view 1 comes first.
        """
        raise NotImplementedError

    def head(self, f1: Tensor, training: bool = False, views: int = 1) -> Tensor:
        """`f1` (V*B,nrkhs) from the trunk's: its last batch norm, if there is one."""
        return f1

    def call(self, images: Tensor, training: bool = False, views: int = 1) -> dict:
        """Encodes `images` (V*B,S,S,3): V views of B images, each normalised by itself."""
        features = self.trunk(images, training=training, views=views)
        return features | {"f1": self.head(features["f1"], training=training, views=views)}

    @property
    def stages(self) -> list[list[keras.layers.Layer]]:
        """The layers of each stage, in the order of the data flow, for `freeze`."""
        return []

    def freeze(self, stages: int) -> None:
        """Keeps the first `stages` stages of the encoder from being trained.

        Raises:
            InputError: the encoder has fewer stages.
        """
        layers = self.stages if stages else []
        if stages > len(layers):
            raise InputError(
                f"freeze must be at most {len(layers)}, the stages of the encoder. "
                f"Received: freeze={stages}"
            )
        for layer in itertools.chain(*layers[:stages]):
            layer.trainable = False

    def receptive_field(self, n: int) -> tuple[int, int, int] | None:
        """What location (i,j) of f<n> sees: rows from `start + i * stride` on, `size` many.

        Returns:
            (start, size, stride), in pixels; those beyond the image are reflected. None if a
            location sees the complete image.
        """
        return None
