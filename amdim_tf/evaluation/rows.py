"""The rows and columns of the table at the end of a training."""

from amdim_tf.evaluation.classifiers import fit_on_features
from amdim_tf.evaluation.features import Features
from amdim_tf.evaluation.protocols.knn import knn
from amdim_tf.typing import Config

COLUMNS = ("linear", "mlp", "knn")
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
