"""The optimiser that a config names: the reference's, or one of Keras's, with its schedule."""

import ast
import inspect

import keras

from amdim_tf.config import FIELDS, nearest
from amdim_tf.errors import InputError, one_line
from amdim_tf.training.optimizer import AdamL2, WarmupCosine, WarmupStepDecay
from amdim_tf.typing import Config

REFERENCE = "reference"
# Arguments of Keras's optimisers that are fields of a config, or do not go with a guarded update.
CLIP = "clip_norm is a field of the config, and clips the gradient of all replicas"
AVERAGE = "weight_averaging is a field of the config"
NOT_OFFERED = {
    "learning_rate": "learning_rate is a field of the config",
    "l2": "l2 is a field of the config",
    **dict.fromkeys(("clipnorm", "global_clipnorm", "clipvalue"), CLIP),
    **dict.fromkeys(("use_ema", "ema_momentum", "ema_overwrite_frequency"), AVERAGE),
    "loss_scale_factor": "precision decides on it",
    "gradient_accumulation_steps": "contrast needs the complete batch",
    "name": "nothing reads it",
    "kwargs": "",
}


def names() -> dict[str, type[keras.optimizers.Optimizer]]:
    """{name: class} of the optimisers that a config may name."""
    found = {
        name.lower(): kind
        for name, kind in vars(keras.optimizers).items()
        if isinstance(kind, type) and issubclass(kind, keras.optimizers.Optimizer)
    }
    # Without those that only wrap others, and Adafactor: where a row and a column of a gradient are
    # zero, Keras's (3.15) divides zero by zero, and the weights are no numbers from then on.
    kinds = {
        name: kind
        for name, kind in found.items()
        if kind not in (keras.optimizers.Optimizer, keras.optimizers.Adafactor)
        and "learning_rate" in inspect.signature(kind).parameters
    }
    return {REFERENCE: AdamL2} | kinds


def named_optimizer(config: Config, last_step: int) -> keras.optimizers.Optimizer:
    """The optimiser of `config` for a training of `last_step` updates.

    Raises:
        InputError: there is none of that name, or it does not take the arguments.

    Example:
    >>> from amdim_tf.config import base_config
    >>> config = base_config()
    >>> config.update({"optimizer": "sgd", "optimizer_arguments": "momentum=0.9"})
    >>> named_optimizer(config, last_step=1000).momentum
    0.9
    """
    kinds, name = names(), config.optimizer.lower()
    if name not in kinds:
        raise InputError(
            f"optimizer must be one of {', '.join(kinds)}; the nearest are "
            f"{nearest(name, kinds)}. Received: optimizer={config.optimizer!r}"
        )
    kind, default = kinds[name], FIELDS["l2"].default
    if kind is not AdamL2 and config.l2 not in (0, default):
        raise InputError(
            "l2 is the reference's; for others, optimizer_arguments may have weight_decay. "
            f"Received: l2={config.l2:g}, optimizer={config.optimizer!r}"
        )
    arguments = _arguments(config, kind)
    try:
        own = {"l2": config.l2} if kind is AdamL2 else {}
        return kind(schedule(config, last_step), **own, **arguments)
    except (TypeError, ValueError) as error:
        raise _wrong(config, one_line(error)) from error


def schedule(config: Config, last_step: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate of `config` over a training of `last_step` updates."""
    warmup = warmup_steps(config, last_step)
    if config.schedule == "cosine":
        return WarmupCosine(config.learning_rate, warmup, last_step)
    decays = [round(fraction * last_step) for fraction in config.decays]
    return WarmupStepDecay(config.learning_rate, warmup, decays, config.decay_rate)


def warmup_steps(config: Config, last_step: int) -> int:
    """The updates of the warm-up; a short training keeps four fifths of its updates after it."""
    return min(config.warmup_steps, last_step // 5)


def description(config: Config, last_step: int) -> str:
    """The optimiser and its schedule in a line, with what differs from their fields."""
    arguments = f"({config.optimizer_arguments})" if config.optimizer_arguments else ""
    warmup = warmup_steps(config, last_step)
    shorter = ""
    if warmup < config.warmup_steps:
        shorter = f", a fifth of all, since warmup_steps={config.warmup_steps} are more"
    parts = [
        f"{config.optimizer}{arguments}",
        f"learning rate {config.learning_rate:g} by {config.schedule} after {warmup} updates of "
        f"warm-up{shorter}",
    ]
    if config.clip_norm:
        parts.append(f"gradients clipped to the norm {config.clip_norm:g}")
    if config.weight_averaging:
        others = {"averaged": "the averages", "trained": "the weights themselves"}
        parts.append(
            f"weights averaged by {config.weight_averaging:g}, "
            f"{others[config.measured_weights]} measured and exported"
        )
    return "; ".join(parts)


def _arguments(config, kind):
    """The arguments that `config` has for the optimiser `kind`, {name: value}."""
    try:
        call = ast.parse(f"f({config.optimizer_arguments})", mode="eval").body
        assert isinstance(call, ast.Call) and not call.args
        found = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise _wrong(config, "they are no list such as weight_decay=0.05, beta_2=0.95") from error
    valid = [name for name in inspect.signature(kind).parameters if name not in NOT_OFFERED]
    for name in found:
        if name not in valid:
            why = f"; {NOT_OFFERED[name]}" if NOT_OFFERED.get(name) else ""
            raise _wrong(config, f"those of {config.optimizer} are {', '.join(valid)}{why}")
    return found


def _wrong(config, why):
    return InputError(
        f"optimizer_arguments must be arguments of {config.optimizer}: {why}. "
        f"Received: optimizer_arguments={config.optimizer_arguments!r}"
    )
