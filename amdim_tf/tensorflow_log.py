"""TensorFlow's own log: its errors reach the user, and nothing else does.

It writes to the process's stderr from C++, at first whatever the settings say, and on a machine
without a GPU its first error is a false alarm. So another process reads that stderr and passes on
what matters, even if this one ends in between. Python's own stderr stays as it is.
"""

import io
import os
import re
import signal
import sys

# What is dropped until the devices are found, whatever TF_CPP_MIN_LOG_LEVEL.
START = re.compile(
    rb"[IW][0-9]{4} |WARNING: All log messages before absl|To enable the following instructions|"
    rb"E[0-9]{4} .*(cuda_platform\.cc|cuda_executor\.cc|cuda_diagnostics\.cc|Unable to register)"
)
# What is always dropped: TensorFlow goes on another way, to the same numbers.
HARMLESS = re.compile(
    rb"E[0-9]{4} .*(oneDNN supports DT_U?INT[0-9]+ only|meta_optimizer\.cc:[0-9]+\] "
    rb"(layout|remapper) failed)"
)
STARTED = b"\0\n"


def start_tensorflow() -> None:
    """Imports TensorFlow and has it find the devices, in silence, unless that was done."""
    if "tensorflow" in sys.modules or not hasattr(os, "fork"):
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors
    sys.stderr.flush()
    read, write = os.pipe()
    stderr = os.dup(2)
    if not os.fork():
        os.close(write)
        _pass_on(read, stderr)
        os._exit(0)
    os.close(read)
    os.dup2(write, 2)
    os.close(write)
    sys.stderr = io.TextIOWrapper(
        io.FileIO(stderr, "w"), errors="backslashreplace", line_buffering=True, write_through=True
    )
    try:
        import tensorflow as tf

        tf.config.list_physical_devices()
    finally:
        os.write(2, STARTED)


def _pass_on(source, target):
    """Passes on what is written to the descriptor `source`, to the end of all who write there."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to this process, too
    starting = True
    with open(source, "rb") as lines:
        for line in lines:
            if line == STARTED:
                starting = False
            elif not (HARMLESS.match(line) or (starting and START.match(line))):
                os.write(target, line)
