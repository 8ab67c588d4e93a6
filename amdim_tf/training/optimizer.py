"""The reference's optimiser, schedules of the learning rate, and what guards an update."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from amdim_tf import distribution
from amdim_tf.typing import Tensor


@keras.saving.register_keras_serializable("amdim_tf")
class AdamL2(keras.optimizers.Adam):
    """Adam with the L2 penalty in the gradient, and so in both moments.

    Keras's `weight_decay` is decoupled (AdamW). Epsilon, too, follows the reference: it is added to
    the bias-corrected root of the second moment, where Keras adds it to the uncorrected one.

    Args:
        learning_rate: float or schedule.
        l2: weight of the penalty `l2 * |w|^2 / 2`, on every variable.
        beta_1, beta_2, epsilon, kwargs: arguments of `keras.optimizers.Adam`.

    Example:
    >>> weight = keras.Variable([1.0])
    >>> AdamL2(learning_rate=0.1, l2=0.0).apply([keras.ops.array([5.0])], [weight])
    >>> round(float(weight[0]), 3)  # the first step has the length of the learning rate
    0.9
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 2e-4,
        l2: float = 1e-5,
        beta_1: float = 0.8,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        **kwargs: Any,
    ):
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **kwargs)
        self.l2 = l2

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # Once for all variables: to trace a scalar takes as long as to trace an update.
        dtypes = {keras.backend.standardize_dtype(x.dtype) for x in trainable_variables}
        rates = {dtype: self._corrected(learning_rate, dtype) for dtype in dtypes}
        super()._backend_update_step(grads, trainable_variables, rates)

    def _corrected(self, learning_rate, dtype):
        """Rate and epsilon with the corrections of the moments, and both betas."""
        step = ops.cast(self.iterations + 1, dtype)
        # 1 - 0.999 in float32 is 1e-5 away from 0.001. The corrections take the same beta, or the
        # first steps would be that far from Adam's.
        precision = keras.backend.result_type(dtype, "float32")
        betas = [float(np.asarray(beta, precision)) for beta in (self.beta_1, self.beta_2)]
        # 1 - beta^t would lose five digits to cancellation in float32.
        correction1, correction2 = (-ops.expm1(step * math.log(beta)) for beta in betas)
        # As factors of the rate and of epsilon the corrections are no passes over the variable.
        root = ops.sqrt(correction2)
        return ops.cast(learning_rate, dtype) * root / correction1, self.epsilon * root, betas

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: dict[str, tuple]
    ) -> None:
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        gradient = gradient + self.l2 * ops.convert_to_tensor(variable)
        dtype = keras.backend.standardize_dtype(variable.dtype)
        rate, epsilon, betas = learning_rate[dtype]
        # In half precision a beta near 1 would be 1.
        if (tf := distribution.tf) and dtype in ("float32", "float64"):
            # One operation, where those of Keras's Adam would be a dozen passes over memory.
            nothing = tf.zeros((), gradient.dtype)  # the powers of both betas
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=m.value.handle,
                v=v.value.handle,
                beta1_power=nothing,
                beta2_power=nothing,
                lr=rate,
                beta1=tf.constant(betas[0], gradient.dtype),
                beta2=tf.constant(betas[1], gradient.dtype),
                epsilon=epsilon,
                grad=gradient,
            )
        else:
            self.assign_add(m, (gradient - m) * (1 - betas[0]))
            self.assign_add(v, (ops.square(gradient) - v) * (1 - betas[1]))
            self.assign_sub(variable, rate * m / (ops.sqrt(v) + epsilon))

    def get_config(self) -> dict:
        return super().get_config() | {"l2": self.l2}


def guarded(
    optimizer: keras.optimizers.Optimizer, scale: float = 1.0, growth_steps: int = 2**30
) -> "Guarded":
    """`optimizer`, but it skips updates with gradients that are not finite.

    Args:
        scale: factor of the loss, against underflow in float16; halved when an update is skipped.
        growth_steps: number of updates after which the scale is doubled; by default never.

    Example:
    >>> weight = keras.Variable([1.0])
    >>> optimizer = guarded(keras.optimizers.SGD(1.0))
    >>> optimizer.apply([keras.ops.array([float("nan")])], [weight])
    >>> float(weight[0])
    1.0
    """
    return Guarded(optimizer, scale, growth_steps)


@keras.saving.register_keras_serializable("amdim_tf")
class Guarded(keras.optimizers.LossScaleOptimizer):
    """Checks the first gradient alone: the training step makes it NaN if any is not finite.

    Example:
    >>> optimizer = Guarded(keras.optimizers.SGD(1.0))
    >>> bool(optimizer.check_finite([keras.ops.ones(2), float("nan") * keras.ops.ones(2)]))
    True
    """

    def check_finite(self, grads: Sequence[Tensor]) -> Tensor:
        return super().check_finite(grads[:1])


def clipped(gradients: Sequence[Tensor], largest: Tensor) -> list[Tensor]:
    """This replica's `gradients`, scaled so that the norm of all replicas' sum is not above.

    Keras's optimisers would clip each replica's own.

    Args:
        gradients: tensors of any shapes.
        largest: scalar.

    Example:
    >>> (clip,) = clipped([keras.ops.array([3.0, 4.0])], 1.0)
    >>> [round(float(x), 3) for x in clip]
    [0.6, 0.8]
    """
    mean = distribution.all_mean(list(gradients))
    squares = [ops.cast(ops.sum(ops.square(x)), "float32") for x in mean]
    norm = distribution.replicas() * ops.sqrt(sum(squares))
    factor = largest / ops.maximum(norm, largest)
    return [x * ops.cast(factor, x.dtype) for x in gradients]


def warm(step: Tensor, warmup: int) -> Tensor:
    """The factor of the learning rate at a `step`, a float, of a linear `warmup`.

    Example:
    >>> [float(warm(step, warmup=4)) for step in (0.0, 3.0, 10.0)]
    [0.25, 1.0, 1.0]
    """
    return ops.minimum(1.0, (step + 1) / max(warmup, 1))


@keras.saving.register_keras_serializable("amdim_tf")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to `peak` over `warmup` updates, and falls to zero along half a cosine.

    Args:
        peak, warmup: see `WarmupStepDecay`.
        last: number of updates; the learning rate would be zero in the next.

    Example:
    >>> schedule = WarmupCosine(peak=1.0, warmup=2, last=10)
    >>> [round(float(schedule(step)), 3) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    def __init__(self, peak: float, warmup: int, last: int):
        self.peak, self.warmup, self.last = peak, warmup, last

    def __call__(self, step: Tensor) -> Tensor:
        step = ops.cast(step, "float32")
        passed = (step - self.warmup) / max(self.last - self.warmup, 1)
        cosine = (1 + ops.cos(math.pi * ops.clip(passed, 0.0, 1.0))) / 2
        return self.peak * warm(step, self.warmup) * cosine

    def get_config(self) -> dict:
        return {"peak": self.peak, "warmup": self.warmup, "last": self.last}


@keras.saving.register_keras_serializable("amdim_tf")
class WarmupStepDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to `peak` over `warmup` updates, and is multiplied by `rate` at each decay.

    Args:
        peak: the learning rate after the warm-up.
        warmup: number of updates; update t (from 0) of the warm-up uses peak * (t + 1) / warmup.
        decays: updates at which the learning rate falls.
        rate: factor of each fall.

    Example:
    >>> schedule = WarmupStepDecay(peak=1.0, warmup=4, decays=[10], rate=0.5)
    >>> [float(schedule(step)) for step in (0, 1, 4, 10)]
    [0.25, 0.5, 1.0, 0.5]
    """

    def __init__(self, peak: float, warmup: int, decays: Sequence[float] = (), rate: float = 0.2):
        self.peak, self.warmup, self.decays, self.rate = peak, warmup, tuple(decays), rate

    def __call__(self, step: Tensor) -> Tensor:
        step = ops.cast(step, "float32")
        passed = sum(ops.cast(step >= decay, "float32") for decay in self.decays)
        fallen = ops.power(self.rate, ops.cast(passed, "float32"))
        return self.peak * warm(step, self.warmup) * fallen

    def get_config(self) -> dict:
        return {"peak": self.peak, "warmup": self.warmup, "decays": self.decays, "rate": self.rate}
