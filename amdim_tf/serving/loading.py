"""Trained encoders in Keras: from a run, a .keras file or an export for TF Serving."""

import json
import os
import pathlib

import keras
import tensorflow as tf

from amdim_tf.data.preprocess import Preprocess
from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.errors import InputError, one_line
from amdim_tf.files import readable
from amdim_tf.training.averaging import values
from amdim_tf.training.building import build_encoder
from amdim_tf.training.run_directory import METADATA, load_model
from amdim_tf.training.run_files import CONFIG, run_config, to_config


def load_encoder(
    path: str | pathlib.Path, feature: str | None = None, name: str | None = None
) -> keras.Model:
    """A trained encoder as a `keras.Model` of normalised images (N,S,S,3).

    It is trainable, and batch norm follows `training` and `trainable` as Keras's own does. Its
    weights have the precision in which they were saved, whatever Keras's global policy is.

    Args:
        path: a run directory (its last checkpoint), a .keras file, or a version of an export, which
            may lie on another file system, such as gs://.
        feature: "f1" or the name of a map, such as "f7", for a model with one output, which
            `keras.Sequential` takes; by default the output is a dictionary of all.
        name: that of the model, by default "encoder" or, with one output, "encoder_f1"; two models
            in one functional model need two names.

    Raises:
        InputError: none of these is at `path`, or there is no such feature.

    Example:
    >>> encoder = load_encoder("runs/cifar10-tiny-seed0", feature="f1")
    >>> keras.Sequential([load_preprocess("runs/cifar10-tiny-seed0"), encoder])
    """
    encoder = _load(readable(path, "path"))
    if feature is None:
        encoder.name = name or encoder.name
        return encoder
    features = [f"f{n}" for n in encoder.scales]
    if feature not in features:
        raise InputError(
            f"feature must be one of {', '.join(features)}, or none. Received: {feature!r}"
        )
    size = (encoder.image_size, encoder.image_size, encoder.channels)
    images = keras.Input(size, dtype="float32", name="images")
    return keras.Model(images, encoder(images)[feature], name=name or f"encoder_{feature}")


def load_preprocess(path: str | pathlib.Path) -> Preprocess:
    """The layer that prepares raw images for the encoder of a run directory or an export.

    Raises:
        InputError: neither is there; a .keras file does not know its normalisation.
    """
    path = readable(path, "path")
    if tf.io.gfile.exists(f"{path}/{METADATA}"):
        config = _metadata(path)[0]
    elif _is_run(path):
        config = run_config(path)
    else:
        raise InputError(
            "A preprocessing layer is loaded from a run directory or a version of an export, a "
            f"folder with {METADATA}; a .keras file does not hold how images are normalised. "
            f"Received: {path}"
        )
    return Preprocess.of(config)


def _load(path):
    if path.endswith(".keras") and os.path.isfile(path):
        try:
            encoder = keras.models.load_model(path)
        # Keras does not document what a damaged file raises.
        except Exception as error:
            raise InputError(
                f"The .keras file must be complete: {one_line(error)}. Received: {path}"
            ) from error
        if not isinstance(encoder, ImageEncoder):
            raise InputError(f"The .keras file must be of an encoder. Received: {path}")
        return encoder
    if tf.io.gfile.exists(f"{path}/{METADATA}"):
        return _from_export(path)
    if _is_run(path):
        return load_model(path)[0].encoder
    raise InputError(
        "An encoder is loaded from a run directory, a .keras file, or a version of an export, "
        f"a folder with {METADATA}. Received: {path}"
    )


def _is_run(path):
    return os.path.isfile(os.path.join(path, CONFIG))


def _metadata(path):
    """Config and dtype of the export in `path`."""
    with tf.io.gfile.GFile(f"{path}/{METADATA}") as file:
        metadata = json.load(file)
    return to_config(metadata["config"]), metadata["dtype"]


def _from_export(path):
    config, dtype = _metadata(path)
    encoder = build_encoder(config, dtype)
    # A SavedModel has a checkpoint inside.
    saved = tf.train.Checkpoint(encoder=values(encoder)).read(f"{path}/variables/variables")
    saved.expect_partial().assert_existing_objects_matched()
    return encoder
