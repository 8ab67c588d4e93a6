"""Fine-tuning: the encoder learns the labels with the classifiers."""

from amdim_tf.evaluation.protocols.protocol import Protocol


class Finetune(Protocol):
    """The linear classifier of those that the encoder is trained with."""

    ways = ("views",)

    def predictions(self, evaluation):
        encoder, _ = evaluation.load()  # which is changed
        return evaluation.on_views("finetune", encoder, frozen=False)["linear"]
