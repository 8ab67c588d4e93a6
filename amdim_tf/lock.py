"""One process at a time in a folder: two would overwrite each other's files.

The lock is `flock`'s, which the system releases however the process ends. On file systems without
`flock` (ENOLCK and the like) the file is a lease, which the process renews while it lives. A lease
ends with its process if that ran on this machine, else after `LEASE_SECONDS` without a renewal.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
from collections.abc import Iterator

from amdim_tf.errors import InputError
from amdim_tf.files import read_json

LOCK = ".lock"
LEASE_SECONDS = 120
WITHOUT_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
UNWRITABLE = {errno.EACCES, errno.EROFS, errno.EPERM}


@contextlib.contextmanager
def locked(folder: str | pathlib.Path, name: str) -> Iterator[None]:
    """Holds `folder` for this process, and makes it if it is not there.

    A folder that cannot be written is not held: no file can be lost there.

    Args:
        folder: on this machine, or mounted.
        name: the flag that gives the folder, for the error.

    Raises:
        InputError: another process holds the folder, or it cannot be made.

    Example:
    >>> with locked("runs/cifar10-tiny-seed0", "workdir"):
    ...     train_and_save()
    """
    path = pathlib.Path(folder) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{name} cannot be used: {error}. Received: {name}={folder}") from error
    try:
        held = _flock(path)
    except OSError as error:
        if error.errno in UNWRITABLE:
            held = contextlib.nullcontext()
        elif error.errno in WITHOUT_FLOCK:
            held = _lease(path)
        else:
            raise
    if held is None:
        owner = read_json(path) or {"pid": "unknown", "host": "unknown", "command": "unknown"}
        raise InputError(
            f"{name} must be a folder that no other process writes to. Received: {name}={folder}, "
            f"which process {owner['pid']} on {owner['host']} holds ({owner['command']})"
        )
    with held:
        yield


def _flock(path):
    """A context that holds `path`, or None if another process holds it."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:  # its holder removed it and left
            pass
        except OSError:
            if not os.fstat(file.fileno()).st_size:  # made here, so it is no lease
                path.unlink(missing_ok=True)
            file.close()
            raise
        file.close()
    file.truncate(0)
    file.write(_owner())
    file.flush()
    return _held(path, file.close)


def _lease(path):
    """Like `_flock`, by a file that is renewed."""
    while True:
        try:
            with path.open("x") as file:
                file.write(_owner())
            break
        except FileExistsError:
            if not _ended(path):
                return None
            path.unlink(missing_ok=True)
    left = threading.Event()

    def renew():
        while not left.wait(LEASE_SECONDS / 6):
            with contextlib.suppress(OSError):
                os.utime(path)

    threading.Thread(target=renew, daemon=True).start()
    return _held(path, left.set)


def _ended(path):
    """Whether the process of the lease `path` has ended, or has not renewed it in time."""
    owner = read_json(path)
    if owner.get("host") == socket.gethostname():
        try:
            os.kill(owner["pid"], 0)
        except ProcessLookupError:
            return True
    # Both times are the file system's: the clock of this machine may differ from it.
    now = path.with_name(f"{LOCK}.{os.getpid()}")
    now.touch()
    try:
        return now.stat().st_mtime - path.stat().st_mtime > LEASE_SECONDS
    except FileNotFoundError:
        return True
    finally:
        now.unlink()


@contextlib.contextmanager
def _held(path, leave):
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        leave()


def _owner():
    command = " ".join(sys.argv)
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "command": command})
