"""Measures time and memory: in turn, after a warm-up, as medians with quartiles."""

import contextlib
import ctypes
import gc
import os
import pathlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

WARM_UP = 3
MEMORY = ", peak memory"


class Table:
    """Measurements, in order: `rows` is {name: {"value", "unit", "low", "high"}}."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        low: float | None = None,
        high: float | None = None,
    ) -> float:
        """Adds and prints a row, and returns its value."""
        self.rows[name] = {"value": value, "unit": unit, "low": low, "high": high}
        print(f"{name}: {value:.4g} {unit}", flush=True)
        return value

    def time(self, functions: Mapping[str, Callable], runs: int) -> list[float]:
        """Adds the seconds of `functions` {name: function}, and returns their medians."""
        rows = zip(functions, quartiles(functions.values(), runs), strict=True)
        return [self.add(name, median, "s", low, high) for name, (low, median, high) in rows]


def quartiles(
    functions: Collection[Callable], runs: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """The quartiles of the seconds that each of `functions` takes by a `clock`.

    They are called in turn, so that other work on the machine slows all of them down alike.
    """
    for function in functions:
        for _ in range(WARM_UP):
            function()
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(runs):
        for function, times in zip(functions, seconds, strict=True):
            started = clock()
            function()
            times.append(clock() - started)
    return np.quantile(seconds, (0.25, 0.5, 0.75), axis=1).T.tolist()


def peak_bytes(function: Callable) -> int:
    """Peak memory of `function()` above what is in use, on the accelerator if there is one.

    Otherwise it is the memory of the process. Calls before, not measured, trace and compile it.
    """
    for _ in range(2):
        function()
    gc.collect()  # what tracing left
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")
        before = tf.config.experimental.get_memory_info("GPU:0")["current"]
        function()
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] - before
    with contextlib.suppress(OSError):  # malloc keeps memory that is not in use
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keeps all threads of the process on one core."""
    cores = os.sched_getaffinity(0)

    def use(cores):
        for thread in pathlib.Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), cores)

    use({min(cores)})
    try:
        yield
    finally:
        use(cores)
