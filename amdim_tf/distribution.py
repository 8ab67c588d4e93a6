"""Training on several devices: which, and what a replica knows of the others in a step.

On Keras's other backends there is one replica.
"""

import dataclasses
import hashlib
import json
import os
import re
import threading

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
        name: "none"; "mirrored" for all local accelerators; "multiworker" for those of several
            machines, from TF_CONFIG or Slurm's environment; "auto" for what is there; "cpu:N" for
            N logical CPUs, to try distribution out.

    Raises:
        InputError: another name, "mirrored" without accelerators, or "multiworker" without or with
            a wrong TF_CONFIG.
    """
    if name == "multiworker" or (name == "auto" and _one_of_several()):
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=cluster())
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
            "strategy must be one of auto, none, mirrored, multiworker, cpu:N with a number N. "
            f"Received: strategy={name!r}"
        )
    count = int(name.removeprefix("cpu:"))
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * count
    )
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])


def _one_of_several():
    """Whether the environment is that of one of several processes that train together."""
    if "TF_CONFIG" in os.environ:
        return sum(map(len, _tf_config()["cluster"].values())) > 1
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def cluster():
    """TensorFlow's resolver of the cluster that the environment describes."""
    if "TF_CONFIG" in os.environ:
        _tf_config()
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    try:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver()
        resolver.cluster_spec()  # chooses this process's accelerators
        return resolver
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            "strategy multiworker needs TF_CONFIG, or Slurm's environment on machines with GPUs. "
            f"Received: no TF_CONFIG, and of Slurm: {error}"
        ) from error


def _tf_config():
    text = os.environ["TF_CONFIG"]
    try:
        config = json.loads(text)
        config["cluster"][config["task"]["type"]][int(config["task"]["index"])]
        return config
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(
            'TF_CONFIG must be JSON such as {"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
            '"task": {"type": "worker", "index": 0}}, with another index for each process. '
            f"Received: TF_CONFIG={text}"
        ) from error


@dataclasses.dataclass(frozen=True)
class Worker:
    """A process among those that train together.

    Args:
        index: of the process; process 0, the chief, writes what a run leaves.
        local: replicas of a process.
        replicas: of all processes.
    """

    index: int = 0
    local: int = 1
    replicas: int = 1

    @property
    def chief(self):
        return self.index == 0

    @property
    def alone(self):
        return self.local == self.replicas

    def owns(self, number):
        """Whether a replica of this process takes the batch of that `number` (int or tensor)."""
        return number // self.local % (self.replicas // self.local) == self.index


def worker(strategy):
    """The `Worker` that this process is under `strategy`."""
    resolver, replicas = strategy.cluster_resolver, strategy.num_replicas_in_sync
    if not resolver or not resolver.task_type:
        return Worker(0, replicas, replicas)
    tasks = sorted(resolver.cluster_spec().as_dict())  # chief before worker
    before = sum(
        resolver.cluster_spec().num_tasks(task) for task in tasks if task < resolver.task_type
    )
    local = len(strategy.extended.worker_devices)
    return Worker(before + resolver.task_id, local, replicas)


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where and how a model is trained or runs.

    Args:
        strategy: a `tf.distribute.Strategy`.
        compiled: whether by XLA.
    """

    strategy: object
    compiled: bool = False

    @property
    def worker(self):
        return worker(self.strategy)


def choose_devices(strategy="none", xla="off"):
    """The `Devices` of the flags of those names.

    Args:
        strategy: see `choose_strategy`.
        xla: "on" or "off" for the compiler; "auto" for accelerators alone, since on a CPU it loses
            to oneDNN's convolutions.

    Raises:
        InputError: see `choose_strategy`.
    """
    chosen = choose_strategy(strategy)
    compiled = xla == "on" or (xla == "auto" and bool(tf.config.list_physical_devices("GPU")))
    return Devices(chosen, compiled)


def over_batches(function, strategy):
    """`function` of a batch's tensors, as one of an iterable of batches.

    All replicas take a batch each at a time. Of each such round it yields the function's tensors
    (B,...), those of all replicas one after the other, as arrays; of several workers each gets all.

    Args:
        function: to a nest of tensors; traced once.
        strategy: a `tf.distribute.Strategy`, which all batches are distributed by.
    """
    me = worker(strategy)

    def joined(x):
        return strategy.gather(x, axis=0) if me.replicas > 1 else x

    @tf.function(autograph=False)
    def run(batch):
        return tf.nest.map_structure(joined, strategy.run(function, batch))

    def outputs(batches):
        batches = iter(batches)
        for first in batches:
            if me.replicas == 1:
                batch = first
            else:
                own = [first, *(next(batches) for _ in range(me.local - 1))]
                batch = tf.nest.map_structure(
                    lambda *parts: strategy.experimental_distribute_values_from_function(
                        lambda context: parts[context.replica_id_in_sync_group % me.local]
                    ),
                    *own,
                )
            yield tf.nest.map_structure(lambda x: x.numpy(), run(batch))

    return outputs


def check_agreement(strategy, text):
    """Waits for all processes, if there are others.

    Raises:
        InputError: another process has another `text`, or has stopped.
    """
    if worker(strategy).alone:
        return
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def gathered():
        mine = tf.constant([digest], tf.int64)
        return tf.distribute.get_replica_context().all_gather(mine, axis=0)

    @tf.function(autograph=False)
    def digests():
        return strategy.run(gathered)

    try:
        everyones = strategy.experimental_local_results(digests())[0].numpy()
    except tf.errors.OpError as error:
        raise InputError("Another worker stopped; see its message.") from error
    if len(set(everyones.tolist())) > 1:
        raise InputError(
            "All workers must have the same configuration, and see the same workdir. Received: "
            f"{text} here, and something else on another worker"
        )


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


def current(variable):
    """The value of a variable of TensorFlow's; of one of several devices, what is saved of it."""
    if not isinstance(variable, tf.distribute.DistributedValues):
        return tf.convert_to_tensor(variable)
    with variable.distribute_strategy.scope():
        return variable.distribute_strategy.extended.read_var(variable)


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


def compiled(function):
    """`function` of nests of tensors, compiled by XLA.

    If several threads call it, as those of `tf.data` do, it may not reduce floats on a processor:
    XLA makes that a `YnnFusionThunk`, whose simultaneous first runs crash in TensorFlow 2.21.
    """
    return tf.function(function, jit_compile=True, autograph=False) if tf else function


def region(function, compiled=False):
    """`function` of nests of tensors as one graph, traced once for all replicas that call it.

    Without it each replica would trace its own. It may hold neither variables nor collectives.

    Args:
        compiled: whether XLA compiles it.
    """
    known, lock = {}, threading.Lock()

    def call(*inputs):
        flat = [None if x is None else tf.convert_to_tensor(x) for x in tf.nest.flatten(inputs)]
        specs = [None if x is None else tf.TensorSpec(x.shape, x.dtype) for x in flat]
        inputs = tf.nest.pack_sequence_as(inputs, flat)
        with lock, tf.init_scope():
            if str(specs) not in known:
                traced = tf.function(function, jit_compile=compiled or None, autograph=False)
                known[str(specs)] = traced.get_concrete_function(
                    *tf.nest.pack_sequence_as(inputs, specs)
                )
        return known[str(specs)](*inputs)

    return call


def stateless(function, variables):
    """`function` of tensors as one of the values of `variables`, a list, and the tensors."""

    def call(values, *inputs):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*inputs)

    return call
