"""One process writes to a folder at a time, whatever becomes of it."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from amdim_tf import lock
from amdim_tf.errors import InputError
from amdim_tf.lock import LOCK, locked

HOLD = """
import sys, time
from amdim_tf.lock import locked
with locked(sys.argv[1], "workdir"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def without_flock(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_held_folder_is_refused_by_the_name_of_its_holder_and_free_when_that_is_killed(
    holder, tmp_path
):
    expected = rf"workdir must be .* workdir=.*run, which process {holder.pid} on .+ holds \(-c"
    with pytest.raises(InputError, match=expected), locked(tmp_path / "run", "workdir"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "run", "workdir"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("flock", [True, False])
def test_a_lock_ends_with_its_block_even_by_an_error(flock, tmp_path, monkeypatch):
    if not flock:
        without_flock(monkeypatch)
    with pytest.raises(KeyError), locked(tmp_path, "output"):
        with pytest.raises(InputError, match="output"), locked(tmp_path, "output"):
            pass
        raise KeyError
    with locked(tmp_path, "output"):
        pass
    assert not list(tmp_path.iterdir())


def test_without_flock_a_lease_is_kept_while_its_process_lives(tmp_path, monkeypatch):
    without_flock(monkeypatch)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.3)
    with locked(tmp_path, "workdir"):
        place, now = tmp_path / LOCK, time.time()
        # As if another machine held it, and then no longer.
        place.write_text(json.dumps({"host": "elsewhere", "pid": 1, "command": "train"}))
        while place.stat().st_mtime < now + 0.5:  # renewed
            time.sleep(0.01)
        with pytest.raises(InputError, match="process 1 on elsewhere"), locked(tmp_path, "workdir"):
            pass
    place.write_text(json.dumps({"host": "elsewhere", "pid": 1, "command": "train"}))
    os.utime(place, (now - 60, now - 60))
    with locked(tmp_path, "workdir"):
        assert json.loads(place.read_text())["pid"] == os.getpid()


def test_a_lease_of_a_process_of_this_machine_that_ended_is_none(tmp_path, monkeypatch):
    without_flock(monkeypatch)
    process = subprocess.Popen(["true"])
    process.wait()
    owner = {"host": os.uname().nodename, "pid": process.pid, "command": "train"}
    (tmp_path / LOCK).write_text(json.dumps(owner))
    with locked(tmp_path, "workdir"):
        pass


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="output=.*file"), locked(tmp_path / "file", "output"):
        pass
