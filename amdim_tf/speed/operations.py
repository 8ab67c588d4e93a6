"""What a training step does besides products: its time by operation, and the bytes moved."""

import collections
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable

import tensorflow as tf

from amdim_tf.speed.timing import Table, quartiles
from amdim_tf.training.learner import Learner

PRODUCT = re.compile("MatMul|Conv2D|Einsum")
# They give another name to a tensor, or are made once.
UNMOVED = re.compile(
    "Const|ExpandDims|IdentityN?|Placeholder|ReadVariableOp|Reshape|ShapeN?|Squeeze"
)
# How the profiler names an operation, and a region that XLA has compiled.
OPERATION = re.compile(r"[^:]+:(?P<operation>\w+)|CpuExecutable::\w+")
MEMORY_BYTES = 2**28


def outside_of_products(
    table: Table, name: str, model: Learner, batch: int, step: Callable, runs: int
) -> None:
    """Measures what is not a product in the training step `name`, next to the memory's rate.

    Args:
        table: gets the rows.
        name: of the step.
        model: whose training step on `batch` images `step` runs, on a CPU and without XLA.
        runs: of each measurement.
    """
    seconds = seconds_of(step, runs)
    outside = {kind: value for kind, value in seconds.items() if not PRODUCT.search(kind)}
    spent, name = sum(outside.values()), f"{name}, outside of products"
    table.add(name, spent, "s")
    table.add(f"{name}, part", spent / sum(seconds.values()), "of all operations")
    for kind, value in collections.Counter(outside).most_common(5):
        table.add(f"{name}, {kind}", value, "s")
    moved = bytes_moved(operations(model, batch)) / 1e9
    table.add(f"{name}, memory at most", moved, "GB")
    table.add(f"{name}, memory's rate at most", moved / spent, "GB/s")
    x = tf.zeros(MEMORY_BYTES // 4)
    rate = 2 * MEMORY_BYTES / 1e9 / quartiles([tf.function(lambda: x + 1)], runs)[0][1]
    table.add(f"{name}, rate of x + 1 of {MEMORY_BYTES >> 20} MiB", rate, "GB/s")


def seconds_of(step: Callable, runs: int) -> dict[str, float]:
    """The seconds of each kind of operation in a call of `step`, by TensorFlow's profiler.

    They are summed over threads, and a kind is named as the CPU runs it, such as `_MklMatMul`, or
    "XLA" for regions that XLA has compiled.

    Example:
    >>> step = tf.function(lambda: tf.matmul(tf.ones((64, 64)), tf.ones((64, 64))))
    >>> any("MatMul" in kind for kind in seconds_of(step, runs=2))
    True
    """
    # Imported here: a part of TensorFlow that its documentation does not name.
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    step()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            for _ in range(runs):
                step()
        space = xplane_pb2.XSpace()
        for path in pathlib.Path(folder).rglob("*.xplane.pb"):
            space.MergeFromString(path.read_bytes())
    seconds: collections.Counter = collections.Counter()
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            if named := OPERATION.fullmatch(plane.event_metadata[event.metadata_id].name):
                kind = named["operation"] or "XLA"
                seconds[kind] += event.duration_ps / 1e12 / runs
    return dict(seconds)


def operations(model: Learner, batch: int) -> list[tf.Operation]:
    """The operations of a training step of `model` on `batch` images, as it is traced."""
    view = tf.TensorSpec((batch, *[model.encoder.image_size] * 2, model.encoder.channels))

    @tf.function(autograph=False)
    def step(views, labels):
        return model.train_step((views, labels, *model.draw(batch)))

    views = (view,) * model.objective.views
    traced = step.get_concrete_function(views, tf.TensorSpec((batch,), tf.int64))
    return traced.graph.get_operations()


def bytes_moved(operations: Iterable[tf.Operation]) -> int:
    """The bytes that `operations` other than products read and write, at most.

    It is the most, since some of them run as one, and caches hold small tensors.

    Example:
    >>> graph = tf.function(lambda: tf.nn.relu(tf.ones((8, 4)))).get_concrete_function().graph
    >>> bytes_moved(graph.get_operations())  # 32 numbers, read and written
    256
    """
    moved = 0
    for operation in operations:
        if not (PRODUCT.search(operation.type) or UNMOVED.fullmatch(operation.type)):
            for tensor in (*operation.inputs, *operation.outputs):
                count = tensor.shape.num_elements()
                moved += (count or 0) * (tensor.dtype.size or 0)
    return moved
