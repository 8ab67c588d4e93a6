"""Training on several devices: which, and what a replica knows of the others in a step.

On Keras's other backends there is one replica.
"""

import re

import keras

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


def check_batch(batch, strategy):
    """Raises `InputError` for a global `batch` that the replicas of `strategy` cannot share."""
    count = strategy.num_replicas_in_sync
    if batch % count or batch // count < 2:
        raise InputError(
            f"batch_size is that of all replicas together and must be a multiple of their number, "
            f"{count}, with two images or more for each. Received: batch_size={batch}"
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
    return keras.ops.reshape(gathered, (images or -1, *x.shape[1:]))


def first_image(batch):
    """The place in the global batch of the first of this replica's `batch` images."""
    if replicas() == 1:
        return 0
    return tf.distribute.get_replica_context().replica_id_in_sync_group * batch


def region(function, variables=()):
    """`function` of tensors, compiled by XLA, in a step that is not: replicas talk between regions.

    Args:
        function: of nests of tensors; it may read `variables` and must not write any.
        variables: Keras variables.
    """

    @tf.function(jit_compile=True)
    def compiled(values, *inputs):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return function(*inputs)

    def call(*inputs):
        return compiled([tf.convert_to_tensor(v.value) for v in variables], *inputs)

    return call
