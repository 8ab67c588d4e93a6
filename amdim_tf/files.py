"""Writing files so that a crash at any instant leaves the old one or the new one, whole."""

import contextlib
import json
import os

UNFINISHED = ".unfinished."


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
