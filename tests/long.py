"""Marks most cases of a test as long: in every test run some of them are tried."""

import pytest


def most_long(cases, every):
    """Parameters of a test: each `every`-th of the `cases` as it is, the others marked `long`."""
    return [
        case
        if i % every == 0
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.long)
        for i, case in enumerate(cases)
    ]
