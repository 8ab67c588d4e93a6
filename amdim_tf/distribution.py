"""Training on several devices: the choice of them, and what replicas exchange in a step.

Keras's other backends have one replica.
"""

import dataclasses
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
from keras import ops

from amdim_tf.errors import InputError

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None


def choose_strategy(name: str = "auto") -> "tf.distribute.Strategy":
    """The `tf.distribute.Strategy` of `name`; call it before TensorFlow touches a device.

    Args:
        name: "none"; "mirrored" for all local accelerators; "multiworker" for those of several
            machines, which TF_CONFIG or Slurm's environment lists; "auto" for all that there are;
            "cpu:N" for N logical CPUs, to try distribution out.

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
    """Whether this process trains together with others, as its environment says."""
    if "TF_CONFIG" in os.environ:
        return sum(map(len, _tf_config()["cluster"].values())) > 1
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def cluster() -> Any:
    """TensorFlow's resolver for the cluster that the environment describes."""
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
            f"Received: no TF_CONFIG, and from Slurm: {error}"
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
    """One of the processes that train together.

    Args:
        index: number of the process; process 0, the chief, writes the files of a run.
        local: number of replicas in each process.
        replicas: number of replicas in all processes together.
    """

    index: int = 0
    local: int = 1
    replicas: int = 1

    @property
    def chief(self) -> bool:
        """Whether this process writes the files of a run."""
        return self.index == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.local == self.replicas

    def owns(self, number: Any) -> Any:
        """Whether a replica of this process takes the batch with this `number` (int or tensor)."""
        return number // self.local % (self.replicas // self.local) == self.index


def worker(strategy: "tf.distribute.Strategy") -> Worker:
    """The `Worker` that stands for this process under `strategy`."""
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
    """The devices on which a model trains or runs.

    Args:
        strategy: a `tf.distribute.Strategy`.
        compiled: whether XLA compiles the model's functions.
    """

    strategy: "tf.distribute.Strategy"
    compiled: bool = False

    @property
    def worker(self) -> Worker:
        """This process, see the function `worker`."""
        return worker(self.strategy)


def choose_devices(strategy: str = "none", xla: str = "off") -> Devices:
    """The `Devices` that the flags `strategy` and `xla` choose.

    Args:
        strategy: see `choose_strategy`.
        xla: "on" or "off"; "auto" compiles on accelerators alone, since on a CPU XLA is slower
            than oneDNN's convolutions.

    Raises:
        InputError: see `choose_strategy`.
    """
    chosen = choose_strategy(strategy)
    compiled = xla == "on" or (xla == "auto" and not on_cpus())
    return Devices(chosen, compiled)


def on_cpus() -> bool:
    """Whether TensorFlow computes, and has CPUs alone.

    Example:
    >>> isinstance(on_cpus(), bool)
    True
    """
    return tf is not None and not tf.config.list_physical_devices("GPU")


def over_batches(
    function: Callable, strategy: "tf.distribute.Strategy"
) -> Callable[[Iterable], Iterator]:
    """Makes `function`, which takes the tensors of a batch, take an iterable of batches.

    In each round every replica takes one batch. The result yields, for each round, the tensors that
    `function` returns as arrays (B,...), the replicas' one after the other; every worker gets all.

    Args:
        function: returns a nest of tensors; it is traced once.
        strategy: the `tf.distribute.Strategy` that distributes the batches.
    """
    own = worker(strategy)

    def joined(x):
        return strategy.gather(x, axis=0) if own.replicas > 1 else x

    @tf.function(autograph=False)
    def run(batch):
        return tf.nest.map_structure(joined, strategy.run(function, batch))

    def outputs(batches):
        batches = iter(batches)
        for first in batches:
            if own.replicas == 1:
                batch = first
            else:
                several = [first, *(next(batches) for _ in range(own.local - 1))]
                batch = tf.nest.map_structure(
                    lambda *each: strategy.experimental_distribute_values_from_function(
                        lambda context: each[context.replica_id_in_sync_group % own.local]
                    ),
                    *several,
                )
            yield tf.nest.map_structure(lambda x: x.numpy(), run(batch))

    return outputs


def check_agreement(strategy: "tf.distribute.Strategy", text: str) -> None:
    """Waits for the other processes, if there are any.

    Raises:
        InputError: another process has a different `text`, or has stopped.
    """
    if worker(strategy).alone:
        return
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def gathered():
        local = tf.constant([digest], tf.int64)
        return tf.distribute.get_replica_context().all_gather(local, axis=0)

    @tf.function(autograph=False)
    def digests():
        return strategy.run(gathered)

    try:
        known = strategy.experimental_local_results(digests())[0].numpy()
    except tf.errors.OpError as error:
        raise InputError("Another worker stopped; see its message.") from error
    if len(set(known.tolist())) > 1:
        raise InputError(
            "All workers must have the same configuration and see the same workdir. Received: "
            f"{text} here, and something else on another worker"
        )


def check_batch(batch: int, micro_batch: int, strategy: "tf.distribute.Strategy") -> None:
    """Checks that the replicas of `strategy` can share `batch` images and divide their shares.

    Raises:
        InputError: they cannot.
    """
    count = strategy.num_replicas_in_sync
    if batch % count or batch // count < 2:
        raise InputError(
            "batch_size counts the images of all replicas, and must be a multiple of their number, "
            f"{count}, with two images or more for each. Received: batch_size={batch}"
        )
    if micro_batch and batch // count % micro_batch:
        raise InputError(
            f"micro_batch must divide the {batch // count} images of a device. "
            f"Received: micro_batch={micro_batch}"
        )


def current(variable: Any) -> Any:
    """The value of TensorFlow's `variable`; if several devices have one each, the value to save."""
    if not isinstance(variable, tf.distribute.DistributedValues):
        return tf.convert_to_tensor(variable)
    with variable.distribute_strategy.scope():
        return variable.distribute_strategy.extended.read_var(variable)


def replicas() -> int:
    """The number of replicas that run this step."""
    return tf.distribute.get_strategy().num_replicas_in_sync if tf else 1


def all_mean(x: Any) -> Any:
    """The mean of `x` over all replicas, differentiable."""
    if replicas() == 1:
        return x
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, x)


def gather(x: Any) -> Any:
    """The `x` (b,...) of all replicas as one tensor (B,...), differentiable."""
    if replicas() == 1:
        return x
    images = x.shape[0] and x.shape[0] * replicas()
    gathered = tf.distribute.get_replica_context().all_gather(x, axis=0)
    return ops.reshape(gathered, (images or -1, *x.shape[1:]))


def first_image(batch: Any) -> Any:
    """The place in the global batch at which this replica's `batch` images begin."""
    if replicas() == 1:
        return 0
    return tf.distribute.get_replica_context().replica_id_in_sync_group * batch


def compiled(function: Callable) -> Callable:
    """`function`, which takes nests of tensors, compiled by XLA.

    It may not reduce floats on a processor if several threads call it, as those of `tf.data` do:
    XLA makes that a `YnnFusionThunk`, and TensorFlow 2.21 crashes if two of them first run at once.
    """
    return tf.function(function, jit_compile=True, autograph=False) if tf else function


def region(function: Callable, compiled: bool = False) -> Callable:
    """`function`, which takes nests of tensors, as one graph that is traced once for all replicas.

    Otherwise each replica would trace it again. It may hold neither variables nor collectives.

    Args:
        compiled: whether XLA compiles it.
    """
    if not tf:
        return function
    known: dict[str, Callable] = {}
    lock = threading.Lock()

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


def stateless(function: Callable, variables: list) -> Callable:
    """`function`, as one that takes the values of its `variables` before its own arguments."""

    def call(values, *inputs):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*inputs)

    return call
