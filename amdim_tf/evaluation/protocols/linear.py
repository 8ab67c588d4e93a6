"""A linear classifier on the frozen encoder, as the paper does."""

from typing import TYPE_CHECKING

from amdim_tf.evaluation.predictions import Predictions
from amdim_tf.evaluation.protocols.protocol import Protocol

if TYPE_CHECKING:
    from amdim_tf.evaluation.evaluation import Evaluation


class Linear(Protocol):
    """Measures the linear classifier, which is trained together with the MLP."""

    ways = ("views", "features")

    def predictions(self, evaluation: "Evaluation") -> Predictions | None:
        probes = evaluation.probes
        return probes["linear"] if probes else None
