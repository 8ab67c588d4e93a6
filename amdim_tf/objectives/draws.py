"""Random numbers of a step: an image has the same ones for any number of replicas."""

import tensorflow as tf
from keras import ops

from amdim_tf import distribution
from amdim_tf.typing import Tensor


def draw(seed: int, step: Tensor, batch: int, shape: tuple[int, ...]) -> Tensor:
    """(batch,*shape) in [0, 1) for the images of this replica, for any number of replicas.

    Example:
    >>> tuple(draw(seed=0, step=7, batch=4, shape=(9, 2)).shape)
    (4, 9, 2)
    """
    own = tf.random.experimental.stateless_fold_in((seed, ops.cast(step, "int32")), 100)
    first, images = distribution.first_image(batch), batch * distribution.replicas()
    drawn = tf.random.stateless_uniform((images, *shape), own, alg="philox")
    return drawn[first : first + batch]
