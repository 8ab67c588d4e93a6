"""ReLU, whose passes over bfloat16 take TensorFlow two to three times as long as XLA."""

from keras import ops
from keras.backend import standardize_dtype

from amdim_tf.distribution import on_cpus, region
from amdim_tf.typing import Tensor


def relu(x: Tensor, training: bool = False) -> Tensor:
    """ReLU of `x` (...), which must enter a product; in bfloat16 on CPUs its passes are XLA's.

    NaN stays NaN. Where `x` is not positive the gradient is zero, even if what comes from above is
    not finite; the gradient of the product's other operand then is not finite either.

    Args:
        training: exported graphs get no operation of XLA, since model servers may have none.

    Example:
    >>> relu(ops.array([-1.0, 2.0])).numpy().tolist()
    [0.0, 2.0]
    """
    if training and on_cpus() and standardize_dtype(x.dtype) == "bfloat16":
        return _by_xla(x)
    return ops.relu(x)


@ops.custom_gradient
def _by_xla(x):
    y = _outputs(x)
    return y, lambda upstream: _to_inputs(upstream, y)


_outputs = region(ops.relu, compiled=True)
_to_inputs = region(lambda upstream, y: ops.where(y > 0, upstream, 0), compiled=True)
