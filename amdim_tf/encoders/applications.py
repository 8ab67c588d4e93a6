"""The models of `keras.applications` as encoders, by name."""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator

import keras
import numpy as np

from amdim_tf.config import nearest
from amdim_tf.encoders.backbone import NORMALISATIONS, Backbone
from amdim_tf.errors import InputError, one_line


def names() -> dict[str, Callable]:
    """{name in lower case: function that makes the model}, as the library lists them.

    Example:
    >>> {"resnet50v2", "convnexttiny", "mobilenetv3small"} <= set(names())
    True
    """
    return {
        name.lower(): make
        for name, make in vars(keras.applications).items()
        if name[0].isupper() and callable(make)
    }


def application(
    name: str,
    image_size: int,
    weights: str | None = None,
    dtype: str = "float32",
    channels: int = 3,
) -> Backbone:
    """The encoder of a model of `keras.applications`.

    Args:
        name: a key of `names`.
        image_size: side of the images.
        weights: "imagenet" for those that Keras downloads, or none.
        dtype: name of a dtype policy.
        channels: channels of the images. With other than three, a normalisation that is given by
            channel is left out.

    Raises:
        InputError: no such model, images that are too small for it, or weights out of reach.

    Example:
    >>> application("mobilenetv3small", 64).scales
    {1: 576, 2: 576, 4: 288, 8: 96, 16: 72, 32: 16}
    """
    make = names().get(name)
    if make is None:
        raise InputError(
            "encoder must be amdim, MODULE:NAME, or a model of keras.applications; the nearest "
            f"are {nearest(name, names())}. Received: encoder={name!r}"
        )
    shape = (image_size, image_size, channels)
    options: dict = {"include_top": False, "weights": weights, "input_shape": shape}
    mode: str | None = normalisation(make)
    if channels != 3:
        removable = "include_preprocessing" in inspect.signature(make).parameters
        options |= {"include_preprocessing": False} if removable else {}
        mode = None if removable or mode in ("torch", "caffe") else mode
    try:
        with policy(dtype):
            model = make(**options)
    except Exception as error:  # Keras does not document what it raises
        raise InputError(
            f"encoder={name} cannot be made for images of {image_size} pixels and {channels} "
            f"channels with weights {weights}: {one_line(error)}"
        ) from error
    return Backbone(model, image_size, mode, name="encoder")


@contextlib.contextmanager
def policy(dtype: str) -> Iterator[None]:
    """Gives models that are made in it the dtype policy of that name, and channels last.

    They take neither as an argument, but from Keras's global settings.

    Example:
    >>> with policy("mixed_bfloat16"):
    ...     keras.layers.Dense(8).compute_dtype
    'bfloat16'
    """
    before = keras.config.dtype_policy(), keras.config.image_data_format()
    keras.config.set_dtype_policy(dtype)
    keras.config.set_image_data_format("channels_last")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before[0])
        keras.config.set_image_data_format(before[1])


def normalisation(make: Callable) -> str:
    """What the model that `make` makes expects of its input, a key of `NORMALISATIONS`.

    Example:
    >>> normalisation(keras.applications.ResNet50), normalisation(keras.applications.ResNet50V2)
    ('caffe', 'tf')
    """
    pixels, last = np.array([[[[0, 50, 250]]]], "float32"), {"data_format": "channels_last"}
    found = sys.modules[make.__module__].preprocess_input(pixels.copy(), **last)
    general = keras.applications.imagenet_utils.preprocess_input
    for mode in NORMALISATIONS:
        built_in = mode == "built in"
        expected = pixels if built_in else general(pixels.copy(), mode=mode, **last)
        if np.allclose(found, expected, atol=1e-4):
            return mode
    raise InputError(f"{make.__name__} normalises its input in a way that is not known here")
