"""Labels as users have them: whole numbers of any type, flat or in a column, or one-hot rows."""

import numpy as np
from keras import ops

UNKNOWN = -1


def fault(labels, images, classes):
    """What keeps `labels` from being those of so many `images`, in a phrase; None if nothing.

    Args:
        labels: an array, or a tensor that has a value.
        images: their number; None for any.
    """
    labels = np.asarray(labels)
    images = labels.shape[:1] if images is None else (images,)
    if labels.dtype.kind not in "biuf":
        return f"labels of type {labels.dtype}"
    if labels.shape not in (images, (*images, 1), (*images, classes)):
        return f"labels of shape {labels.shape}"
    if labels.ndim == 2 and labels.shape[1] > 1:
        one_hot = np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()
        return None if one_hot else "rows of labels that are not one-hot"
    wrong = labels[~np.isin(labels, np.arange(UNKNOWN, classes))]
    return f"the label {wrong[0]}" if len(wrong) else None


def as_classes(labels, images):
    """`labels` without a `fault`, or None, as classes (images,) int64, -1 where unknown."""
    if labels is None:
        return ops.full((images,), UNKNOWN, "int64")
    if len(labels.shape) == 2:
        column = labels.shape[1] == 1
        labels = labels[:, 0] if column else ops.argmax(ops.cast(labels, "int32"), axis=1)
    return ops.cast(labels, "int64")
