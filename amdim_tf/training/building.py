"""A config becomes a model, and a model that is ready to train."""

import keras

from amdim_tf.config import check_fields
from amdim_tf.data.views import Policy
from amdim_tf.encoders.amdim import Encoder, check_encoder
from amdim_tf.errors import InputError
from amdim_tf.objectives import multiscale
from amdim_tf.training.classifier import Classifier
from amdim_tf.training.model import AMDIM
from amdim_tf.training.optimizer import AdamL2, WarmupStepDecay, guarded


def check_config(config):
    """Raises `InputError` for the first value of which no training comes."""
    check_fields(config)
    check_encoder(config.image_size, config.ndf, config.nrkhs, config.ndepth)
    tasks = multiscale.parse_tasks(config.tasks)
    Policy(**config.views)
    if config.micro_batch and config.use_bn:
        raise InputError(
            "micro_batch is for models without use_bn: batch norm inside the trunk would not see "
            f"the complete batch. Received: micro_batch={config.micro_batch}, "
            f"use_bn={config.use_bn}"
        )
    from_f1 = config.objective == "amdim" and any(n == 1 for n, _ in tasks)
    if config.mixture_components and not from_f1:
        raise InputError(
            "mixture_components are for the amdim objective with a task from scale 1. Received: "
            f"mixture_components={config.mixture_components}, tasks={config.tasks!r}, "
            f"objective={config.objective!r}"
        )


def build_model(config, classes, dtype=None):
    """The model of `config`, not compiled; its `dtype` is by default the config's precision."""
    encoder = Encoder(
        config.image_size,
        config.ndf,
        config.nrkhs,
        config.ndepth,
        config.use_bn,
        dtype=dtype or config.precision,
        name="encoder",
    )
    if config.objective == "supervised":
        return Classifier(encoder, classes, seed=config.seed)
    return AMDIM(
        encoder,
        classes,
        config.tasks,
        config.clip or None,
        config.regulariser,
        config.seed,
        config.score_megabytes * 2**20,
        config.mixture_components,
        config.mixture_tau,
    )


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
