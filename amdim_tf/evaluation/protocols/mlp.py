"""A classifier with one hidden layer on the frozen encoder."""

from typing import TYPE_CHECKING

from amdim_tf.evaluation.predictions import Predictions
from amdim_tf.evaluation.protocols.protocol import Protocol

if TYPE_CHECKING:
    from amdim_tf.evaluation.evaluation import Evaluation


class Mlp(Protocol):
    """Measures the MLP, which is trained together with the linear classifier."""

    ways, training = ("views", "features"), "linear"

    def predictions(self, evaluation: "Evaluation") -> Predictions | None:
        probes = evaluation.probes
        return probes["mlp"] if probes else None
