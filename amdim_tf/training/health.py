"""How healthy a representation is, without labels: f1 that collapsed is the same for all images."""

from collections.abc import Mapping

import numpy as np
from keras import ops

from amdim_tf.errors import InputError
from amdim_tf.typing import Tensor

NAMES = ("f1_std", "f1_alignment", "f1_uniformity")


def of_batch(f1: Tensor, views: int) -> dict[str, Tensor]:
    """Scalars that say how f1 of a batch is spread, each scaled to length 1.

    - f1_std: standard deviation of a dimension, times the root of their number: 1 if f1 points in
      all directions alike, 0 if it has collapsed.
    - f1_alignment: mean squared distance of the first two views of an image, if there are two; 0
      if f1 is the same.
    - f1_uniformity: log of the mean of exp(-2 d^2) over pairs of images of the first view, at
      distance d; 0 if f1 has collapsed, and about -4 if it is uniform in many dimensions.

    The last two are those of Wang and Isola (arXiv 2005.10242).

    Args:
        f1: (views*B,D), view 1 first.

    Example:
    >>> found = of_batch(ops.ones((8, 4)), views=2)  # collapsed
    >>> {name: round(abs(float(x)), 3) for name, x in found.items()}
    {'f1_std': 0.0, 'f1_alignment': 0.0, 'f1_uniformity': 0.0}
    """
    f1 = ops.cast(f1, "float32")
    f1 /= ops.maximum(ops.norm(f1, axis=1, keepdims=True), 1e-12)
    width = float(f1.shape[1]) ** 0.5
    first, *others = ops.split(f1, views)
    distances = 2 - 2 * ops.matmul(first, ops.transpose(first))
    images = ops.shape(first)[0]
    pairs = ops.cast(images * (images - 1), "float32")
    apart = ops.exp(-2 * distances) * (1 - ops.eye(images))
    found = {"f1_std": width * ops.mean(ops.std(first, axis=0))}
    if others:
        found["f1_alignment"] = ops.mean(ops.sum(ops.square(first - others[0]), axis=1))
    return found | {
        # A single image has no pairs.
        "f1_uniformity": ops.log(ops.where(pairs > 0, ops.sum(apart) / pairs, 1.0)),
    }


def effective_rank(features: np.ndarray) -> float:
    """How many dimensions the `features` (N,D), each scaled to length 1, use alike.

    The exponential of the entropy of their singular values as shares of the sum (Roy and Vetterli
    2007; as a measure of representations, arXiv 2210.02885): 1 if collapsed, at most min(N, D), and
    not a number if a feature is none.

    Example:
    >>> round(effective_rank(np.eye(8, 16)), 3), round(effective_rank(np.ones((8, 16))), 3)
    (8.0, 1.0)
    """
    features = features.astype("float64")
    if not np.isfinite(features).all():
        return float("nan")
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    singular = np.linalg.svd(features / np.maximum(lengths, 1e-12), compute_uv=False)
    shares = singular / max(singular.sum(), 1e-12)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def phrase(health: Mapping[str, float]) -> str:
    """The `health` of f1 (N,D) on one view of N images, in a line."""
    return (
        f"f1 of {health['images']} images, without labels: deviation {health['f1_std']:.2f} of 1, "
        f"effective rank {health['f1_effective_rank']:.1f} of "
        f"{min(health['images'], health['width'])}, uniformity {health['f1_uniformity']:.2f}"
    )


def of_features(features: np.ndarray) -> dict[str, float]:
    """The health of `features` (N,D), which a result keeps; see `of_batch` and `effective_rank`.

    Raises:
        InputError: a feature is not finite.
    """
    if not np.isfinite(features).all():
        raise InputError("f1 must be of finite numbers. Received: others among them")
    found = of_batch(features, views=1)
    return {
        "images": len(features),
        "width": features.shape[1],
        "f1_std": float(found["f1_std"]),
        "f1_effective_rank": effective_rank(features),
        "f1_uniformity": float(found["f1_uniformity"]),
    }
