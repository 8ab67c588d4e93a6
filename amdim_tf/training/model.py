"""The models that users make in Python: AMDIM, and an encoder with classifiers."""

from typing import Any

import keras

from amdim_tf.objectives.amdim import Amdim
from amdim_tf.objectives.supervised import Supervised
from amdim_tf.training.learner import Learner


class _OfSettings(Learner):
    """A model whose arguments are those of its objective."""

    def get_config(self) -> dict:
        config = super().get_config()
        _, settings = config.pop("objective")
        return config | settings


@keras.saving.register_keras_serializable("amdim_tf")
class AMDIM(_OfSettings):
    """Trains an encoder by the multiscale objective, with online probes that measure f1 (Eq. 5).

    `fit`, `evaluate` and calls are those of `Learner`. Only the probes see the labels, and their
    gradient does not reach the encoder, so `fit` needs no labels. Pass arrays as `fit((x1, x2))`.
    Datasets must yield `((x1, x2),)`: in `(x1, x2)` Keras takes the second view for labels, which
    is refused. A batch has at least two images, which are each other's negatives.

    Args:
        encoder: an `Encoder`.
        classes: number of classes, for the probes; 0 for no probes, and labels are then ignored.
        tasks, clip, regulariser, score_bytes, components, tau, nrkhs, small_crops, bound: see
            `objectives.amdim.Amdim`.
        seed: seed of all random draws, such as the antecedents' locations.
        kwargs: arguments of `keras.Model`.

    Example:
    >>> from amdim_tf import Encoder
    >>> from amdim_tf.training.optimizer import AdamL2
    >>> x1, x2 = keras.random.normal((2, 8, 32, 32, 3))
    >>> model = AMDIM(Encoder(image_size=32, ndf=4, nrkhs=16, ndepth=1), classes=0)
    >>> model.compile(optimizer=AdamL2(2e-4))
    >>> history = model.fit((x1, x2), batch_size=4, verbose=0)
    >>> tuple(model.encoder(x1)["f1"].shape)
    (8, 16)
    """

    def __init__(
        self,
        encoder: keras.Model,
        classes: int,
        tasks: str | None = None,
        clip: float | None = 20.0,
        regulariser: float = 5e-2,
        seed: int = 0,
        score_bytes: int = 2**28,
        components: int = 0,
        tau: float = 1.0,
        nrkhs: int | None = None,
        small_crops: int = 0,
        bound: str = "nce",
        **kwargs: Any,
    ):
        how = clip, regulariser, score_bytes, components, tau, nrkhs, small_crops, bound
        objective = Amdim(tasks, *how)
        super().__init__(encoder, classes, objective, seed=seed, **kwargs)

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "Learner":
        # Earlier versions wrote the number of views.
        kept = {name: value for name, value in config.items() if name != "views"}
        return super().from_config(kept, custom_objects)


@keras.saving.register_keras_serializable("amdim_tf")
class Classifier(_OfSettings):
    """An encoder with linear and MLP classifiers on its f1, trained with labels.

    It measures a frozen encoder, or fine-tunes one, or trains one by labels alone.

    Args:
        encoder: an `Encoder`; if `frozen`, any model with `nrkhs` and an output f1 (B,nrkhs).
        classes: number of classes.
        frozen: whether the encoder stays as it is, in inference mode.
        views: number of views of an image in a training step.
        seed: seed of dropout.
        kwargs: arguments of `keras.Model`.

    Example:
    >>> from amdim_tf import Encoder
    >>> images, labels = keras.random.normal((8, 32, 32, 3)), keras.ops.arange(8)
    >>> encoder = Encoder(image_size=32, ndf=4, nrkhs=16, ndepth=1)
    >>> model = Classifier(encoder, classes=10, frozen=True, views=1)
    >>> model.compile(optimizer="adam")
    >>> history = model.fit(images, labels, batch_size=8, verbose=0)
    >>> scores = model.evaluate(images, labels, verbose=0, return_dict=True)
    >>> sorted(scores)
    ['linear_accuracy', 'linear_loss', 'mlp_accuracy', 'mlp_loss']
    """

    def __init__(
        self,
        encoder: keras.Model,
        classes: int,
        frozen: bool = False,
        views: int = 2,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(encoder, classes, Supervised(views), frozen, seed, **kwargs)
