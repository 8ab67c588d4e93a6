"""Exceptions that a command ends with, in one sentence."""


class InputError(ValueError):
    """Bad input: the message says what is wrong, what was received and what is valid.

    Commands print the message alone, without a traceback, and exit with a non-zero code.
    """


class Stopped(Exception):
    """Training was asked to stop, and has saved where it was; the message says how to go on."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message; without a message its kind."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
