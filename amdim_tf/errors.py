"""The one exception for input that a user can correct."""


class InputError(ValueError):
    """Bad input: the message says what is wrong, what was received and what is valid.

    Commands print the message alone, without a traceback, and exit with a non-zero code.
    """
