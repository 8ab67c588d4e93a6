"""Folders of images: a split's subfolders are its classes."""

import hashlib
import os

import numpy as np
import tensorflow as tf

from amdim_tf.data.data import UNLABELLED, Data
from amdim_tf.data.decoding import decode
from amdim_tf.data.failures import Failures
from amdim_tf.data.folders import EXTENSIONS, PassedOver, images_in, subfolders, walk
from amdim_tf.data.splits import in_memory
from amdim_tf.errors import InputError
from amdim_tf.files import printable


def from_folder(config, folder):
    """Images in `folder`/<split>/<class>/, or without classes all in `folder`/<train split>/.

    Raises:
        InputError: a folder without images, or classes that differ between the splits.
    """
    train, test = (f"{folder}/{name}" for name in (config.train_split, config.test_split))
    if folder is None or not tf.io.gfile.isdir(train):
        raise InputError(
            f"data_dir must name a folder with {config.train_split}/<class>/ and "
            f"{config.test_split}/<class>/, or with images in {config.train_split}/. "
            f"Received: data_dir={folder}"
        )
    classes = [] if config.labels == "none" else subfolders(train)
    of_test = subfolders(test) if classes and tf.io.gfile.isdir(test) else []
    if classes != of_test:
        different = sorted(set(classes) ^ set(of_test))
        raise InputError(
            f"{train} and {test} must hold the same classes; --config.labels=none trains on images "
            f"in any subfolders without classes. Received: {len(classes)} and {len(of_test)}; only "
            f"one of the folders has {', '.join(map(printable, different[:5]))}"
        )
    passed_over = PassedOver()
    if classes:
        labels = {name: label for label, name in enumerate(classes)}
        train, test = (_files(split, labels, passed_over) for split in (train, test))
    else:
        train, test = _files(train, {"": UNLABELLED}, passed_over), None
    return Data(
        train,
        train if classes else None,
        test,
        tuple(map(printable, classes)),
        lambda path: decode(tf.io.read_file(path)),
        (None, None),
        str(passed_over),
        read=tf.io.read_file,
        name=os.fsdecode,
        failures=Failures(train.size, config.bad_images),
    )


def _files(folder, labels, passed_over):
    """The images in the subfolders of `folder` that `labels` names, in a fixed random order."""
    names, of_names = [], []
    for name, label in labels.items():
        passed = PassedOver()
        found = [f"{name}/{path}".lstrip("/") for path in walk(f"{folder}/{name}", passed)]
        passed_over.update(passed)
        if not found:
            raise InputError(
                f"Images must end in {', '.join(EXTENSIONS)}. Received: "
                f"{printable(f'{folder}/{name}')}, which holds none ({passed or 'it is empty'})"
            )
        names += found
        of_names += [label] * len(found)
    if "" not in labels:
        passed_over["images outside of the folders of the classes"] += len(images_in(folder))
    # By class, as they are on disk, no shuffle buffer would mix them.
    order = np.random.default_rng(0).permutation(len(names))
    names, of_names = [names[i] for i in order], np.array(of_names, "int64")[order]
    digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
    digest.update(of_names.tobytes())
    return in_memory([os.fsencode(f"{folder}/{name}") for name in names], of_names, digest)
