"""The golden values of the authors' implementation, and our model with their weights."""

import json
import pathlib

import numpy as np
from keras import ops

from amdim_tf.encoders.amdim import Encoder
from amdim_tf.reference import torch_file
from amdim_tf.reference.conversion import named_variables, to_keras
from amdim_tf.training.model import AMDIM

TESTS = pathlib.Path(__file__).parent
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
SIZES = (32, 64, 128)


class Golden:
    """One size of golden values: `meta`, `weights` and `values` by the reference's names."""

    def __init__(self, size):
        self.meta = json.loads((GOLDEN / f"{size}.json").read_text())
        self.values = dict(np.load(GOLDEN / f"{size}.npz"))
        self.weights = torch_file.read(GOLDEN / f"{size}.pth")["model"]

    def model(self, dtype="float32"):
        sizes = (self.meta[k] for k in ("image_size", "ndf", "nrkhs", "ndepth"))
        encoder = Encoder(*sizes, dtype=dtype)
        model = AMDIM(encoder, self.meta["n_classes"], clip=self.meta["tclip"])
        for name, variable in named_variables(model).items():
            variable.assign(to_keras(self.weights[name]))
        return model


def scored(model, x1, x2, locations):
    """(losses, penalty, entropies, f1 of both views) of the multiscale objective in training."""
    embeddings = model.objective.normalise(model._project(ops.concatenate([x1, x2])), True, 2)
    return *model.objective.scores(embeddings, locations)[:3], embeddings[1]


def relative_error(ours, golden):
    """|ours - golden| / |golden|, both in the Euclidean norm."""
    ours, golden = np.asarray(ours, "float64"), np.asarray(golden, "float64")
    return np.linalg.norm(ours - golden) / np.linalg.norm(golden)
