"""What a model finds at which location of an image: scores and posteriors (Figure 2)."""

import re
from collections.abc import Collection

import numpy as np
from sklearn.neighbors import NearestNeighbors

from amdim_tf.objectives.amdim import Amdim
from amdim_tf.objectives.mixture import posterior
from amdim_tf.objectives.nce import nce, score
from amdim_tf.training.learner import Learner

# Images in a batch, as in training: their locations are each other's negatives.
BATCH = 64


def offered(model: Learner, images: np.ndarray) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the features that `model` has for two of the `images` (N,S,S,3)."""
    return {name: tuple(x.shape) for name, x in model.features(images[:2]).items()}


def scored(offered: Collection[str]) -> list[int]:
    """The scales n > 1 whose embeddings r<n> are among the features `offered`, ascending."""
    found = (re.fullmatch(r"r(\d+)", name) for name in offered)
    return sorted(int(match[1]) for match in found if match and match[1] != "1")


def feature(model: Learner, images: np.ndarray, name: str) -> np.ndarray:
    """The feature `name` of normalised images (N,S,S,3), float32, computed `BATCH` at a time."""
    chunks = [model.features(images[i : i + BATCH])[name] for i in range(0, len(images), BATCH)]
    return np.concatenate([np.float32(chunk) for chunk in chunks])


def matching(antecedents: np.ndarray, locations: np.ndarray) -> np.ndarray:
    """Scores (N,m,m) of antecedents (N,D), or of one (D,) for all, with locations (N,m,m,D)."""
    count, m, _, width = locations.shape
    antecedents = np.broadcast_to(antecedents, (count, width))
    pairs = zip(antecedents, locations, strict=True)
    flat = [score(a[None, None], x.reshape(1, m * m, width)) for a, x in pairs]
    return np.reshape(flat, (count, m, m))


def neighbours(f1: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest others of each image by cosine of f1 (N,D): places, cosines (N,count)."""
    distances, places = NearestNeighbors(n_neighbors=count, metric="cosine").fit(f1).kneighbors()
    return places, 1 - distances


def same_class(f1: np.ndarray, labels: np.ndarray, count: int) -> float:
    """The fraction of an image's `count` nearest, by f1 (N,D), that have its label (N,); a mean."""
    places, _ = neighbours(f1, count)
    return float(np.mean(labels[places] == labels[:, None]))


def posteriors(model: Learner, x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """The posterior over the components of x1, at each location of x2 (Equation 7).

    Args:
        model: a `Learner` with mixture features.
        x1, x2: views (N,S,S,3), normalised; N is at least 2.

    Returns:
        (N,k,m,m), which sums to one over components, at the largest scale m that f1 predicts. The
        negatives are the other images of the batch.
    """
    found, objective = [], model.objective
    assert isinstance(objective, Amdim)  # no other has a mixture
    m = max(m for n, m in objective.tasks if n == 1)
    for chunk in np.array_split(np.arange(len(x1)), max(len(x1) // BATCH, 1)):
        components = np.moveaxis(np.asarray(model.features(x1[chunk])["mixture"]), 1, 0)
        consequents = np.asarray(model.features(x2[chunk])[f"r{m}"])
        consequents = consequents.reshape(len(chunk), m * m, -1)
        losses, _ = nce(components, consequents, objective.clip, objective.regulariser)
        q = np.asarray(posterior(losses, objective.tau))
        found.append(np.moveaxis(q, 0, 1).reshape(len(chunk), -1, m, m))
    return np.concatenate(found)


def separation(q: np.ndarray) -> np.ndarray:
    """How well the likeliest components tell the left half of an image from the right, (N,).

    A component belongs to the half that has most of its locations. The result is the fraction of
    the locations, without a middle column, that lie in the half of their component: 1 if no
    component is in both halves, 1/2 for a single component.

    Args:
        q: posteriors (N,k,m,m), see `posteriors`.
    """
    best, half = q.argmax(1), q.shape[-1] // 2
    left, right = best[:, :, :half], best[:, :, -half:]
    most = sum(
        np.maximum((left == j).sum((1, 2)), (right == j).sum((1, 2))) for j in range(q.shape[1])
    )
    return most / (left.size + right.size) * len(q)
