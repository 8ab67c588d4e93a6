"""Folders of images: a split's subfolders are its classes."""

import hashlib
import os

import numpy as np
import tensorflow as tf

from amdim_tf.data.channels import decode, extensions, reason
from amdim_tf.data.data import UNLABELLED, Data
from amdim_tf.data.failures import Failures
from amdim_tf.data.folders import PassedOver, images_in, subfolders, walk
from amdim_tf.data.splits import in_memory
from amdim_tf.errors import InputError
from amdim_tf.files import printable
from amdim_tf.typing import Config


def from_folder(config: Config, folder: str | None) -> Data:
    """The images in `folder`/<split>/<class>/; without classes, all in `folder`/<train split>/.

    Raises:
        InputError: a folder without images, or classes that differ between the splits.
    """
    folders = [f"{folder}/{name}" for name in (config.train_split, config.test_split)]
    if folder is None or not tf.io.gfile.isdir(folders[0]):
        raise InputError(
            f"data_dir must name a folder with {config.train_split}/<class>/ and "
            f"{config.test_split}/<class>/, or with images in {config.train_split}/. "
            f"Received: data_dir={folder}"
        )
    classes = [] if config.labels == "none" else subfolders(folders[0])
    test_classes = subfolders(folders[1]) if classes and tf.io.gfile.isdir(folders[1]) else []
    if classes != test_classes:
        different = sorted(set(classes) ^ set(test_classes))
        raise InputError(
            f"{' and '.join(folders)} must hold the same classes; --config.labels=none trains on "
            f"images in any subfolders without classes. Received: {len(classes)} and "
            f"{len(test_classes)}; only one of the folders has "
            f"{', '.join(map(printable, different[:5]))}"
        )
    passed_over, channels = PassedOver(), config.channels
    how = passed_over, extensions(channels)
    if classes:
        labels = {name: label for label, name in enumerate(classes)}
        train, test = (_files(split, labels, *how) for split in folders)
    else:
        train, test = _files(folders[0], {"": UNLABELLED}, *how), None
    return Data(
        train,
        train if classes else None,
        test,
        tuple(map(printable, classes)),
        lambda path: decode(tf.io.read_file(path), channels, config.white),
        (None, None),
        str(passed_over),
        read=tf.io.read_file,
        name=os.fsdecode,
        reason=lambda contents: reason(contents, channels, config.white),
        failures=Failures(train.size, config.bad_images),
        channels=channels,
    )


def _files(folder, labels, passed_over, endings):
    """The images in the subfolders of `folder` that `labels` names, in a fixed random order."""
    names, numbers = [], []
    for name, label in labels.items():
        passed = PassedOver()
        found = [f"{name}/{path}".lstrip("/") for path in walk(f"{folder}/{name}", passed, endings)]
        passed_over.update(passed)
        if not found:
            raise InputError(
                f"Images must end in {', '.join(endings)}. Received: "
                f"{printable(f'{folder}/{name}')}, which holds none ({passed or 'it is empty'})"
            )
        names += found
        numbers += [label] * len(found)
    if "" not in labels:
        passed_over["images outside of the folders of the classes"] += len(
            images_in(folder, endings)
        )
    # No shuffle buffer would mix them if they came by class, as they are on disk.
    order = np.random.default_rng(0).permutation(len(names))
    names, numbers = [names[i] for i in order], np.array(numbers, "int64")[order]
    digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
    digest.update(numbers.tobytes())
    return in_memory([os.fsencode(f"{folder}/{name}") for name in names], numbers, digest)
