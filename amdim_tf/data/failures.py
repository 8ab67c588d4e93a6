"""Images that could not be used: each once, with its reason, and how many there may be."""

import hashlib
import sys
import threading

from amdim_tf.errors import InputError
from amdim_tf.files import printable

# Bad images that are named on the screen while a run goes on.
SHOWN = 10


class Failures:
    """The images that could not be used: `names`, each once, in the order they were met.

    Any thread may `add` to them; the first few are named on stderr, too. Of several workers each
    knows those that it met.

    Args:
        images: the number of training images.
        allowed: the part of them that may be bad.
    """

    def __init__(self, images, allowed):
        self.images, self.allowed = images, allowed
        self._reasons, self._lock = {}, threading.Lock()

    @property
    def names(self):
        return list(self.reasons)

    @property
    def reasons(self):
        """{name: why it could not be used}."""
        with self._lock:
            return dict(self._reasons)

    def __contains__(self, name):
        with self._lock:
            return name in self._reasons

    def add(self, name, why):
        """Notes that the image `name` is bad, unless that is known."""
        with self._lock:
            if name not in self._reasons and len(self._reasons) < SHOWN:
                print(f"Skipped a bad image: {printable(name)}: {why}", file=sys.stderr, flush=True)
            self._reasons.setdefault(name, why)

    def check(self):
        """Raises `InputError` if more images are bad than are allowed to be."""
        names = self.names
        if len(names) > self.allowed * self.images:
            raise InputError(
                f"bad_images={self.allowed:g} is the part of the {self.images} training images "
                f"that may be bad. Received: {len(names)} that cannot be decoded or have no valid "
                f"label, first {', '.join(map(printable, names[:5]))}"
            )


def fingerprint(record):
    """A name for the bytes of an image that has no other."""
    return f"{len(record)} bytes with SHA-256 {hashlib.sha256(record).hexdigest()}"
