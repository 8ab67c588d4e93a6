"""The reference's optimiser: Adam with coupled L2, linear warm-up and step decay."""

import math

import keras
from keras import ops

from amdim_tf import distribution


@keras.saving.register_keras_serializable("amdim_tf")
class AdamL2(keras.optimizers.Adam):
    """Adam whose L2 penalty is part of the gradient, and so of both moments.

    Keras's `weight_decay` is decoupled (AdamW). Epsilon, too, is the reference's: it is added to
    the bias-corrected root of the second moment, where Keras adds it to the uncorrected one.

    Args:
        learning_rate: float or schedule.
        l2: weight of the penalty `l2 * |w|^2 / 2`, on every variable.
    """

    def __init__(
        self, learning_rate=2e-4, l2=1e-5, beta_1=0.8, beta_2=0.999, epsilon=1e-8, **kwargs
    ):
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **kwargs)
        self.l2, self._shared = l2, None

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        step = ops.cast(self.iterations + 1, variable.dtype)
        learning_rate = ops.cast(learning_rate, variable.dtype)
        changes = self._changes
        if distribution.replicas() > 1:
            # Traced once for each shape, not for each variable and replica.
            self._shared = self._shared or distribution.region(changes)
            changes = self._shared
        values = (ops.convert_to_tensor(x) for x in (variable, m, v))
        change, change_m, change_v = changes(gradient, *values, learning_rate, step)
        self.assign_add(m, change_m)
        self.assign_add(v, change_v)
        self.assign_sub(variable, change)

    def _changes(self, gradient, variable, m, v, learning_rate, step):
        """What is taken from the variable and added to its moments in a step."""
        gradient = gradient + self.l2 * variable
        change_m = (gradient - m) * (1 - self.beta_1)
        change_v = (ops.square(gradient) - v) * (1 - self.beta_2)
        # 1 - beta^t would lose five digits to cancellation in float32.
        correction1, correction2 = (
            -ops.expm1(step * math.log(beta)) for beta in (self.beta_1, self.beta_2)
        )
        root = ops.sqrt((v + change_v) / correction2)
        rate = learning_rate / correction1
        return rate * (m + change_m) / (root + self.epsilon), change_m, change_v

    def get_config(self):
        return super().get_config() | {"l2": self.l2}


def guarded(optimizer, scale=1.0, growth_steps=2**30):
    """`optimizer`, that leaves out updates whose gradients are not finite.

    Args:
        scale: of the loss, against underflow in float16; halved when an update is left out.
        growth_steps: updates after which the scale is doubled; by default never.
    """
    return Guarded(optimizer, scale, growth_steps)


@keras.saving.register_keras_serializable("amdim_tf")
class Guarded(keras.optimizers.LossScaleOptimizer):
    """Checks the first gradient alone: the training step makes it NaN if any is not finite."""

    def check_finite(self, grads):
        return super().check_finite(grads[:1])


@keras.saving.register_keras_serializable("amdim_tf")
class WarmupStepDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to `peak` over `warmup` updates, and falls by `rate` at each of `decays`.

    Args:
        peak: the learning rate after the warm-up.
        warmup: updates; update t (from 0) of the warm-up uses peak * (t + 1) / warmup.
        decays: updates at which the learning rate falls.
        rate: by which factor it falls.
    """

    def __init__(self, peak, warmup, decays=(), rate=0.2):
        self.peak, self.warmup, self.decays, self.rate = peak, warmup, tuple(decays), rate

    def __call__(self, step):
        step = ops.cast(step, "float32")
        passed = sum(ops.cast(step >= decay, "float32") for decay in self.decays)
        warm = ops.minimum(1.0, (step + 1) / max(self.warmup, 1))
        return self.peak * warm * ops.power(self.rate, ops.cast(passed, "float32"))

    def get_config(self):
        return {"peak": self.peak, "warmup": self.warmup, "decays": self.decays, "rate": self.rate}
