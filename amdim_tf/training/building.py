"""A config becomes a model, and a model that is ready to train."""

import keras

from amdim_tf.config import check_fields
from amdim_tf.data.views import Policy
from amdim_tf.encoders.amdim import Encoder, check_encoder
from amdim_tf.errors import InputError
from amdim_tf.objectives.objective import find_objective
from amdim_tf.training.learner import Learner
from amdim_tf.training.optimizer import AdamL2, WarmupStepDecay, guarded


def check_config(config):
    """Raises `InputError` for the first value of which no training comes."""
    check_fields(config)
    check_encoder(config.image_size, config.ndf, config.nrkhs, config.ndepth)
    find_objective(config.objective).check(config)
    Policy(**config.views)
    if config.micro_batch and config.use_bn:
        raise InputError(
            "micro_batch is for models without use_bn: batch norm inside the trunk would not see "
            f"the complete batch. Received: micro_batch={config.micro_batch}, "
            f"use_bn={config.use_bn}"
        )


def build_encoder(config, dtype: str | None = None) -> Encoder:
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


def build_model(config, classes: int, dtype: str | None = None) -> Learner:
    """The model of `config`, not compiled; `dtype` is that of `build_encoder`."""
    objective = find_objective(config.objective).of(config)
    return Learner(build_encoder(config, dtype), classes, objective, seed=config.seed)


def build(config, classes, last_step, compiled=False):
    """The model of `config` with weights drawn from its seed, `compiled` by XLA or not."""
    keras.utils.set_random_seed(config.seed)
    model = build_model(config, classes)
    schedule = WarmupStepDecay(
        config.learning_rate,
        min(config.warmup_steps, last_step // 5),
        [round(part * last_step) for part in config.decays],
        config.decay_rate,
    )
    optimizer = AdamL2(schedule, config.l2)
    if config.precision == "mixed_float16":
        optimizer = guarded(optimizer, scale=2.0**15, growth_steps=2000)
    model.prepare(optimizer, compiled, config.micro_batch)
    return model
