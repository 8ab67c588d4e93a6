"""Writing files so that a crash at any instant leaves the old one or the new one, whole."""

import contextlib
import json
import os
import pathlib

UNFINISHED = ".unfinished."


def read_json(path):
    """What the JSON file `path` holds; an empty dictionary if it is not there or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path, text):
    """Replaces `path` by `text`."""
    with replacing(path) as beside:
        beside.write_text(text)


@contextlib.contextmanager
def replacing(path):
    """A path of the same ending in the same folder; what is written there replaces `path`."""
    beside = path.with_name(f"{UNFINISHED}{path.name}")
    yield beside
    sync(beside)
    os.replace(beside, path)
    sync(path.parent)


def sync_all(folder):
    """`sync` for all that is in `folder`, and itself."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path):
    """Has a file or folder survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def available_memory():
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
