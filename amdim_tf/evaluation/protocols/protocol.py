"""The contract of protocols: how an encoder is measured.

A protocol is one file: a class by the file's name in CamelCase. `evaluate --protocol` finds it
there, and one outside of the package as MODULE:CLASS; see docs/extending.md.
"""

from amdim_tf.evaluation.predictions import Predictions
from amdim_tf.finding import find


class Protocol:
    """What learns from the labelled images of a data set, and classifies its test images.

    Attributes:
        ways: "views" if it learns from augmented images, "features" if from those that are computed
            once; of both, --fast chooses the latter.
        training: the name of another protocol whose classifiers it shares, if any.
    """

    ways: tuple[str, ...] = ("features",)
    training: str = ""

    def predictions(self, evaluation) -> Predictions | None:
        """Its classes for the test images.

        Args:
            evaluation: an `evaluation.Evaluation`, which has data, encoder and features.

        Returns:
            `Predictions`; of several workers, those but the chief may return None.
        """
        raise NotImplementedError


def find_protocol(name: str) -> type[Protocol]:
    """The class of the protocol `name`, a file of this folder or MODULE:CLASS.

    Raises:
        InputError: there is none.
    """
    return find("protocol", name, __package__, Protocol)
