"""How commands start: fast, in silence, and without hiding what TensorFlow has to say."""

import os
import resource
import subprocess
import sys

import pytest
from long import most_long

from amdim_tf.__main__ import COMMANDS
from amdim_tf.tensorflow_log import HARMLESS, START


def run(*arguments, **environment):
    """A finished command, as in a new shell."""
    kept = {name: x for name, x in os.environ.items() if not name.startswith("TF_")}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        env=kept | environment,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_takes_no_time(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(f"amdim_tf.{command}", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and not done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_the_commands_are_listed():
    for words in ((), ("--help",), ("help",)):
        done = run("amdim_tf", *words)
        assert done.returncode == 0 and not done.stderr
        lines = [line.split(maxsplit=2) for line in done.stdout.splitlines() if "  amdim " in line]
        assert [name for _, name, _ in lines] == [*COMMANDS]
        assert all(summary.endswith(".") for *_, summary in lines)
    done = run("amdim_tf", "trian")
    assert done.returncode == 1 and done.stderr.startswith("error: A command must be one of train,")
    assert "the nearest is train. Received: trian" in done.stderr
    assert run("amdim_tf", "results", "--help").stdout == run("amdim_tf.results", "--help").stdout


@pytest.mark.parametrize("level", most_long([{"TF_CPP_MIN_LOG_LEVEL": "0"}, {}], 2))
def test_nothing_comes_before_what_a_command_says(level, tmp_path):
    done = run("amdim_tf.results", f"--folder={tmp_path}", **level)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("error: folder must hold") and done.stderr.count("\n") == 1


def test_errors_of_tensorflow_reach_the_user():
    """Also when the process ends at once."""
    code = r"""
import os, sys
sys.argv = ["-m"]
from amdim_tf.tensorflow_log import start_tensorflow
start_tensorflow()
import tensorflow as tf
print("a warning", file=sys.stderr)
os.write(2, b"E0000 00:00:1 1 gpu_device.cc:1] out of memory\nI0000 00:00:1 1 a.cc:1] asked for\n")
for kind in (b"INT32", b"UINT8"):
    os.write(2, b"E0000 00:00:1 1 util.cc:131] oneDNN supports DT_%b only on platforms\n" % kind)
os.abort()
"""
    kept = {name: x for name, x in os.environ.items() if not name.startswith("TF_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=kept, check=False
    )
    shown = [line.split("] ")[-1] for line in done.stderr.splitlines()]
    assert sorted(shown) == ["a warning", "asked for", "out of memory"]
    for line in (
        b"F0000 00:00:1795621709.9 2181 cpu_feature_guard.cc:1] compiled to use AVX instructions",
        b"Traceback (most recent call last):",
    ):
        assert not START.match(line) and not HARMLESS.match(line)
