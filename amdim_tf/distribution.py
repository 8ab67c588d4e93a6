"""Training on several devices: which, and what a replica knows of the others in a step.

On Keras's other backends there is one replica.
"""

import re

import keras
from keras import ops

from amdim_tf.errors import InputError

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None


def choose_strategy(name="auto"):
    """The `tf.distribute.Strategy` of `name`; call it before TensorFlow touches a device.

    Args:
        name: "none"; "mirrored" for all local accelerators; "auto" for these if there are several;
            "cpu:N" for N logical CPUs, to try distribution out.

    Raises:
        InputError: another name, or "mirrored" without accelerators.
    """
    accelerators = tf.config.list_physical_devices("GPU")
    if name == "auto":
        name = "mirrored" if len(accelerators) > 1 else "none"
    if name == "none":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        if not accelerators:
            raise InputError(
                "strategy mirrored needs accelerators, and TensorFlow sees none here; valid are "
                "none and cpu:N. Received: strategy='mirrored'"
            )
        return tf.distribute.MirroredStrategy()
    if not re.fullmatch(r"cpu:[1-9][0-9]*", name):
        raise InputError(
            "strategy must be one of auto, none, mirrored, cpu:N with a number N. "
            f"Received: strategy={name!r}"
        )
    count = int(name.removeprefix("cpu:"))
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * count
    )
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])


def check_batch(batch, micro_batch, strategy):
    """Raises `InputError` for a `batch` that the replicas of `strategy` cannot share and divide."""
    count = strategy.num_replicas_in_sync
    if batch % count or batch // count < 2:
        raise InputError(
            f"batch_size is that of all replicas together and must be a multiple of their number, "
            f"{count}, with two images or more for each. Received: batch_size={batch}"
        )
    if micro_batch and batch // count % micro_batch:
        raise InputError(
            f"micro_batch must divide the {batch // count} images of a device. "
            f"Received: micro_batch={micro_batch}"
        )


def replicas():
    """The number of replicas that run this step."""
    return tf.distribute.get_strategy().num_replicas_in_sync if tf else 1


def all_mean(x):
    """The mean of `x` over all replicas, differentiable."""
    if replicas() == 1:
        return x
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, x)


def gather(x):
    """`x` (b,...) of all replicas as one (B,...), differentiable."""
    if replicas() == 1:
        return x
    images = x.shape[0] and x.shape[0] * replicas()
    gathered = tf.distribute.get_replica_context().all_gather(x, axis=0)
    return ops.reshape(gathered, (images or -1, *x.shape[1:]))


def first_image(batch):
    """The place in the global batch of the first of this replica's `batch` images."""
    if replicas() == 1:
        return 0
    return tf.distribute.get_replica_context().replica_id_in_sync_group * batch


def agree(gradients):
    """`gradients`, but not finite where those of another replica are not.

    Keras asks the first replica alone whether a step has to be skipped.
    """
    if replicas() == 1:
        return gradients
    finite = ops.all([ops.all(ops.isfinite(gradient)) for gradient in gradients])
    everywhere = all_mean(ops.cast(finite, "float32")) == 1
    first, *others = gradients
    return [ops.where(everywhere, first, float("nan")), *others]


def compiled(function):
    """`function` of nests of tensors, compiled by XLA."""
    return tf.function(function, jit_compile=True, autograph=False) if tf else function


def stateless(function, variables):
    """`function` of tensors as one of the values of `variables`, a list, and the tensors."""

    def call(values, *inputs):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*inputs)

    return call
