"""The contract of objectives: what an encoder learns, and what other code asks an objective.

An objective is one file, with a class named as the file but in CamelCase. `--config.objective`
takes the file's name, or MODULE:CLASS for a file outside the package; see docs/extending.md.
"""

import dataclasses
import re
from collections.abc import Sequence

import keras
from keras import ops

from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.errors import InputError
from amdim_tf.finding import find
from amdim_tf.typing import Config, Tensor


@dataclasses.dataclass(frozen=True)
class Losses:
    """What an objective returns for a batch.

    Args:
        total: scalar; encoder and objective minimise it.
        terms: {name: scalar}; if one is not finite, the step names it and changes no weight.
        metrics: {name: scalar} for each name in `Objective.metrics`.

    Example:
    >>> losses = Losses(2.5, terms={"nce": 2.0, "penalty": 0.5}, metrics={"loss": 2.5})
    >>> losses.total == sum(losses.terms.values())
    True
    """

    total: Tensor = 0.0
    terms: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    metrics: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class Objective:
    """What an encoder learns from views of images.

    A training step runs `present`, the encoder's trunk, and then `project`, `normalise` and
    `losses`. With several replicas, each sees its own images of the batch, and the gradients are
    averaged; `distribution.gather` fetches the other replicas' images.

    Attributes:
        views: number of views of an image in a step.
        copies: number of images that the encoder gets for each view.
        least_images: the smallest valid batch.
        needs_labels: whether `losses` or the probes need labels.
        reconstructs: whether `losses` also gets what `present` returned, as 0 of the embeddings.
        learns_from_probes: whether the classifiers' gradient reaches the encoder.
        scales: the keys that `project` returns; 1 is among them.
        metrics: names of the metrics that `losses` returns.
        role_of_f1: what the losses take f1 for, in a phrase.
        encoder: the encoder that `build` was given.

    Example:
    >>> class Sum(Objective):
    ...     def losses(self, embeddings, labels, draws):
    ...         return Losses(keras.ops.sum(embeddings[1]))
    >>> objective = Sum()
    >>> float(objective.losses({1: keras.ops.ones((4, 8))}, None, ()).total)
    32.0
    >>> objective.views, str(objective)
    (2, 'sum')
    """

    views: int = 2
    copies: int = 1
    least_images: int = 1
    needs_labels: bool = False
    reconstructs: bool = False
    learns_from_probes: bool = False
    scales: tuple[int, ...] = (1,)
    metrics: tuple[str, ...] = ()
    role_of_f1: str = "which the objective trains"
    encoder: ImageEncoder

    @classmethod
    def check(cls, config: Config) -> None:
        """Raises `InputError` if the config's values are not valid for this objective."""
        if config.mixture_components:
            raise InputError(
                f"mixture_components must be 0 unless the objective is amdim. Received: "
                f"mixture_components={config.mixture_components}, objective={config.objective!r}"
            )
        if config.views.small_crops:
            raise InputError(
                "views.small_crops must be 0 unless the objective is amdim. Received: "
                f"views.small_crops={config.views.small_crops}, objective={config.objective!r}"
            )

    @classmethod
    def of(cls, config: Config) -> "Objective":
        """The objective that a config describes."""
        return cls()

    def build(self, encoder: ImageEncoder) -> dict[str, keras.layers.Layer]:
        """Makes and builds the objective's own layers for an encoder: {name: layer}."""
        self.encoder = encoder
        return {}

    @property
    def projection(self) -> tuple[keras.layers.Layer, ...]:
        """The layers that `project` runs."""
        return ()

    def draw(self, seed: int, step: Tensor, batch: int) -> Tensor:
        """Random numbers for a step on `batch` images of this replica, as a nest of tensors.

        They depend only on seed, step () and an image's position in the global batch.
        """
        return ()

    def present(self, views: Sequence[Tensor], draws: Tensor) -> Tensor:
        """What the encoder gets of `views`, (B,S,S,C) each: (V*B*copies,...), view 1 first."""
        return ops.concatenate(views)

    def project(self, features: dict[str, Tensor], training: bool, views: int) -> dict[int, Tensor]:
        """{n: tensor (V*B*copies,...)} from the trunk's features, each image by itself."""
        return {1: features["f1"]}

    def normalise(
        self, projected: dict[int, Tensor], training: bool, views: int
    ) -> dict[int, Tensor]:
        """{n: tensor (V*B*copies,...)} after the last batch norms; 1 is f1, of width nrkhs."""
        return {1: self.encoder.head(projected[1], training=training, views=views)}

    def losses(self, embeddings: dict[int, Tensor], labels: Tensor, draws: Tensor) -> Losses:
        """The losses of this replica's images.

        Args:
            embeddings: as `normalise` returns them, view 1 first.
            labels: (B,) int64, -1 where unknown.
            draws: as `draw` returns them.
        """
        return Losses()

    def of_views(self, f1: Tensor) -> Tensor:
        """f1 (V*B,nrkhs) of the views themselves, by which the probes learn: the first rows."""
        return f1 if self.copies == 1 else f1[: ops.shape(f1)[0] // self.copies]

    def features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """{name: tensor} that an export offers in addition to the encoder's `features`."""
        return {}

    def representations(self) -> dict[str, ImageEncoder]:
        """Other encoders that evaluation may measure, by name."""
        return {}

    def divide(self, compiled: bool) -> None:
        """Makes a region of code without variables and collectives; see `distribution`."""

    def flops(self, batch: int) -> int:
        """Floating-point operations of a step, without those of convolutions."""
        return 0

    def __str__(self) -> str:
        """The objective in a phrase."""
        return re.sub("(?<=.)([A-Z])", r"_\1", type(self).__name__).lower()

    def get_config(self) -> dict:
        """The constructor's arguments, as JSON stores them."""
        return {}


def find_objective(name: str) -> type[Objective]:
    """The class of the objective `name`: a file of this folder, or MODULE:CLASS.

    Raises:
        InputError: no such objective.

    Example:
    >>> find_objective("supervised").__name__
    'Supervised'
    """
    return find("objective", name, __package__, Objective)
