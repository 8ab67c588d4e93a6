"""Checks that a SavedModel passes before a server sees it.

TF Serving takes up models that then fail each request, and some requests end its process. Each
check here is for something that the server does not refuse by itself when it loads a version.
"""

import pathlib
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from amdim_tf.errors import InputError
from amdim_tf.serving.c_api import UNAVAILABLE

TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}
# Operations that run Python, which a server lacks.
PYTHON_OPERATIONS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
WARMUP = "assets.extra/tf_serving_warmup_requests"
GARBAGE = {
    "object": np.array([b"no image"], object),
    "uint8": np.zeros((1, 0, 7, 3), "uint8"),
    "float32": np.zeros((1, 7, 7, 3), "float32"),
}


class ExportError(InputError):
    """A SavedModel that a server could not serve well; it was not published."""


class Unavailable(Exception):
    """This TensorFlow has no C API that could be used; the message says what it lacks."""


def check(
    folder: str | pathlib.Path,
    examples: Mapping[str, tuple[dict, dict]],
    weights: int,
    dtype: str = "float32",
) -> None:
    """Checks the SavedModel in `folder` as a server would meet it.

    Args:
        folder: that of the SavedModel, with warm-up requests.
        examples: {signature: (inputs, outputs)}, each {name: array}, for two images or more.
        weights: numbers that all weights have together.
        dtype: that of the weights; outputs may differ from the examples by 1e-5 in float32 and 2e-2
            in bfloat16, relative, in the Euclidean norm.

    Raises:
        ExportError: a check failed, the first of them.
    """
    graph = read_graph(folder)
    check_operations(graph)
    check_weights(folder, weights)
    for name in examples:
        check_batches(name, graph.signature_def[name])
    check_warmup(folder, graph.signature_def)
    try:
        check_answers(folder, graph.signature_def, examples, TOLERANCES[dtype])
    except Unavailable as reason:
        print(
            f"This TensorFlow cannot run the export as a server does ({reason}): its answers are "
            "checked in Python instead.",
            file=sys.stderr,
        )
        check_in_python(folder, examples, dtype)


def read_graph(folder: str | pathlib.Path) -> Any:
    """The MetaGraphDef that a server loads."""
    contents = (pathlib.Path(folder) / "saved_model.pb").read_bytes()
    return saved_model_pb2.SavedModel.FromString(contents).meta_graphs[0]


def check_operations(graph: Any) -> None:
    """Checks that nothing in `graph`, a MetaGraphDef, needs Python or XLA, which servers lack."""
    functions = graph.graph_def.library.function
    for where, nodes in [
        ("the graph", graph.graph_def.node),
        *((function.signature.name, function.node_def) for function in functions),
    ]:
        for node in nodes:
            if node.op in PYTHON_OPERATIONS:
                raise ExportError(f"{where} runs Python, which a server lacks, in {node.name}")
            if node.attr["_XlaMustCompile"].b:
                raise ExportError(f"{where} has a region that only XLA runs: {node.name}")
    for function in functions:
        if function.attr["_XlaMustCompile"].b:
            raise ExportError(f"{function.signature.name} is compiled by XLA, which a server lacks")


def check_weights(folder: str | pathlib.Path, weights: int) -> None:
    """Checks that each weight is stored once."""
    stored = tf.train.list_variables(str(pathlib.Path(folder) / "variables" / "variables"))
    count = sum(int(np.prod(shape)) for name, shape in stored if "OBJECT_GRAPH" not in name)
    if count != weights:
        raise ExportError(f"{count} numbers are stored, {weights} are the model's weights")


def check_batches(name: str, signature: Any) -> None:
    """Checks that inputs and outputs of a SignatureDef have a batch axis of any length."""
    for tensors in (signature.inputs, signature.outputs):
        for key, tensor in tensors.items():
            sides = [side.size for side in tensor.tensor_shape.dim]
            if tensor.tensor_shape.unknown_rank or sides[:1] != [-1]:
                raise ExportError(
                    f"{key} of signature {name} must have a batch axis of any length first. "
                    f"Its shape is {sides}"
                )


def check_warmup(folder: str | pathlib.Path, signatures: Mapping) -> None:
    """Checks that warm-up requests fit the signatures; otherwise a server does not start."""
    for record in tf.data.TFRecordDataset(str(pathlib.Path(folder) / WARMUP)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        name = request.model_spec.signature_name
        if name not in signatures or set(request.inputs) != set(signatures[name].inputs):
            raise ExportError(
                f"A warm-up request asks signature {name} for {', '.join(request.inputs)}; "
                f"there are {', '.join(signatures)}"
            )


def check_answers(
    folder: str | pathlib.Path,
    signatures: Mapping,
    examples: Mapping[str, tuple[dict, dict]],
    tolerance: float,
) -> None:
    """Checks that good requests have good answers, also after errors for malformed ones."""
    calls: list[tuple] = []
    expected: list[tuple] = []
    for name, (inputs, outputs) in examples.items():
        good = call(signatures[name], inputs)
        for wrong, changed in malformed(inputs):
            calls += [call(signatures[name], changed), good]
            expected += [(name, wrong, None), (name, wrong, outputs)]
    for answer, (name, wrong, outputs) in zip(serve(folder, calls), expected, strict=True):
        if outputs is None:
            if not isinstance(answer, str):
                raise ExportError(f"Signature {name} answers a request with {wrong}")
            continue
        if isinstance(answer, str):
            raise ExportError(f"Signature {name} fails after {wrong}: {answer}")
        compare(name, dict(zip(sorted(outputs), answer, strict=True)), outputs, tolerance)


def compare(name: str, given: dict, outputs: dict, tolerance: float) -> None:
    """Raises `ExportError` if the answer `given` by signature `name` is not its `outputs`."""
    for key, output in outputs.items():
        if not agree(given[key], output, tolerance):
            raise ExportError(f"{key} of signature {name} is not what the model gives")


def agree(ours: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    """Whether two arrays have one shape, and differ by at most `tolerance` of their norm."""
    if ours.shape != expected.shape:
        return False
    if expected.dtype.kind != "f":
        return bool((ours == expected).all())
    difference = np.linalg.norm(np.float64(ours) - expected)
    return bool(difference <= tolerance * np.linalg.norm(np.float64(expected)))


def malformed(inputs: dict[str, np.ndarray]) -> Iterator[tuple[str, dict]]:
    """Yields what is wrong with a request, and the request."""
    ((key, array),) = inputs.items()
    yield "another rank", {key: array[0, ...]}
    yield "one more axis", {key: array[None]}
    yield "another type", {key: np.zeros(array.shape, "int64")}
    yield "an empty batch", {key: array[:0]}
    yield "garbage", {key: GARBAGE[array.dtype.name]}
    if array.ndim > 1:
        yield "fewer channels", {key: array[..., : array.shape[-1] // 2]}


def call(signature: Any, inputs: dict[str, np.ndarray]) -> tuple[dict, list[str]]:
    """The `inputs` by the names of the graph's tensors, and the names of the outputs, sorted."""
    fed = {signature.inputs[key].name: array for key, array in inputs.items()}
    return fed, [tensor.name for _, tensor in sorted(signature.outputs.items())]


def serve(folder: str | pathlib.Path, calls: Sequence[tuple]) -> list:
    """The answers of a process without Python TensorFlow to `calls`, see `amdim_tf.serving.c_api`.

    Raises:
        ExportError: the process ended.
        Unavailable: it cannot begin.
    """
    library = next(pathlib.Path(tf.sysconfig.get_lib()).glob("libtensorflow_cc.*"), None)
    if not library:
        raise Unavailable(f"there is no libtensorflow_cc in {tf.sysconfig.get_lib()}")
    done = subprocess.run(
        [sys.executable, "-I", pathlib.Path(__file__).with_name("c_api.py")],
        input=pickle.dumps((str(library), str(folder), calls)),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        if done.returncode == UNAVAILABLE:
            raise Unavailable(lines[-1])
        raise ExportError(f"A server's process would end with code {done.returncode}: {lines[-1]}")
    return pickle.loads(done.stdout)


def check_in_python(
    folder: str | pathlib.Path, examples: Mapping[str, tuple[dict, dict]], dtype: str
) -> None:
    """Checks the values of a SavedModel that Python loads, such as one that XLA compiles."""
    served = tf.saved_model.load(str(folder)).signatures
    for name, (inputs, outputs) in examples.items():
        given = served[name](**{key: tf.constant(array) for key, array in inputs.items()})
        given = {key: value.numpy() for key, value in given.items()}
        compare(name, given, outputs, TOLERANCES[dtype])
