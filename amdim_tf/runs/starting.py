"""The weights that training starts from, if they are not random ones."""

import warnings

import numpy as np

from amdim_tf.encoders.applications import names
from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.encoders.named import named_encoder
from amdim_tf.errors import InputError, one_line
from amdim_tf.files import local
from amdim_tf.serving.loading import load_encoder
from amdim_tf.training.building import build_encoder
from amdim_tf.typing import Config


def first_weights(config: Config) -> list[np.ndarray] | None:
    """The weights of the encoder that `config.weights` names, in order; None if it names none.

    Raises:
        InputError: there are none, or they are another encoder's.
    """
    if not config.weights:
        return None
    encoder, found = build_encoder(config, "float32"), _encoder(config)
    difference = ""
    if len(found.weights) != len(encoder.weights):
        difference = f"{len(found.weights)} arrays there and {len(encoder.weights)} here"
    for theirs, ours in zip(found.weights, encoder.weights, strict=False):
        if theirs.shape != ours.shape:
            difference = f"{ours.path} has the shape {theirs.shape} there and {ours.shape} here"
            break
    if difference:
        raise InputError(
            f"weights must be those of the same encoder ({difference}). "
            f"Received: weights={config.weights!r}"
        )
    return found.get_weights()


def _encoder(config: Config) -> ImageEncoder:
    """An encoder with the weights that `config` names."""
    name = config.weights
    if name == "imagenet":
        if config.encoder not in names():
            raise InputError(
                "weights=imagenet is for the models of keras.applications. "
                f"Received: encoder={config.encoder!r}"
            )
        return named_encoder(config, "float32", name)
    path = str(local(name, "weights"))
    if not path.endswith(".h5"):
        return load_encoder(path)
    encoder = build_encoder(config, "float32")
    with warnings.catch_warnings():
        # Keras only warns of layers that it leaves as they are.
        warnings.filterwarnings("error", ".*[Ss]kipping")
        try:
            encoder.load_weights(path)
            return encoder
        except Exception as error:  # Keras does not document what it raises
            if config.encoder not in names():
                raise InputError(
                    f"weights must be a file of this encoder's weights ({one_line(error)}). "
                    f"Received: weights={name!r}"
                ) from error
        return named_encoder(config, "float32", path)
