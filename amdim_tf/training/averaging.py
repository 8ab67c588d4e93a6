"""The variables of a model as TensorFlow has them, and a moving average of them."""

import keras
import tensorflow as tf

from amdim_tf.typing import Tensor


def values(owner: keras.Model | keras.optimizers.Optimizer) -> list[tf.Variable]:
    """TensorFlow's variables of a Keras object, in order, except its metrics.

    TensorFlow itself would not find the variables of layers that Keras keeps in lists, nor Keras
    those that an optimiser did not add to its list, such as a product in Nadam (3.15).
    """
    metrics = {id(variable) for variable in getattr(owner, "metrics_variables", ())}
    variables = getattr(owner, "saved_variables", owner.variables)
    known = metrics | {id(variable) for variable in variables}
    inner = getattr(owner, "inner_optimizer", None)
    own = vars(inner).values() if inner else ()
    others = [x for x in own if isinstance(x, keras.Variable) and id(x) not in known]
    listed = [variable for variable in variables if id(variable) not in metrics]
    return [variable.value for variable in (*listed, *others)]


class Averages:
    """A moving average of all variables of a model, those of batch norm among them.

    Keras's optimisers average the weights alone, and at the end of `fit` they put the averages in
    the place of the weights, from which no training can go on.

    Args:
        variables: TensorFlow's variables; numbers that are not floats are copied.
        momentum: after t updates, the average keeps min(momentum, (1 + t) / (10 + t)) of itself.

    Attributes:
        values: the averages, in the order of the variables; they begin with their values.
    """

    def __init__(self, variables: list[tf.Variable], momentum: float):
        self.variables, self.momentum = variables, momentum
        self.values = [
            tf.Variable(
                tf.convert_to_tensor(variable),
                trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            for variable in variables
        ]

    def update(self, updates: Tensor, good: Tensor) -> None:
        """Takes in the present values of the variables.

        Args:
            updates: number of updates so far, an integer scalar.
            good: whether the last one was made; else nothing changes.
        """
        for average, variable in zip(self.values, self.variables, strict=True):
            value = tf.convert_to_tensor(variable)
            if value.dtype.is_floating:
                t = tf.cast(updates, value.dtype)
                momentum = tf.minimum(tf.cast(self.momentum, value.dtype), (1 + t) / (10 + t))
                value += momentum * (average - value)
            average.assign(tf.where(good, value, average))
