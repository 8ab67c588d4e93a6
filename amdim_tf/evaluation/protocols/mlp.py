"""A classifier with one hidden layer on the frozen encoder."""

from amdim_tf.evaluation.protocols.protocol import Protocol


class Mlp(Protocol):
    """It is trained together with the linear classifier."""

    ways, training = ("views", "features"), "linear"

    def predictions(self, evaluation):
        return evaluation.probes and evaluation.probes["mlp"]
