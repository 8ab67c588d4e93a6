"""Runs a SavedModel as a model server does: by TensorFlow's C API, without Python or XLA.

It is a script of its own, and its process imports neither TensorFlow nor Keras: what only Python
can run, and what stops a server's process, shows itself here. `self_check.serve` starts it.

It reads a pickled (library, folder, calls) from stdin and writes a pickled list to stdout: for each
call (inputs, outputs), with inputs {tensor name: array} and outputs [tensor name], either the list
of arrays or the error message, as text.
"""

import contextlib
import ctypes
import os
import pickle
import sys
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

# TF_DataType of the arrays that are exchanged.
NUMBERS = {1: "float32", 2: "float64", 3: "int32", 4: "uint8", 9: "int64", 10: "bool"}
STRING, STRING_BYTES = 7, 24
# The exit code if this TensorFlow cannot be used so; it says nothing about the SavedModel.
UNAVAILABLE = 69


class Output(ctypes.Structure):
    """TF_Output: one of the outputs of an operation."""

    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class Session:
    """A SavedModel, loaded from `folder` by the TensorFlow in the shared `library`.

    Raises:
        RuntimeError: what TensorFlow reports.
    """

    def __init__(self, library: str, folder: str):
        self.tf: Any = ctypes.CDLL(library)
        for name in (
            "TF_NewStatus",
            "TF_NewGraph",
            "TF_NewSessionOptions",
            "TF_LoadSessionFromSavedModel",
            "TF_GraphOperationByName",
            "TF_AllocateTensor",
            "TF_TensorData",
            "TF_StringGetDataPointer",
        ):
            getattr(self.tf, name).restype = ctypes.c_void_p
        for name in ("TF_Dim", "TF_StringGetSize", "TF_TensorByteSize"):
            getattr(self.tf, name).restype = ctypes.c_size_t
        self.tf.TF_Message.restype = ctypes.c_char_p
        # As the server's binary has it. Not every TensorFlow has the symbol; that a graph needs no
        # XLA is also seen from its nodes.
        with contextlib.suppress(AttributeError):
            self.tf._ZN10tensorflow21DisableXlaCompilationEv()
        self.graph = ctypes.c_void_p(self.tf.TF_NewGraph())
        status = self.status()
        self.session = ctypes.c_void_p(
            self.tf.TF_LoadSessionFromSavedModel(
                ctypes.c_void_p(self.tf.TF_NewSessionOptions()),
                None,
                os.fsencode(folder),
                (ctypes.c_char_p * 1)(b"serve"),
                1,
                self.graph,
                None,
                status,
            )
        )
        self.check(status)

    def status(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.tf.TF_NewStatus())

    def check(self, status: ctypes.c_void_p) -> None:
        """Frees `status`, and raises `RuntimeError` if it is an error."""
        code, message = self.tf.TF_GetCode(status), self.tf.TF_Message(status)
        self.tf.TF_DeleteStatus(status)
        if code:
            raise RuntimeError(message.decode(errors="replace"))

    def run(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """The arrays of the tensors named `outputs`, for {tensor name: array} `inputs`."""
        fed = [self.to_tensor(array) for array in inputs.values()]
        fetched = (ctypes.c_void_p * len(outputs))()
        status = self.status()
        self.tf.TF_SessionRun(
            self.session,
            None,
            self.outputs_of(inputs),
            (ctypes.c_void_p * len(fed))(*fed),
            len(fed),
            self.outputs_of(outputs),
            fetched,
            len(outputs),
            None,
            0,
            None,
            status,
        )
        for tensor in fed:
            self.tf.TF_DeleteTensor(ctypes.c_void_p(tensor))
        self.check(status)
        return [self.to_array(ctypes.c_void_p(tensor)) for tensor in fetched]

    def outputs_of(self, names: Collection[str]) -> Any:
        """TF_Outputs, in an array, that have the `names` of tensors."""
        found = (Output * len(names))()
        for place, name in zip(found, names, strict=True):
            operation, index = name.split(":")
            place.index = int(index)
            place.operation = self.tf.TF_GraphOperationByName(self.graph, operation.encode())
            if not place.operation:
                raise RuntimeError(f"The graph has no operation {operation}")
        return found

    def to_tensor(self, array: np.ndarray) -> int:
        """The address of a TF_Tensor with what `array` holds."""
        strings = array.dtype == object
        dtype = STRING if strings else next(k for k, v in NUMBERS.items() if v == array.dtype)
        size = array.size * STRING_BYTES if strings else array.nbytes
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        tensor = self.tf.TF_AllocateTensor(dtype, dims, array.ndim, ctypes.c_size_t(size))
        data = self.tf.TF_TensorData(ctypes.c_void_p(tensor))
        if strings:
            for i, text in enumerate(array.flat):
                place = ctypes.c_void_p(data + i * STRING_BYTES)
                self.tf.TF_StringInit(place)
                self.tf.TF_StringCopy(place, text, ctypes.c_size_t(len(text)))
        else:
            ctypes.memmove(data, np.ascontiguousarray(array).ctypes.data, size)
        return tensor

    def to_array(self, tensor: ctypes.c_void_p) -> np.ndarray:
        """What a TF_Tensor holds; the tensor is freed."""
        shape = [self.tf.TF_Dim(tensor, axis) for axis in range(self.tf.TF_NumDims(tensor))]
        data, dtype = self.tf.TF_TensorData(tensor), self.tf.TF_TensorType(tensor)
        if dtype == STRING:
            count = self.tf.TF_TensorByteSize(tensor) // STRING_BYTES
            places = [ctypes.c_void_p(data + i * STRING_BYTES) for i in range(count)]
            texts = [
                ctypes.string_at(
                    self.tf.TF_StringGetDataPointer(place), self.tf.TF_StringGetSize(place)
                )
                for place in places
            ]
            array = np.array(texts, object).reshape(shape)
        else:
            contents = ctypes.string_at(data, self.tf.TF_TensorByteSize(tensor))
            array = np.frombuffer(contents, NUMBERS[dtype]).reshape(shape)
        self.tf.TF_DeleteTensor(tensor)
        return array


def main() -> None:
    library, folder, calls = pickle.load(sys.stdin.buffer)
    try:
        session = Session(library, folder)
    except (OSError, AttributeError) as error:  # no such library, or none with these functions
        print(error, file=sys.stderr)
        sys.exit(UNAVAILABLE)
    results: list = []
    for inputs, outputs in calls:
        try:
            results.append(session.run(inputs, outputs))
        except RuntimeError as error:
            results.append(str(error))
    if {"tensorflow", "keras"} & set(sys.modules):
        raise RuntimeError("This process must not import TensorFlow or Keras")
    pickle.dump(results, sys.stdout.buffer)


if __name__ == "__main__":
    main()
