"""What comes in through a contract: found by the name of its file, or as MODULE:CLASS.

The class of a file is its name in CamelCase: `patch_offset.py` has `PatchOffset`.
"""

import functools
import importlib
import pathlib
import re
from typing import Any

from amdim_tf.errors import InputError


@functools.cache
def known(package: str, base: str) -> list[str]:
    """Names of the files of `package` whose class is a `base`; nothing is imported.

    A base between them, such as `PatchObjective`, ends in its name.
    """
    folder = pathlib.Path(__file__).parent.joinpath(*package.split(".")[1:])
    return sorted(
        path.stem
        for path in folder.glob("*.py")
        if re.search(rf"\nclass {_camel(path.stem)}\([\w.]*{base}\)", path.read_text("utf-8"))
    )


def find(kind: str, name: str, package: str, base: type) -> type:
    """The class of `name`, a file of `package` or MODULE:CLASS.

    Args:
        kind: what it is, for the error.
        base: that it is a subclass of.

    Raises:
        InputError: there is none.
    """
    names = known(package, base.__name__)
    module, _, attribute = name.partition(":")
    if name in names:
        module, attribute = f"{package}.{name}", _camel(name)
    try:
        found = imported(f"{module}:{attribute}")
        if not issubclass(found, base):
            raise TypeError(f"{attribute} is no subclass of {base.__name__}")
        return found
    except (ImportError, TypeError) as error:
        raise InputError(
            f"{kind} must be one of {', '.join(names)}, or MODULE:CLASS that Python can import"
            f"{f' ({error})' if attribute else ''}. Received: {kind}={name!r}"
        ) from error


def imported(place: str) -> Any:
    """What `place`, MODULE:NAME, names.

    Raises:
        ImportError: Python finds no such module, or nothing of that name in it.
    """
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (AttributeError, TypeError, ValueError) as error:
        raise ImportError(str(error)) from error


def made(place: str, kind: type) -> Any:
    """The `kind` of object that `place`, MODULE:NAME, names or makes.

    Raises:
        TypeError: it is something else. What the user's own code raises passes, too.
    """
    found = imported(place)
    found = found if isinstance(found, kind) else found()
    if not isinstance(found, kind):
        raise TypeError(f"it gives {type(found).__name__}")
    return found


def _camel(name):
    return re.sub("(?:^|_)([a-z])", lambda letter: letter[1].upper(), name)
