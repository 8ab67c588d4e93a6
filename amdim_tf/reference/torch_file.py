"""PyTorch's checkpoint files without PyTorch, and without running what a file asks for.

Both layouts of `torch.save` are pickles in which a tensor is a call of a function on a storage, a
typed run of bytes: the old one, a file of pickles with the storages behind them, and the new one, a
zip. Reading them takes no code from the file: any name but those of tensors is refused.
"""

import collections
import dataclasses
import pickle
import struct
import zipfile

import numpy as np

from amdim_tf.errors import InputError, one_line

ZIP = b"PK\x03\x04"
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Storages of these numbers are understood.
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
    """What a file says of a tensor; its bytes come later."""

    storage: tuple
    offset: int
    shape: tuple
    strides: tuple

    def array(self, storages):
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


def rebuild_tensor(storage, offset, shape, strides, *_):
    return Tensor(storage, offset, tuple(shape), tuple(strides))


ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
}


class Restricted(pickle.Unpickler):
    """An unpickler of tensors and plain containers."""

    def find_class(self, module, name):
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise InputError(f"it asks for {module}.{name}") from None

    def persistent_load(self, saved):
        kind, dtype, key = saved[:3]
        if kind != "storage" or (len(saved) > 5 and saved[5] is not None):
            raise InputError("it has storages of an unknown kind")
        return dtype, key


def read(path):
    """The dictionaries, lists and numbers in a file of `torch.save`, tensors as NumPy arrays.

    Raises:
        InputError: no such file, a damaged one, or one that holds anything else.
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
            why = error
        elif isinstance(error, OSError):
            why = error.strerror
        else:
            why = f"it is cut off or damaged ({one_line(error)})"
        raise InputError(
            "checkpoint must be a file of torch.save with tensors and plain values alone: "
            f"{why}. Received: checkpoint={path}"
        ) from error


def _read_zip(file):
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError(f"it is a zip with {len(pickles)} data.pkl, and not with one")
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
