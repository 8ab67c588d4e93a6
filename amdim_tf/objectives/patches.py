"""What objectives share whose questions are about the patches of an image."""

from collections.abc import Sequence

import keras
import tensorflow as tf
from keras import ops

from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.encoders.patches import PatchEncoder
from amdim_tf.errors import InputError
from amdim_tf.objectives.objective import Objective
from amdim_tf.typing import Tensor

GRID, CELLS = 3, 9


class PatchObjective(Objective):
    """An objective for a `PatchEncoder`, which sees one view of an image.

    `normalise` gives f1 of each patch, {n: (B,n,n,nrkhs)}, and their mean, {1: (B,nrkhs)}.

    Example:
    >>> from amdim_tf.encoders.amdim import Encoder
    >>> encoder = PatchEncoder(Encoder(32, ndf=4, nrkhs=16, ndepth=1), image_size=64, grid=2)
    >>> objective = PatchObjective()
    >>> layers = objective.build(encoder)
    >>> features = encoder.trunk(ops.ones((4, 64, 64, 3)))
    >>> found = objective.normalise({1: features["f1"]}, training=False, views=1)
    >>> {n: tuple(x.shape) for n, x in found.items()}
    {1: (4, 16), 2: (4, 2, 2, 16)}
    """

    views = 1

    def build(self, encoder: ImageEncoder) -> dict[str, keras.layers.Layer]:
        super().build(encoder)
        if not isinstance(encoder, PatchEncoder):
            raise InputError(
                f"patch_size must be at least 1 if the objective is {self}. Received: patch_size=0"
            )
        return {}

    def normalise(
        self, projected: dict[int, Tensor], training: bool, views: int
    ) -> dict[int, Tensor]:
        maps = self.encoder.by_patch(projected[1], training, views)
        return {1: ops.mean(maps, axis=(1, 2)), self.encoder.grid: maps}


class JitteredObjective(PatchObjective):
    """One whose patches are anywhere in the cells of a 3 x 3 grid.

    Example:
    >>> from amdim_tf.encoders.amdim import Encoder
    >>> objective = JitteredObjective()
    >>> inner = Encoder(32, ndf=4, nrkhs=16, ndepth=1)
    >>> layers = objective.build(PatchEncoder(inner, image_size=128, grid=3))
    >>> draws = {"jitter": ops.zeros((2, CELLS, 2))}
    >>> tuple(objective.present([ops.ones((2, 128, 128, 3))], draws).shape)
    (2, 9, 32, 32, 3)
    """

    def build(self, encoder: ImageEncoder) -> dict[str, keras.layers.Layer]:
        super().build(encoder)
        cell = encoder.image_size // GRID
        if encoder.grid != GRID or encoder.patch_size > cell:
            raise InputError(
                f"patch_grid must be {GRID}, and patch_size at most {cell}, if the objective is "
                f"{self}. Received: patch_grid={encoder.grid}, patch_size={encoder.patch_size}"
            )
        return {}

    def present(self, views: Sequence[Tensor], draws: Tensor) -> Tensor:
        (images,) = views
        return jittered(images, self.encoder.patch_size, draws["jitter"])


def jittered(images: Tensor, size: int, draws: Tensor) -> Tensor:
    """Patches (B,9,P,P,C) of `images` (B,S,S,C), each anywhere in its cell of a 3 x 3 grid.

    Cells have S/3 pixels a side, and P is at most that.

    Args:
        size: P.
        draws: (B,9,2) in [0, 1).

    Example:
    >>> jittered(ops.ones((2, 128, 128, 3)), 32, ops.zeros((2, 9, 2))).shape
    TensorShape([2, 9, 32, 32, 3])
    """
    side, patches = images.shape[1], []
    room = side // GRID - size
    starts = ops.cast(ops.floor(draws * (room + 1)), "int32")
    for place in range(CELLS):
        corner = [cell * side // GRID for cell in divmod(place, GRID)]
        rows, columns = (
            corner[axis] + starts[:, place, axis, None] + ops.arange(size) for axis in (0, 1)
        )
        strip = tf.gather(images, rows, axis=1, batch_dims=1)
        patches.append(tf.gather(strip, columns, axis=2, batch_dims=1))
    return ops.stack(patches, axis=1)
