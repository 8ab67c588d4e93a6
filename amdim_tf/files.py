"""Writing files so that a crash at any instant leaves the old one or the new one, whole."""

import json
import os


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path, text):
    """Replaces `path` by `text`."""
    beside = path.with_name(f".{path.name}.unfinished")
    beside.write_text(text)
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
