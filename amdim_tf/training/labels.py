"""Labels as users have them: integers of any type, flat or in a column, or one-hot rows."""

import numpy as np
from keras import ops

from amdim_tf.data.data import UNLABELLED
from amdim_tf.typing import Tensor


def fault(labels: Tensor, images: int | None, classes: int) -> str | None:
    """What is wrong with `labels`, in a phrase; None if nothing is.

    Args:
        labels: an array, or a tensor that has a value.
        images: number of images that they should label; None for any.
        classes: number of classes.

    Example:
    >>> fault([0, 1, 7], images=3, classes=4)
    'the label 7'
    >>> fault([0, 1, -1], images=3, classes=4)  # the last is unknown
    """
    labels = np.asarray(labels)
    shape = labels.shape[:1] if images is None else (images,)
    if labels.dtype.kind not in "biuf":
        return f"labels of type {labels.dtype}"
    if labels.shape not in (shape, (*shape, 1), (*shape, classes)):
        return f"labels of shape {labels.shape}"
    if labels.ndim == 2 and labels.shape[1] > 1:
        one_hot = np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()
        return None if one_hot else "rows of labels that are not one-hot"
    wrong = labels[~np.isin(labels, np.arange(UNLABELLED, classes))]
    return f"the label {wrong[0]}" if len(wrong) else None


def as_classes(labels: Tensor, images: int) -> Tensor:
    """Classes (images,) int64 of valid `labels`, -1 where unknown.

    Args:
        labels: labels without a `fault`; None if all are unknown.
        images: number of images.

    Example:
    >>> one_hot = ops.array([[0.0, 1.0], [1.0, 0.0]])
    >>> as_classes(one_hot, images=2).numpy().tolist(), as_classes(None, 2).numpy().tolist()
    ([1, 0], [-1, -1])
    """
    if labels is None:
        return ops.full((images,), UNLABELLED, "int64")
    if len(labels.shape) == 2:
        column = labels.shape[1] == 1
        labels = labels[:, 0] if column else ops.argmax(ops.cast(labels, "int32"), axis=1)
    return ops.cast(labels, "int64")
