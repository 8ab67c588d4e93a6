"""A config becomes a model, and a model that is ready to train."""

import keras

from amdim_tf.config import check_fields
from amdim_tf.data.filters import own_layer
from amdim_tf.data.policy import Policy
from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.encoders.named import named_encoder
from amdim_tf.errors import InputError
from amdim_tf.objectives.multiscale import default_tasks, tasks_text
from amdim_tf.objectives.objective import find_objective
from amdim_tf.training.averaging import Averages, values
from amdim_tf.training.learner import Learner
from amdim_tf.training.named_optimizer import named_optimizer
from amdim_tf.training.optimizer import guarded
from amdim_tf.typing import Config


def check_config(config: Config) -> None:
    """Checks a config, and fills in what its encoder decides: normalisation and tasks.

    Raises:
        InputError: for the first value that training cannot use.
    """
    check_fields(config)
    kind = find_objective(config.objective)
    named_optimizer(config, last_step=1)
    Policy(**config.views)
    encoder = build_encoder(config)
    encoder.freeze(config.freeze)
    _normalise(config, encoder)
    if config.channels != 3 and config.views.autoaugment:
        raise InputError(
            f"views.autoaugment needs images of 3 channels. Received: channels={config.channels}"
        )
    if config.views.layer:
        own_layer(config.views.layer, (config.image_size, config.image_size, config.channels))
    if config.white and config.channels == 3:
        raise InputError(
            "white is for images of other than 3 channels, which keep their precision. "
            f"Received: white={config.white:g}, channels=3"
        )
    if config.micro_batch and encoder.use_bn:
        raise InputError(
            "micro_batch is valid only without batch norm inside the encoder, which would not see "
            f"the complete batch. Received: micro_batch={config.micro_batch}, "
            f"encoder={config.encoder!r}, use_bn={config.use_bn}"
        )
    config.tasks = config.tasks or tasks_text(default_tasks(encoder.scales))
    kind.check(config)
    objective = kind.of(config)
    objective.build(encoder)
    number = objective.views - config.views.small_crops
    if config.views.number not in (2, number):
        raise InputError(
            f"views.number must be {number} if the objective is {config.objective}. "
            f"Received: views.number={config.views.number}"
        )
    config.views.number = number


def _normalise(config, encoder):
    """Has `config` normalise images as `encoder` says, or else by its own numbers.

    Those of a data set's config are of three channels: for others they are measured, see `train`.
    """
    if encoder.normalisation:
        config.mean, config.std = encoder.normalisation
    elif config.channels != 3 and len(config.mean) == len(config.std) == 3:
        config.mean = config.std = ()
    for name in ("mean", "std"):
        if len(config[name]) not in (0, config.channels):
            raise InputError(
                f"{name} must be {config.channels} numbers, one per channel, or empty. "
                f"Received: {name}={config[name]}"
            )


def build_encoder(config: Config, dtype: str | None = None) -> ImageEncoder:
    """The encoder of `config`; its `dtype` is by default the config's precision."""
    return named_encoder(config, dtype or config.precision)


def build_model(config: Config, classes: int, dtype: str | None = None) -> Learner:
    """The model of `config`, not compiled; for `dtype` see `build_encoder`."""
    objective = find_objective(config.objective).of(config)
    return Learner(build_encoder(config, dtype), classes, objective, seed=config.seed)


def build(config: Config, classes: int, last_step: int, compiled: bool = False) -> Learner:
    """The model of `config`, ready to train, with its first weights.

    Args:
        classes: number of classes.
        last_step: the last step of the training, which the learning rate's schedule depends on.
        compiled: whether XLA compiles the training step.
    """
    keras.utils.set_random_seed(config.seed)
    model = build_model(config, classes)
    model.encoder.freeze(config.freeze)
    optimizer = named_optimizer(config, last_step)
    if config.precision == "mixed_float16":
        optimizer = guarded(optimizer, scale=2.0**15, growth_steps=2000)
    model.clip_norm = config.clip_norm
    model.prepare(optimizer, compiled, config.micro_batch)
    if config.weight_averaging:
        model.averages = Averages(values(model), config.weight_averaging)
    return model
