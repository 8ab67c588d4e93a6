"""Checkpoints: written while training goes on, as often as they are worth it."""

import json
import resource
import signal
import threading
import time
import types

import numpy as np
import pytest
import tensorflow as tf
from kill_training import small_config

from amdim_tf.errors import InputError, Stopped
from amdim_tf.runs.training import train
from amdim_tf.training import callbacks, checkpoints
from amdim_tf.training.checkpoints import Checkpoints
from amdim_tf.training.fitting import Course


@pytest.fixture
def variable():
    return tf.Variable(tf.zeros([9, 99]))


def read(folder, variable):
    """The step of the newest checkpoint, whose value `variable` gets."""
    step, prefix = Checkpoints(folder).newest()
    tf.train.Checkpoint(parts=[variable]).read(prefix).assert_consumed()
    return step


def slow(monkeypatch):
    """Has sums, which a checkpoint ends with, wait for the event that is returned."""
    go_on, sums = threading.Event(), checkpoints._sums
    monkeypatch.setattr(checkpoints, "_sums", lambda parts: go_on.wait(60) and sums(parts))
    return go_on


def test_what_changes_while_it_is_written_is_not_in_it(tmp_path, variable, monkeypatch):
    go_on, kept = slow(monkeypatch), Checkpoints(tmp_path)
    variable.assign(tf.ones_like(variable))
    kept.save(1, {"parts": [variable]}, overlapped=True)
    variable.assign(tf.fill(variable.shape, 2.0))
    assert kept.writing and Checkpoints(tmp_path).newest() == (0, None)
    go_on.set()
    assert kept.wait() == 1 and not kept.writing and kept.seconds > 0
    assert read(tmp_path, variable) == 1 and (variable.numpy() == 1).all()
    kept.save(1, {"parts": [variable]})  # is there
    assert kept.spent == kept.seconds


def test_without_memory_for_a_copy_it_is_written_at_once(tmp_path, variable, monkeypatch):
    monkeypatch.setattr(checkpoints, "available_memory", lambda: 1000)
    kept = Checkpoints(tmp_path)
    kept.save(1, {"parts": [variable]}, overlapped=True)
    assert not kept.writing and kept.newest()[0] == 1


def test_what_fails_in_the_background_is_raised_at_the_next_save(tmp_path, variable):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = Checkpoints(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        kept.save(1, {"parts": [variable]}, overlapped=True)
        with pytest.raises(InputError, match="A checkpoint cannot be written to"):
            kept.save(2, {"parts": [variable]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept.save(3, {"parts": [variable]})
    assert kept.newest()[0] == 3


def test_a_damaged_tensor_is_found_whatever_the_size_of_the_file(tmp_path, variable, capsys):
    kept = Checkpoints(tmp_path)
    for step in (1, 2):
        kept.save(step, {"parts": [variable]})
    (path,) = (tmp_path / "2").glob("*.data-*")
    contents = bytearray(path.read_bytes())
    contents[40] ^= 1
    path.write_bytes(contents)
    assert kept.newest()[0] == 1 and "2 is damaged" in capsys.readouterr().err


def test_checkpoints_of_version_0_1_0_load(tmp_path, variable):
    """Their digest.json has the sums of the files."""
    variable.assign(tf.fill(variable.shape, 7.0))
    Checkpoints(tmp_path).save(5, {"parts": [variable]})
    digest = tmp_path / "5" / checkpoints.DIGEST
    digest.write_text(json.dumps(checkpoints._file_sums(tmp_path / "5")))
    variable.assign(tf.zeros_like(variable))
    assert read(tmp_path, variable) == 5 and (variable.numpy() == 7).all()
    (index,) = (tmp_path / "5").glob("*.index")
    index.write_bytes(index.read_bytes() + b"!")
    with pytest.raises(InputError, match="All checkpoints"):
        read(tmp_path, variable)


@pytest.mark.parametrize(
    "seconds, at_epochs, between",
    # Of 0.1 s, 5 s, 30 s and 100 s: what comes first, 2 % of the time or ten minutes.
    [(None, True, 600), (0.1, True, 10), (5, False, 500), (30, False, 600), (100, False, 600)],
)
def test_checkpoints_take_two_in_a_hundred_seconds(monkeypatch, seconds, at_epochs, between):
    clock = types.SimpleNamespace(monotonic=lambda: 1000.0)
    monkeypatch.setattr(callbacks, "time", clock)
    run = types.SimpleNamespace(checkpoints=types.SimpleNamespace(seconds=seconds, spent=0.0))
    due = callbacks.Checkpoints(run, lambda step: step % 100 == 0, 10, measured=None)
    due.on_train_begin()
    clock.monotonic = lambda: 1000.0 + 200
    assert due.is_due(True) is at_epochs
    run.checkpoints.spent = 4.1  # more than 2 % of 200 s
    assert not due.is_due(True) or between < 200
    clock.monotonic = lambda: 1000.0 + between - 1
    assert not due.is_due(False)
    clock.monotonic = lambda: 1000.0 + between + 1
    assert due.is_due(False)


def test_a_model_is_measured_where_epochs_end():
    """After each third, and at the end, unless that is within an epoch."""
    every_third = Course(None, 8, epoch_steps=10, last_step=70, measured_epochs=3)
    assert [step for step in range(1, 71) if every_third.measures(step)] == [30, 60, 70]
    within = Course(None, 8, epoch_steps=10, last_step=25)
    assert [step for step in range(1, 26) if within.measures(step)] == [10, 20]


@pytest.mark.long
def test_a_signal_while_one_is_written_ends_with_that_one(tmp_path, monkeypatch):
    """Not with another, for which there may be no time."""
    monkeypatch.setattr("amdim_tf.runs.training.wanted", lambda *_: ())
    go_on, config = slow(monkeypatch), small_config()
    config.checkpoint_minutes = 100.0

    def act(self, batch, logs):
        step = batch + 1
        if step == 3:
            self.model.saver.save(step, overlapped=True)
        if step == 5:
            signal.raise_signal(signal.SIGTERM)
            threading.Timer(0.5, go_on.set).start()

    monkeypatch.setattr(callbacks.Progress, "on_train_batch_end", act)
    begin = callbacks.Checkpoints.on_train_begin

    def known(self, logs=None):
        self.model.saver = self
        begin(self)

    monkeypatch.setattr(callbacks.Checkpoints, "on_train_begin", known)
    started = time.monotonic()
    with pytest.raises(Stopped, match=r"after step \d+: the same command goes on from step 3"):
        train(config, tmp_path, baselines=False)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [3]
    assert time.monotonic() - started < 60


def test_a_plan_says_what_a_stop_takes(tmp_path, variable):
    kept = Checkpoints(tmp_path / "checkpoints")
    assert 0 < kept.expected_seconds(2**20) < 60
    assert not list(tmp_path.iterdir())  # what was written to find out is gone
    kept.save(1, {"parts": [variable]})
    assert kept.expected_seconds(2**20) == kept.seconds
    again = Checkpoints(tmp_path / "checkpoints")
    assert again.expected_seconds(2**20) == pytest.approx(kept.seconds, abs=0.1)
    np.testing.assert_equal(again.steps(), [1])
