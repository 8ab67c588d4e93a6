"""Exemplar: each image is a class of its own (Dosovitskiy et al. 2014, arXiv 1406.6909).

A loss of triplets takes the place of their classifier, which has a class for every image, as in
Doersch and Zisserman (arXiv 1708.07860) and Kolesnikov et al. (arXiv 1901.09005).
"""

import keras
from keras import ops

from amdim_tf import distribution
from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.errors import InputError
from amdim_tf.objectives.objective import Losses, Objective
from amdim_tf.precision import at_least_float32
from amdim_tf.typing import Config, Tensor


class Exemplar(Objective):
    """Views of an image are nearer to each other than to views of other images, by a margin.

    For each pair of views of an image the negative is semi-hard (Schroff et al. 2015, arXiv
    1503.03832): the nearest view of another image in the batch that is farther away than the
    positive, or the farthest if none is. A linear layer embeds f1 in 1000 dimensions, and distances
    are squared and Euclidean, of embeddings of length 1. Margin, width, semi-hard negatives, eight
    views and grey in 66 % of them are those of Kolesnikov's code (github.com/google/
    revisiting-self-supervised, config/exemplar).

    Args:
        views: number of views of an image, at least 2.
        margin: by how much, at least, the negative is to be farther away.
        width: dimensions of the embedding.

    Raises:
        InputError: fewer than two views.

    Example:
    >>> objective = Exemplar(views=2)
    >>> near = ops.array([[1.0, 0.0], [0.0, 1.0]])  # two images, the same in both views
    >>> float(objective.triplets(ops.concatenate([near, near])))
    0.0
    """

    least_images = 2  # a single image has no negatives
    metrics = ("loss",)
    role_of_f1 = "whose distances are compared"

    def __init__(self, views: int = 8, margin: float = 0.5, width: int = 1000):
        if views < 2:
            raise InputError(
                "views.number must be at least 2 if the objective is exemplar. "
                f"Received: views.number={views}"
            )
        self.views, self.margin, self.width = views, margin, width

    @classmethod
    def of(cls, config: Config) -> "Exemplar":
        return cls(config.views.number)

    def build(self, encoder: ImageEncoder) -> dict[str, keras.layers.Layer]:
        super().build(encoder)
        dtype = at_least_float32(encoder.variable_dtype)
        self.embedding = keras.layers.Dense(self.width, dtype=dtype)
        self.embedding.build((None, encoder.nrkhs))
        return {"exemplar_embedding": self.embedding}

    def losses(self, embeddings: dict[int, Tensor], labels: Tensor, draws: Tensor) -> Losses:
        loss = self.triplets(self.embedding(embeddings[1]))
        return Losses(loss, {"triplets": loss}, {"loss": loss})

    def triplets(self, x: Tensor) -> Tensor:
        """The loss of the embeddings `x` (V*b,width) of this replica, view 1 first; scalar."""
        x = ops.normalize(x, axis=-1)
        views, images = self.views, ops.shape(x)[0] // self.views
        others = distribution.gather(x)  # (R*V*b, width), one replica after the other
        distances = 2 - 2 * ops.matmul(x, ops.transpose(others))
        place = distribution.first_image(images) + ops.arange(images)
        by_view = ops.reshape(distances, (views * images, -1, views, images))
        all_images = ops.reshape(ops.arange(ops.shape(by_view)[1] * images), (-1, 1, images))
        own = ops.reshape(ops.tile(place, [views]), (-1, 1, 1, 1)) == all_images
        positives = ops.sum(ops.where(own, by_view, 0), axis=(1, 3))  # (V*b, V)
        same = ops.reshape(ops.broadcast_to(own, ops.shape(by_view)), ops.shape(distances))
        farthest = ops.max(ops.where(same, -1.0, distances), axis=1)
        losses = []
        for view in range(views):
            positive = positives[:, view]
            beyond = ops.logical_and(distances > positive[:, None], ops.logical_not(same))
            nearest = ops.min(ops.where(beyond, distances, float("inf")), axis=1)
            negative = ops.where(ops.any(beyond, axis=1), nearest, farthest)
            losses.append(ops.relu(self.margin + positive - negative))
        # An image's distance to itself is no pair.
        itself = ops.repeat(ops.eye(views, dtype=x.dtype), images, axis=0)  # (V*b, V)
        pairs = ops.stack(losses, axis=1) * (1 - itself)
        return ops.sum(pairs) / ops.cast(views * images * (views - 1), x.dtype)

    def flops(self, batch: int) -> int:
        """Operations of the embedding and of the distances, and of their gradients."""
        rows = self.views * batch
        return 3 * 2 * rows * self.width * (self.encoder.nrkhs + rows)

    def get_config(self) -> dict:
        return {"views": self.views, "margin": self.margin, "width": self.width}
