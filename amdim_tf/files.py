"""Writing such that a crash at any instant leaves the old file or the new one, complete."""

import contextlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

from amdim_tf.errors import InputError

UNFINISHED = ".unfinished."


def local(path: str | pathlib.Path, name: str) -> pathlib.Path:
    """`path` as one of this machine's, with ~ for the user's folder; file:// may stand before it.

    Args:
        path: text or a path.
        name: of the flag or argument, for the error.

    Raises:
        InputError: a path of another file system, such as gs://, where nothing could be replaced
            as one.
    """
    text = os.path.expanduser(re.sub("^file:/+", "/", str(path)))
    if has_scheme(text):
        raise InputError(
            f"{name} must be a folder or file of this machine, or mounted, since what is written "
            f"there has to be complete or not there. Received: {name}={path}"
        )
    return pathlib.Path(text)


def readable(path: str | pathlib.Path, name: str) -> str:
    """`path` as one of this machine's, see `local`, or of a file system that TensorFlow knows.

    Raises:
        InputError: a scheme that TensorFlow does not know.
    """
    scheme = str(path).partition("://")[0]
    if not has_scheme(path) or scheme == "file":
        return str(local(path, name))
    import tensorflow as tf

    known = [f"{scheme}://" for scheme in sorted(tf.io.gfile.get_registered_schemes()) if scheme]
    if f"{scheme}://" not in known:
        raise InputError(
            f"{name} must be a path of this machine, or begin with one of {', '.join(known)}. "
            f"Received: {name}={path}"
        )
    return str(path).rstrip("/")


def has_scheme(path: str | pathlib.Path) -> bool:
    """Whether `path` is one of another file system, such as gs://bucket/folder."""
    return bool(re.match("[A-Za-z][A-Za-z0-9+.-]+:/", str(path)))


def printable(name: str | bytes) -> str:
    """A file's `name`, text or bytes, with what is not UTF-8 as \\x and two digits."""
    return os.fsencode(name).decode(errors="backslashreplace")


def read_json(path: pathlib.Path) -> Any:
    """What the JSON file `path` holds; an empty dictionary if it is not there or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def read_json_lines(path: pathlib.Path) -> list[Any]:
    """What each line of `path` holds as JSON, up to one that is cut off; none without a file."""
    records: list[Any] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def write_json(path: pathlib.Path, value: Any) -> None:
    """Replaces `path` by `value` as JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces `path` by `text`."""
    with replacing(path) as unfinished:
        # Names of files may be any bytes.
        unfinished.write_bytes(text.encode(errors="surrogateescape"))


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator:
    """A path of the same ending in the same folder; what is written there replaces `path`.

    Args:
        path: of a file, or of a folder that is not there; on a file system of TensorFlow's, such as
            gs://, of a file.
    """
    if has_scheme(path):
        import tensorflow as tf

        folder, _, name = str(path).rpartition("/")
        remote = f"{folder}/{UNFINISHED}{name}"
        yield remote
        tf.io.gfile.rename(remote, path, overwrite=True)
        return
    path = pathlib.Path(path)
    unfinished = path.with_name(f"{UNFINISHED}{path.name}")
    if unfinished.is_dir():  # of a process that was killed
        shutil.rmtree(unfinished)
    yield unfinished
    sync_all(unfinished)
    os.replace(unfinished, path)
    sync(path.parent)


def sync_all(path: pathlib.Path) -> None:
    """`sync` for a file, or a folder and all that is in it."""
    for each in [*(path.rglob("*") if path.is_dir() else ()), path]:
        sync(each)


def sync(path: pathlib.Path) -> None:
    """Makes sure that a file or folder survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def available_memory() -> int:
    """Bytes that this process may still use, by the system and its control group; 0 if unknown."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0
    group = pathlib.Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return min(1024 * free, limit - used + int(stat["file"]))  # cached files make room
    except (OSError, ValueError, KeyError):  # no group, or one without a limit
        return 1024 * free
