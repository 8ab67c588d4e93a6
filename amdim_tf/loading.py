"""Trained encoders in Keras: from a run, a .keras file or an export for TF Serving."""

import json
import pathlib

import keras
import tensorflow as tf

from amdim_tf.encoder import Encoder
from amdim_tf.errors import InputError
from amdim_tf.model import build_model
from amdim_tf.preprocess import Preprocess
from amdim_tf.run_directory import METADATA, load_model, run_config, to_config, values

FEATURES = ("f1", "f5", "f7")


def load_encoder(path, feature=None):
    """A trained encoder as a `keras.Model` of normalised images (N,S,S,3).

    It is trainable, and batch norm follows `training` and `trainable` as Keras's own does.

    Args:
        path: a run directory (its last checkpoint), a .keras file, or a version of an export.
        feature: "f1", "f5" or "f7" for a model of one output, which `keras.Sequential` takes; by
            default the output is a dictionary of all.

    Raises:
        InputError: none of these is there, or another feature.

    Example:
    >>> encoder = load_encoder("runs/cifar10-tiny-seed0", feature="f1")
    >>> keras.Sequential([load_preprocess("runs/cifar10-tiny-seed0"), encoder])
    """
    if feature not in (None, *FEATURES):
        raise InputError(
            f"feature must be one of {', '.join(FEATURES)}, or none. Received: {feature!r}"
        )
    path = pathlib.Path(path)
    if path.suffix == ".keras" and path.is_file():
        encoder = keras.models.load_model(path)
        if not isinstance(encoder, Encoder):
            raise InputError(f"The .keras file must be of an encoder. Received: {path}")
    elif (path / METADATA).is_file():
        encoder = _from_export(path)
    elif (path / "config.json").is_file():
        encoder = load_model(path)[0].encoder
    else:
        raise InputError(
            "An encoder is loaded from a run directory, a .keras file, or a version of an export, "
            f"a folder with {METADATA}. Received: {path}"
        )
    if feature is None:
        return encoder
    images = keras.Input((encoder.image_size, encoder.image_size, 3), name="images")
    return keras.Model(images, encoder(images)[feature], name=f"encoder_{feature}")


def load_preprocess(path):
    """The layer that prepares raw images for the encoder of a run directory or an export.

    Raises:
        InputError: neither is there; a .keras file does not know its normalisation.
    """
    path = pathlib.Path(path)
    config = _metadata(path)[0] if (path / METADATA).is_file() else run_config(path)
    return Preprocess(config.image_size, config.mean, config.std)


def _metadata(path):
    """Config and dtype of the export in `path`."""
    metadata = json.loads((path / METADATA).read_text())
    return to_config(metadata["config"]), metadata["dtype"]


def _from_export(path):
    config, dtype = _metadata(path)
    encoder = build_model(config, 0, dtype).encoder
    # A SavedModel has a checkpoint inside.
    saved = tf.train.Checkpoint(encoder=values(encoder)).read(str(path / "variables" / "variables"))
    saved.expect_partial().assert_existing_objects_matched()
    return encoder
