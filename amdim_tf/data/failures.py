"""Images that could not be used: each once, with the reason, and how many there may be."""

import hashlib
import sys
import threading

from amdim_tf.errors import InputError
from amdim_tf.files import printable

# Bad images that are named on the screen while a run goes on.
SHOWN = 10


class Failures:
    """The images that could not be used: `names`, each once, in the order they were met.

    Any thread may `add` to them; the first few are named on stderr, too. A worker knows only those
    that it met itself.

    Args:
        images: the number of training images.
        allowed: the fraction of them that may be bad.
    """

    def __init__(self, images: int, allowed: float):
        self.images, self.allowed = images, allowed
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        return list(self.reasons)

    @property
    def reasons(self) -> dict[str, str]:
        """{name: why it could not be used}."""
        with self._lock:
            return dict(self._reasons)

    def __contains__(self, name: str) -> bool:
        with self._lock:
            return name in self._reasons

    def add(self, name: str, why: str) -> None:
        """Notes why the image `name` is bad, unless that is known."""
        with self._lock:
            if name not in self._reasons and len(self._reasons) < SHOWN:
                print(f"Skipped a bad image: {printable(name)}: {why}", file=sys.stderr, flush=True)
            self._reasons.setdefault(name, why)

    def check(self) -> None:
        """Raises `InputError` if more images are bad than are allowed to be."""
        names = self.names
        if len(names) > self.allowed * self.images:
            raise InputError(
                f"bad_images={self.allowed:g} is the fraction of the {self.images} training "
                f"images that may be bad. Received: {len(names)} that cannot be decoded or have no "
                f"valid label, first {', '.join(map(printable, names[:5]))}"
            )


def fingerprint(record: bytes) -> str:
    """A name for the bytes of an image that has no other."""
    return f"{len(record)} bytes with SHA-256 {hashlib.sha256(record).hexdigest()}"
