"""What a model finds at which location of an image: scores and posteriors (Figure 2)."""

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
        (N,k,7,7), which sums to one over components. The negatives are the other images of the
        batch.
    """
    found, objective = [], model.objective
    assert isinstance(objective, Amdim)  # no other has a mixture
    for chunk in np.array_split(np.arange(len(x1)), max(len(x1) // BATCH, 1)):
        components = np.moveaxis(np.asarray(model.features(x1[chunk])["mixture"]), 1, 0)
        consequents = np.asarray(model.features(x2[chunk])["r7"])
        consequents = consequents.reshape(len(chunk), 49, -1)
        losses, _ = nce(components, consequents, objective.clip, objective.regulariser)
        q = np.asarray(posterior(losses, objective.tau))
        found.append(np.moveaxis(q, 0, 1).reshape(len(chunk), -1, 7, 7))
    return np.concatenate(found)


def separation(q: np.ndarray) -> np.ndarray:
    """How well the likeliest components tell the left half of an image from the right, (N,).

    A component belongs to the half that has most of its locations. The result is the fraction of
    the 7x7 locations, without the middle column, that lie in the half of their component: 1 if no
    component is in both halves, 1/2 for a single component.

    Args:
        q: posteriors (N,k,7,7), see `posteriors`.
    """
    best = q.argmax(1)
    left, right = best[:, :, :3], best[:, :, 4:]
    most = sum(
        np.maximum((left == j).sum((1, 2)), (right == j).sum((1, 2))) for j in range(q.shape[1])
    )
    return most / 42
