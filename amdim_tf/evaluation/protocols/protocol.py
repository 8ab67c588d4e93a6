"""The contract of protocols: how an encoder is measured.

A protocol is one file with a class that has the file's name in CamelCase. `evaluate --protocol`
finds it here by its name, and outside of the package as MODULE:CLASS; see docs/extending.md.
"""

from typing import TYPE_CHECKING

from amdim_tf.evaluation.predictions import Predictions
from amdim_tf.evaluation.regions import Regions
from amdim_tf.finding import find

if TYPE_CHECKING:
    from amdim_tf.evaluation.evaluation import Evaluation


class Protocol:
    """Learns from the labelled images of a data set, and classifies its test images.

    Attributes:
        ways: "views" if it can learn from augmented images, "features" if it can learn from
            features that are computed once. If it can do both, --fast chooses "features".
        of_maps: whether it classifies the locations of a map, and not f1.
        votes: whether the setting `neighbours` changes how it measures.
        training: the name of the protocol that trains its classifiers, if that is another one.
    """

    ways: tuple[str, ...] = ("features",)
    of_maps: bool = False
    votes: bool = False
    training: str = ""

    def predictions(self, evaluation: "Evaluation") -> Predictions | Regions | None:
        """Its classes for the test images, or for their pixels.

        Args:
            evaluation: an `evaluation.Evaluation`, which has data, encoder and features.

        Returns:
            `Predictions` or `Regions`; workers other than the chief may return None.
        """
        raise NotImplementedError


def find_protocol(name: str) -> type[Protocol]:
    """The class of the protocol `name`, which is a file in this folder or MODULE:CLASS.

    Raises:
        InputError: there is no such protocol.
    """
    return find("protocol", name, __package__, Protocol)
