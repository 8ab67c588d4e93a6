"""A config becomes a model, and a model that is ready to train."""

import keras

from amdim_tf.config import check_fields
from amdim_tf.data.views import Policy
from amdim_tf.encoders.amdim import Encoder, check_encoder
from amdim_tf.errors import InputError
from amdim_tf.objectives.objective import find_objective
from amdim_tf.training.learner import Learner
from amdim_tf.training.optimizer import AdamL2, WarmupStepDecay, guarded
from amdim_tf.typing import Config


def check_config(config: Config) -> None:
    """Raises `InputError` for the first value that training cannot use."""
    check_fields(config)
    check_encoder(config.image_size, config.ndf, config.nrkhs, config.ndepth)
    find_objective(config.objective).check(config)
    Policy(**config.views)
    if config.micro_batch and config.use_bn:
        raise InputError(
            "micro_batch is valid only without use_bn: batch norm inside the trunk would not see "
            f"the complete batch. Received: micro_batch={config.micro_batch}, "
            f"use_bn={config.use_bn}"
        )


def build_encoder(config: Config, dtype: str | None = None) -> Encoder:
    """The encoder of `config`; its `dtype` is by default the config's precision."""
    return Encoder(
        config.image_size,
        config.ndf,
        config.nrkhs,
        config.ndepth,
        config.use_bn,
        dtype=dtype or config.precision,
        name="encoder",
    )


def build_model(config: Config, classes: int, dtype: str | None = None) -> Learner:
    """The model of `config`, not compiled; for `dtype` see `build_encoder`."""
    objective = find_objective(config.objective).of(config)
    return Learner(build_encoder(config, dtype), classes, objective, seed=config.seed)


def build(config: Config, classes: int, last_step: int, compiled: bool = False) -> Learner:
    """The model of `config`, ready to train, with weights drawn from its seed.

    Args:
        classes: number of classes.
        last_step: the last step of the training, which the learning rate's schedule depends on.
        compiled: whether XLA compiles the training step.
    """
    keras.utils.set_random_seed(config.seed)
    model = build_model(config, classes)
    schedule = WarmupStepDecay(
        config.learning_rate,
        min(config.warmup_steps, last_step // 5),
        [round(fraction * last_step) for fraction in config.decays],
        config.decay_rate,
    )
    optimizer = AdamL2(schedule, config.l2)
    if config.precision == "mixed_float16":
        optimizer = guarded(optimizer, scale=2.0**15, growth_steps=2000)
    model.prepare(optimizer, compiled, config.micro_batch)
    return model
