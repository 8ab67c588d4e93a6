"""What a model finds where: scores and posteriors over the locations of images (Figure 2)."""

import numpy as np
from sklearn.neighbors import NearestNeighbors

from amdim_tf.objectives.mixture import posterior
from amdim_tf.objectives.nce import nce, score

# Images whose locations are each other's negatives, as in a batch of training.
BATCH = 64


def offered(model, images):
    """{name: shape} of `Learner.features`, for images (N,S,S,3)."""
    return {name: tuple(x.shape) for name, x in model.features(images[:2]).items()}


def feature(model, images, name):
    """One of `Learner.features` of normalised images (N,S,S,3), as an array; `BATCH` at a time."""
    parts = [model.features(images[i : i + BATCH])[name] for i in range(0, len(images), BATCH)]
    return np.concatenate([np.float32(part) for part in parts])


def matching(antecedents, locations):
    """Scores (N,m,m) of antecedents (N,D), or one for all (D,), with locations (N,m,m,D)."""
    count, m, _, width = locations.shape
    antecedents = np.broadcast_to(antecedents, (count, width))
    pairs = zip(antecedents, locations, strict=True)
    flat = [score(a[None, None], x.reshape(1, m * m, width)) for a, x in pairs]
    return np.reshape(flat, (count, m, m))


def neighbours(f1, count):
    """Of each image the `count` nearest others by cosine of f1 (N,D): places, cosines (N,count)."""
    distances, places = NearestNeighbors(n_neighbors=count, metric="cosine").fit(f1).kneighbors()
    return places, 1 - distances


def same_class(f1, labels, count):
    """The part of the `count` images nearest to each, by f1 (N,D), that are of its class (N,)."""
    places, _ = neighbours(f1, count)
    return float(np.mean(labels[places] == labels[:, None]))


def posteriors(model, x1, x2):
    """Which component of x1 accounts for each location of x2 (Equation 7).

    Args:
        model: a `Learner` with mixture features.
        x1, x2: views (N,S,S,3), normalised; N is at least 2.

    Returns:
        (N,k,7,7), which sums to one over components. The negatives are the other images among
        `BATCH`.
    """
    found = []
    for part in np.array_split(np.arange(len(x1)), max(len(x1) // BATCH, 1)):
        components = np.moveaxis(np.asarray(model.features(x1[part])["mixture"]), 1, 0)
        consequents = np.asarray(model.features(x2[part])["r7"])
        consequents = consequents.reshape(len(part), 49, -1)
        losses, _ = nce(components, consequents, model.objective.clip, model.objective.regulariser)
        q = np.asarray(posterior(losses, model.objective.tau))
        found.append(np.moveaxis(q, 0, 1).reshape(len(part), -1, 7, 7))
    return np.concatenate(found)


def separation(q):
    """How well the likeliest components tell the left from the right half of images, (N,).

    The part of the 7x7 locations, less the middle column, that lie in the half to which most of
    their component lie: 1 if no component is in both halves, 1/2 for a single component.
    """
    best = q.argmax(1)
    left, right = best[:, :, :3], best[:, :, 4:]
    most = sum(
        np.maximum((left == j).sum((1, 2)), (right == j).sum((1, 2))) for j in range(q.shape[1])
    )
    return most / 42
