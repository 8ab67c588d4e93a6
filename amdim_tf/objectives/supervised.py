"""Training by labels, the paper's yardstick: the classifiers on f1 shape the encoder."""

from amdim_tf.objectives.objective import Objective


class Supervised(Objective):
    """No loss of its own: the gradient of the classifiers' losses reaches the encoder.

    Args:
        views: of an image in a step.
    """

    needs_labels, learns_from_probes = True, True

    def __init__(self, views: int = 2):
        self.views = views

    def get_config(self):
        return {"views": self.views}
