"""Few labels: a fraction of the training images, with equally many in each class."""

import numpy as np

from amdim_tf.errors import InputError


def balanced_places(labels: np.ndarray, fraction: float, classes: int) -> np.ndarray:
    """Places of a fixed `fraction` of the images with `labels` (N,), equally many in each class.

    A class that has fewer images gives all of them, and the other classes give more.

    Raises:
        InputError: the fraction leaves a class empty.
    """
    sizes, wanted = np.bincount(labels[labels >= 0], minlength=classes), fraction * len(labels)
    levels = np.arange(sizes.max() + 1)
    # For each level, the images that there are if no class gives more than that.
    totals = np.cumsum([0, *(len(sizes) - np.searchsorted(np.sort(sizes), levels[1:]))])
    count = np.searchsorted(totals, wanted * (1 + 1e-9), side="right") - 1
    order = np.random.default_rng(0).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    limits = np.searchsorted(labels[by_class], np.arange(classes + 1))
    chosen = [by_class[a:b][:count] for a, b in zip(limits[:-1], limits[1:], strict=True)]
    for label, places in enumerate(chosen):
        if not len(places):
            least = classes / len(labels)
            raise InputError(
                f"label_fraction must leave an image of each of the {classes} classes, at least "
                f"{least:.2g} of {len(labels)} images. Received: label_fraction={fraction:g}, "
                f"which leaves class {label} empty"
            )
    return np.sort(np.concatenate(chosen))
