"""The rows and columns of the table at the end of a training."""

import re
from typing import Any

from scipy import stats

from amdim_tf.evaluation.classifiers import fit_on_features
from amdim_tf.evaluation.features import Features
from amdim_tf.evaluation.protocols.knn import knn
from amdim_tf.typing import Config

HEADINGS = {"linear": "linear", "mlp": "MLP", "knn": "kNN"}
COLUMNS = tuple(HEADINGS)
ROWS = {
    "beside": "encoder, online probes",
    "frozen": "encoder, frozen",
    "untrained": "untrained encoder, frozen",
    "raw_pixels": "raw pixels",
}


def measure_row(train: Features, test: Features, classes: int, config: Config) -> dict[str, float]:
    """Test accuracy {"linear", "mlp", "knn"} on `Features`; see `fit_on_features` and `knn`."""
    found = fit_on_features(train, test, classes, config) | {"knn": knn(train, test, classes)}
    return {name: found[name].accuracy() for name in COLUMNS}


def images_of(result: dict[str, Any], row: str) -> int:
    """How many test images the accuracies in a `row` of the table of `result` are of."""
    fewer = re.search(r"(\d+) test images", result.get("notes", {}).get(row) or "")
    return int(fewer[1]) if fewer else result["test_images"]


def wilson(fraction: float, images: int) -> tuple[float, float]:
    """The 95 % interval (low, high) of a `fraction` of so many `images`, by Wilson's score.

    Example:
    >>> low, high = wilson(0.8, 70)
    >>> round(low, 3), round(high, 3)
    (0.692, 0.877)
    """
    low, high = stats.binomtest(round(fraction * images), images).proportion_ci(method="wilson")
    return float(low), float(high)


def gains(result: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """By how much training raised the accuracies of the frozen encoder, if both were measured.

    Args:
        result: the content of a run's result.json.

    Returns:
        {"linear", "mlp", "knn"} of (difference, low, high): the 95 % interval is Newcombe's by
        Wilson's scores (Statistics in Medicine 17, 1998, method 10), as of independent samples.
    """
    accuracy, found = result.get("accuracy", {}), {}
    trained, untrained = accuracy.get("frozen", {}), accuracy.get("untrained", {})
    for name in [name for name in COLUMNS if name in trained and name in untrained]:
        a, b = trained[name], untrained[name]
        a_low, a_high = wilson(a, images_of(result, "frozen"))
        b_low, b_high = wilson(b, images_of(result, "untrained"))
        low = a - b - ((a - a_low) ** 2 + (b_high - b) ** 2) ** 0.5
        high = a - b + ((a_high - a) ** 2 + (b - b_low) ** 2) ** 0.5
        found[name] = (a - b, low, high)
    return found


def gain_phrase(result: dict[str, Any]) -> str:
    """The `gains` of a result in one line; empty if there are none."""
    each = [
        f"{HEADINGS[name]} {value:+.3f} ({low:+.3f} to {high:+.3f})"
        for name, (value, low, high) in gains(result).items()
    ]
    return f"Frozen encoder, trained minus untrained: {', '.join(each)}" if each else ""
