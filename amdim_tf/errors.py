"""Exceptions that end a command with one sentence."""


class InputError(ValueError):
    """Bad input: the message says what is wrong, what is valid and what was received.

    Commands print the message alone, without a traceback, and exit with a non-zero code.
    """


class Stopped(Exception):
    """Training was asked to stop and has saved its state; the message says how to go on."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has no message."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
