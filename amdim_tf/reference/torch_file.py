"""Reads PyTorch's checkpoint files without PyTorch, and without running code that they name.

In both layouts of `torch.save` a tensor is pickled as the call of a function on a storage, which is
a typed run of bytes. The old layout is a file of pickles with the storages behind them, the new one
a zip. Reading runs no code from the file: all names except those of tensors are refused.
"""

import collections
import dataclasses
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from amdim_tf.errors import InputError, one_line

ZIP = b"PK\x03\x04"
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# The types of storages that can be read.
DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


@dataclasses.dataclass
class Tensor:
    """A tensor as a file describes it; its bytes come later."""

    storage: tuple
    offset: int
    shape: tuple
    strides: tuple

    def array(self, storages: Mapping[str, bytes]) -> np.ndarray:
        """The tensor as an array, from {key: bytes}."""
        dtype, key = self.storage
        if key not in storages:
            raise InputError(f"it lacks the storage {key}")
        numbers = np.frombuffer(storages[key], dtype)
        last = self.offset + sum(
            (side - 1) * stride for side, stride in zip(self.shape, self.strides, strict=True)
        )
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        if min((self.offset, *self.strides, *self.shape)) < 0 or last >= len(numbers):
            raise InputError("a tensor lies outside of its storage")
        strides = [stride * numbers.itemsize for stride in self.strides]
        return np.ndarray(self.shape, dtype, numbers, self.offset * numbers.itemsize, strides)


def rebuild_tensor(storage: tuple, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor:
    """Stands for the function of PyTorch that a pickled tensor calls."""
    return Tensor(storage, offset, tuple(shape), tuple(strides))


ALLOWED: dict[tuple[str, str], Callable | str] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
}


class Restricted(pickle.Unpickler):
    """An unpickler of tensors and plain containers."""

    def find_class(self, module: str, name: str) -> Any:
        """The object that stands for a name in the file; only `ALLOWED` names have one."""
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise InputError(f"it asks for {module}.{name}") from None

    def persistent_load(self, saved: Any) -> tuple[str, str]:
        """(dtype, key) of a storage."""
        kind, dtype, key = saved[:3]
        if kind != "storage" or (len(saved) > 5 and saved[5] is not None):
            raise InputError("it has storages of an unknown kind")
        return dtype, key


def read(path: str | pathlib.Path) -> Any:
    """The dictionaries, lists and numbers in a file of `torch.save`, with tensors as NumPy arrays.

    Raises:
        InputError: there is no such file, it is damaged, or it holds anything else.
    """
    try:
        with open(path, "rb") as file:
            new = zipfile.is_zipfile(file)
            file.seek(0)
            content, storages = (_read_zip if new else _read_pickles)(file)
        return _with_arrays(content, storages)
    # A damaged pickle raises nearly anything.
    except Exception as error:
        if isinstance(error, InputError):
            why = str(error)
        elif isinstance(error, OSError):
            why = str(error.strerror)
        else:
            why = f"it is cut off or damaged ({one_line(error)})"
        raise InputError(
            "checkpoint must be a file of torch.save with only tensors and plain values: "
            f"{why}. Received: checkpoint={path}"
        ) from error


def _read_zip(file):
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError(f"it is a zip with {len(pickles)} data.pkl instead of one")
        (content,) = pickles
        folder = content.removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise InputError("it was written by a big-endian machine")
        start = f"{folder}data/"
        storages = {
            name.removeprefix(start): archive.read(name) for name in names if name.startswith(start)
        }
        with archive.open(content) as pickled:
            return Restricted(pickled).load(), storages


def _read_pickles(file):
    def load():
        return Restricted(file).load()

    start = file.read(len(ZIP))
    if not start:
        raise InputError("it is empty")
    if start == ZIP:
        raise InputError("it is a zip that is cut off")
    if start[:1] != pickle.PROTO:
        raise InputError("it is neither a zip nor a pickle of torch.save")
    file.seek(0)
    if load() != MAGIC or load() != PROTOCOL or not load()["little_endian"]:
        raise InputError("it is a pickle of something else, or of a big-endian machine")
    content, keys = load(), load()
    sizes = {key: np.dtype(dtype).itemsize for dtype, key in _storages(content)}
    storages = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        storages[key] = file.read(count * sizes[key])
        if len(storages[key]) < count * sizes[key]:
            raise InputError(f"it is cut off in the storage {key}")
    return content, storages


def _storages(content):
    if isinstance(content, Tensor):
        yield content.storage
    elif isinstance(content, dict | list | tuple):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _storages(value)


def _with_arrays(content, storages):
    if isinstance(content, Tensor):
        return content.array(storages)
    if isinstance(content, dict):
        return {key: _with_arrays(value, storages) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_with_arrays(value, storages) for value in content]
    return content
