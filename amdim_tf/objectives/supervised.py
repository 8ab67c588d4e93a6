"""Training with labels, the paper's baseline: the classifiers on f1 train the encoder."""

from amdim_tf.objectives.objective import Objective


class Supervised(Objective):
    """It adds no loss: the gradient of the classifiers' losses reaches the encoder.

    Args:
        views: number of views of an image in a step.

    Example:
    >>> objective = Supervised(views=1)
    >>> objective.needs_labels, objective.learns_from_probes, objective.get_config()
    (True, True, {'views': 1})
    """

    needs_labels, learns_from_probes = True, True

    def __init__(self, views: int = 2):
        self.views = views

    def get_config(self) -> dict:
        return {"views": self.views}
