"""Blur, solarisation and your own layers, on batches of views.

The reference has none of them; BYOL (arXiv 2006.07733, Appendix B) has the first two.
"""

import keras
import tensorflow as tf

from amdim_tf.data.color import select
from amdim_tf.distribution import compiled
from amdim_tf.errors import InputError, one_line
from amdim_tf.finding import made
from amdim_tf.typing import Tensor


@compiled
def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of `images` (V,B,S,S,C) with the deviations `sigma` (V,B), in pixels.

    A matrix mixes the rows and then the columns, as in `geometry`. At the border, what is outside
    does not count.

    Example:
    >>> blur(tf.ones((2, 4, 8, 8, 3)), tf.ones((2, 4))).shape
    TensorShape([2, 4, 8, 8, 3])
    """
    places = tf.range(images.shape[-2], dtype=tf.float32)
    distances = (places - places[:, None]) / sigma[..., None, None]
    weights = tf.exp(-tf.square(distances) / 2)
    # A product instead of `reduce_sum`, see `compiled`.
    weights /= tf.tensordot(weights, tf.ones([images.shape[-2], 1]), 1)
    images = tf.einsum("vbsh,vbhwc->vbswc", weights, images)
    return tf.einsum("vbtw,vbswc->vbstc", weights, images)


@compiled
def solarize(chosen: Tensor, images: Tensor) -> Tensor:
    """Inverts all values from 128 on in those `images` (...,S,S,C) that are `chosen` (...).

    Example:
    >>> solarize(tf.constant([True]), tf.fill((1, 2, 2, 1), 200.0))[0, 0, 0].numpy().tolist()
    [55.0]
    """
    return select(chosen, tf.where(images >= 128, 255 - images, images), images)


def own_layer(name: str, shape: tuple[int, ...]) -> keras.layers.Layer:
    """The Keras layer MODULE:NAME, or the one that it makes, built for views of `shape` (S,S,C).

    Raises:
        InputError: there is none, or it changes the shape.
    """
    try:
        layer = made(name, keras.layers.Layer)
        changed = layer(tf.zeros((1, *shape)), training=True).shape[1:]
    except Exception as error:  # it is the user's
        raise InputError(
            "views.layer must be MODULE:NAME of a Keras layer, or of what makes one "
            f"({one_line(error)}). Received: views.layer={name!r}"
        ) from error
    if tuple(changed) != shape:
        raise InputError(
            f"views.layer must keep the shape {shape} of a view. "
            f"Received: {name!r}, which gives {tuple(changed)}"
        )
    return layer


def by_layer(layer: keras.layers.Layer, views: Tensor, draws: Tensor) -> Tensor:
    """The `views` (V,B,S,S,C) in [0, 255] as a Keras `layer` changes them.

    It gets the views of one image at a time, so that its random numbers are a function of the
    `draws` (2,V,B) for it, on any devices and after any restart.
    """
    seeds = tf.cast(tf.transpose(draws[:, 0]) * 2**24, tf.int64)
    states = [x for x in layer.variables if "seed_generator_state" in x.path]

    def one(inputs):
        images, seed = inputs
        own = [(each, tf.cast(seed + (i, 0), each.dtype)) for i, each in enumerate(states)]
        with keras.StatelessScope(state_mapping=own):
            changed = tf.cast(layer(images, training=True), tf.float32)
        return tf.clip_by_value(tf.ensure_shape(changed, images.shape), 0.0, 255.0)

    by_image = tf.map_fn(
        one,
        (tf.transpose(views, (1, 0, 2, 3, 4)), seeds),
        fn_output_signature=tf.TensorSpec(views.shape[:1] + views.shape[2:], tf.float32),
    )
    return tf.transpose(by_image, (1, 0, 2, 3, 4))
