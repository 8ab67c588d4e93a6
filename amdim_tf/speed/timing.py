"""How time and memory are measured: in turn, after a warm-up, as medians with quartiles."""

import contextlib
import ctypes
import os
import pathlib
import time

import numpy as np
import tensorflow as tf

WARM_UP = 3
MEMORY = ", peak memory"


class Table:
    """Rows of measurements, as they come: {name: {"value", "unit", "low", "high"}}."""

    def __init__(self):
        self.rows = {}

    def add(self, name, value, unit, low=None, high=None):
        self.rows[name] = {"value": value, "unit": unit, "low": low, "high": high}
        print(f"{name}: {value:.4g} {unit}", flush=True)
        return value

    def time(self, functions, runs):
        """Adds the seconds of `functions` {name: function}, and returns their medians."""
        rows = zip(functions, quartiles(functions.values(), runs), strict=True)
        return [self.add(name, median, "s", low, high) for name, (low, median, high) in rows]


def quartiles(functions, runs):
    """The quartiles of the seconds that each of `functions` takes.

    They are called in turn, so that what else the machine does reaches all of them.
    """
    for function in functions:
        for _ in range(WARM_UP):
            function()
    seconds = [[] for _ in functions]
    for _ in range(runs):
        for function, times in zip(functions, seconds, strict=True):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return np.quantile(seconds, (0.25, 0.5, 0.75), axis=1).T.tolist()


def peak_bytes(function):
    """Peak memory of `function()` above what is in use: of the accelerator, else of the process.

    The function is called before, so that it is traced and compiled.
    """
    function()
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")
        before = tf.config.experimental.get_memory_info("GPU:0")["current"]
        function()
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] - before
    with contextlib.suppress(OSError):  # what malloc keeps for later is not in use
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@contextlib.contextmanager
def one_core():
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
