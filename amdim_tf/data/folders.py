"""Folders of images: one walk for all commands, by the same rules.

- An image is a file with one of `EXTENSIONS`, or of others given, in upper or lower case.
- Hidden files and folders, whose names begin with a dot, are passed over, and so are the folders
  that systems keep for themselves (`SYSTEM`).
- Links are followed. A folder that links lead to a second time is passed over, so a loop ends.
- The order is that of the names, folder by folder, whatever order the file system has.

What is passed over is counted, by reason.
"""

import collections
import os
import posixpath
from collections.abc import Iterator, Sequence

import tensorflow as tf

from amdim_tf.files import has_scheme, printable

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp")
SYSTEM = {"@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX"}
SYSTEM |= {"lost+found"}


class PassedOver(collections.Counter):
    """How many files and folders were passed over, by reason; as text, a phrase."""

    def __str__(self):
        found = [f"{count} {reason}" for reason, count in sorted((+self).items())]
        return f"passed over: {', '.join(found)}" if found else ""


def walk(
    folder: str, passed_over: PassedOver, extensions: Sequence[str] = EXTENSIONS
) -> Iterator[str]:
    """Paths of the images in `folder` and its subfolders, relative to it, in order.

    Args:
        folder: a path, of this machine or any file system that TensorFlow knows.
        passed_over: counts what is not an image.
        extensions: what the name of an image ends in.

    Example:
    >>> images = list(walk("train/cat", PassedOver()))
    """
    yield from _walk(folder, "", passed_over, tuple(extensions), set())


def subfolders(folder: str) -> list[str]:
    """Names of the folders in `folder` that are neither hidden nor the system's, in order."""
    return [name for name, kind in _entries(folder) if kind == "folder" and not _skipped(name)]


def images_in(folder: str, extensions: Sequence[str] = EXTENSIONS) -> list[str]:
    """Names of the images in `folder` itself, in order."""
    return [
        name for name, kind in _entries(folder) if kind == "file" and not _why(name, extensions)
    ]


def _walk(folder, inside, passed_over, extensions, seen):
    seen.add(_identity(folder))
    for name, kind in _entries(folder):
        path = f"{folder}/{name}"
        if _skipped(name):
            passed_over["hidden"] += 1
        elif kind == "folder":
            if _identity(path) in seen:
                passed_over["links to a folder that was seen"] += 1
            else:
                yield from _walk(path, f"{inside}{name}/", passed_over, extensions, seen)
        elif kind != "file":
            passed_over[kind] += 1
        elif why := _why(name, extensions):
            passed_over[why] += 1
        else:
            yield inside + name


def _skipped(name):
    return name.startswith(".") or name in SYSTEM


def _why(name, extensions):
    """Why the file `name` is not an image; empty if it is one by its name."""
    extension = os.path.splitext(name)[1].lower()
    if extension in extensions:
        return ""
    return f"{printable(extension)} files" if extension else "files without an extension"


def _entries(folder):
    """[(name, kind)] of all that is in `folder`, in order of the names.

    A kind is "folder", "file" or the reason why it is neither.
    """
    if has_scheme(folder):
        names = [name.rstrip("/") for name in tf.io.gfile.listdir(folder)]
        kinds = ("folder" if tf.io.gfile.isdir(f"{folder}/{name}") else "file" for name in names)
        return sorted(zip(names, kinds, strict=True))
    with os.scandir(folder) as entries:
        return sorted((entry.name, _kind(entry)) for entry in entries)


def _kind(entry):
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a link to itself
        pass
    return "links to nothing" if entry.is_symlink() else "that are no files"


def _identity(folder):
    """What two paths of one folder have in common."""
    if has_scheme(folder):
        return posixpath.normpath(folder)
    found = os.stat(folder)
    return found.st_dev, found.st_ino
