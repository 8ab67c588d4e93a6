"""A linear classifier on the frozen encoder, the paper's measure."""

from amdim_tf.evaluation.protocols.protocol import Protocol


class Linear(Protocol):
    """It is trained together with the MLP."""

    ways = ("views", "features")

    def predictions(self, evaluation):
        return evaluation.probes and evaluation.probes["linear"]
