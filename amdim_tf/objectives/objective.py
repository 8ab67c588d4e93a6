"""The contract of objectives: what an encoder learns, and all that the rest asks of it.

An objective is one file: a class by the file's name in CamelCase. `--config.objective` finds it
there, and one outside of the package as MODULE:CLASS; see docs/extending.md.
"""

import dataclasses

import keras

from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.errors import InputError
from amdim_tf.finding import find


@dataclasses.dataclass(frozen=True)
class Losses:
    """What an objective says of a batch.

    Args:
        total: scalar, which encoder and objective minimise.
        terms: {name: scalar}; if one is not finite the step changes nothing, and names it.
        metrics: {name: scalar}, those of `Objective.metrics`.
    """

    total: object = 0.0
    terms: dict = dataclasses.field(default_factory=dict)
    metrics: dict = dataclasses.field(default_factory=dict)


class Objective:
    """What an encoder learns from views of images.

    A training step concatenates the views, runs the encoder's trunk, and then `project`,
    `normalise` and `losses`. Under several replicas each sees its images of the batch, and the
    gradient is the mean of theirs; `distribution.gather` gives what needs the others' images.

    Attributes:
        views: of an image in a step.
        least_images: of a batch.
        needs_labels: whether `losses` or the probes must have them.
        learns_from_probes: whether the gradient of the classifiers reaches the encoder.
        scales: those that `project` gives; 1 is among them.
        metrics: names of what it measures in training.
        encoder: that of `build`.
    """

    views, least_images, needs_labels, learns_from_probes = 2, 1, False, False
    scales: tuple[int, ...] = (1,)
    metrics: tuple[str, ...] = ()

    @classmethod
    def check(cls, config) -> None:
        """Raises `InputError` for a config that it cannot be made of."""
        if config.mixture_components:
            raise InputError(
                f"mixture_components are for the objective amdim alone. Received: "
                f"mixture_components={config.mixture_components}, objective={config.objective!r}"
            )

    @classmethod
    def of(cls, config) -> "Objective":
        """The objective of a config."""
        return cls()

    def build(self, encoder: ImageEncoder) -> dict[str, keras.layers.Layer]:
        """Its own layers for an encoder, built: {name: layer}."""
        self.encoder = encoder
        return {}

    @property
    def projection(self) -> tuple[keras.layers.Layer, ...]:
        """Its layers of which `project` consists."""
        return ()

    def draw(self, seed: int, step, batch: int):
        """Random numbers of a step on `batch` images of this replica, as a nest of tensors.

        They are functions of seed, step () and the place of an image in the global batch.
        """
        return ()

    def project(self, features: dict, training: bool, views: int) -> dict:
        """{n: tensor (V*B,...)} of the trunk's features; images do not see each other here."""
        return {1: features["f1"]}

    def normalise(self, projected: dict, training: bool, views: int) -> dict:
        """{n: tensor (V*B,...)}, after the batch norms at its end; 1 is f1 (V*B,nrkhs)."""
        return {1: self.encoder.head(projected[1], training=training, views=views)}

    def losses(self, embeddings: dict, labels, draws) -> Losses:
        """What this replica's images make of it.

        Args:
            embeddings: as `normalise` gives them, view 1 first.
            labels: (B,) int64, -1 where unknown.
            draws: as `draw` gives them.
        """
        return Losses()

    def features(self, features: dict) -> dict:
        """{name: tensor} that an export offers beside the encoder's `features`."""
        return {}

    def representations(self) -> dict[str, ImageEncoder]:
        """Encoders beside the encoder itself that evaluation may measure, by name."""
        return {}

    def divide(self, compiled: bool) -> None:
        """Makes regions of what holds neither variables nor collectives; see `distribution`."""

    def flops(self, batch: int) -> int:
        """Floating-point operations of a step beside those of convolutions."""
        return 0

    def __str__(self) -> str:
        """What it is, in a phrase."""
        return type(self).__name__.lower()

    def get_config(self) -> dict:
        """The arguments that make it anew, as JSON has them."""
        return {}


def find_objective(name: str) -> type[Objective]:
    """The class of the objective `name`, a file of this folder or MODULE:CLASS.

    Raises:
        InputError: there is none.
    """
    return find("objective", name, __package__, Objective)
