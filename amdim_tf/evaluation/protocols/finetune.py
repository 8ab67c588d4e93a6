"""Fine-tuning: the encoder learns the labels with the classifiers."""

from typing import TYPE_CHECKING

from amdim_tf.evaluation.predictions import Predictions
from amdim_tf.evaluation.protocols.protocol import Protocol

if TYPE_CHECKING:
    from amdim_tf.evaluation.evaluation import Evaluation


class Finetune(Protocol):
    """Trains linear and MLP classifiers with the encoder, and measures the linear one."""

    ways = ("views",)

    def predictions(self, evaluation: "Evaluation") -> Predictions | None:
        encoder, _ = evaluation.load()  # again, since fine-tuning changes it
        return evaluation.on_views("finetune", encoder, frozen=False)["linear"]
