"""An encoder by the name that a config gives it."""

import keras

from amdim_tf.encoders.amdim import Encoder
from amdim_tf.encoders.applications import application, policy
from amdim_tf.encoders.backbone import Backbone
from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.encoders.lab import LabEncoder
from amdim_tf.encoders.patches import PatchEncoder
from amdim_tf.errors import InputError
from amdim_tf.finding import imported
from amdim_tf.typing import Config


def named_encoder(config: Config, dtype: str, weights: str | None = None) -> ImageEncoder:
    """The encoder that `config.encoder` names, with weights drawn by Keras.

    Args:
        config: `encoder` is amdim, a model of `keras.applications` in lower case, or MODULE:NAME
            for a function of the images' shape (S,S,C) that returns an `ImageEncoder`, or a model
            for `Backbone`. With a `patch_size` it encodes patches, see `PatchEncoder`, and
            with `lab` lightness and colour, see `LabEncoder`.
        dtype: name of a dtype policy.
        weights: "imagenet" for those of `keras.applications`, or none.

    Raises:
        InputError: there is no such encoder, or it cannot take such images.

    Example:
    >>> from amdim_tf.config import base_config
    >>> named_encoder(base_config(), "float32").scales
    {1: 256, 5: 128, 7: 128}
    """
    if config.patch_size:
        changed = {"image_size": config.patch_size, "patch_size": 0}
        meaning = f"an image is a patch, of patch_size={config.patch_size}"
        inner = _inner(config, changed, meaning, dtype, weights)
        return PatchEncoder(inner, config.image_size, config.patch_grid, name="encoder")
    if config.lab:
        if config.channels != 3:
            raise InputError(
                "lab is for images of 3 channels, red, green and blue. "
                f"Received: channels={config.channels}"
            )
        half = {"lab": False, "ndf": config.ndf // 2, "nrkhs": config.nrkhs // 2}
        meaning = f"with lab, halves of ndf={config.ndf} and nrkhs={config.nrkhs}"
        encoders = (_inner(config, half | {"channels": n}, meaning, dtype, weights) for n in (1, 2))
        return LabEncoder(*encoders, name="encoder")
    name, size = config.encoder, config.image_size
    if name == "amdim":
        widths = (config.ndf, config.nrkhs, config.ndepth, config.use_bn)
        return Encoder(size, *widths, channels=config.channels, dtype=dtype, name="encoder")
    if ":" not in name:
        return application(name, size, weights, dtype, config.channels)
    try:
        make = imported(name)
        if not callable(make):
            raise TypeError(f"{name.partition(':')[2]} is no function")
    except (ImportError, TypeError) as error:
        raise InputError(
            f"encoder must be MODULE:NAME that Python can import ({error}). "
            f"Received: encoder={name!r}"
        ) from error
    with policy(dtype):
        model = make((size, size, config.channels))
    if isinstance(model, ImageEncoder):
        model.name = "encoder"  # under which exports keep it
        return model
    if not isinstance(model, keras.Model):
        raise InputError(f"encoder={name} must return a Keras model. Received: {model!r}")
    return Backbone(model, size, name="encoder")


def _inner(config, changed, meaning, dtype, weights):
    """An encoder inside of another, of `config` when `changed`; errors say what that means."""
    inner = config.copy_and_resolve_references()
    inner.update(changed)
    try:
        return named_encoder(inner, dtype, weights)
    except InputError as error:
        raise InputError(f"{error} ({meaning})") from error
