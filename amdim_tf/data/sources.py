"""Data sets: a name becomes uint8 images with labels, for training and for testing."""

import pathlib

import tensorflow as tf

from amdim_tf.data.data import Data
from amdim_tf.data.image_folders import from_folder
from amdim_tf.data.photographs import photo_pairs, photo_patches
from amdim_tf.data.tfds_sets import from_tfds
from amdim_tf.errors import InputError
from amdim_tf.files import readable
from amdim_tf.typing import Config

SOURCES = {
    "tfds": from_tfds,
    "folder": from_folder,
    "photo_patches": lambda config, data_dir: photo_patches(),
    "photo_pairs": lambda config, data_dir: photo_pairs(),
}


def load(config: Config, data_dir: str | pathlib.Path | None = None) -> Data:
    """The data set that `config` names, in full and in a fixed order.

    Args:
        config: gives `dataset`, `source` and the splits: the encoder is trained on `train_split`,
            classifiers on `probe_split`, if that is another, and both are scored on `test_split`.
        data_dir: the folder of images, or where TFDS keeps prepared data; None for its default.

    Raises:
        InputError: an unknown name or split, data that is neither prepared nor downloadable, or
            data that is not images of the config's channels.
    """
    if data_dir is not None:
        data_dir = readable(data_dir, "data_dir")
        if not tf.io.gfile.isdir(data_dir):
            raise InputError(f"data_dir must be an existing folder. Received: data_dir={data_dir}")
    data = SOURCES[config.source](config, data_dir)
    if data.channels != config.channels:
        raise InputError(
            f"channels must be {data.channels} for {config.dataset}. "
            f"Received: channels={config.channels}"
        )
    return data
