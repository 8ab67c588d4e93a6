"""A run that is killed, stopped, short of disk space or out of numbers loses nothing."""

import json
import random
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from golden_values import TESTS
from kill_training import STEPS, small_config

from amdim_tf.config import apply_variant
from amdim_tf.errors import InputError, Stopped
from amdim_tf.evaluation.rows import ROWS
from amdim_tf.runs.training import train
from amdim_tf.training import callbacks
from amdim_tf.training.checkpoints import Checkpoints
from amdim_tf.training.run_directory import load_model
from amdim_tf.training.run_files import read_result

pytestmark = pytest.mark.long  # processes that are killed, or measured

# What a clock says of a step.
TIMES = ("input_wait", "steps_per_second")


def checkpoint(run):
    """All numbers in the last checkpoint of a run, by name."""
    step, prefix = Checkpoints(run / "checkpoints").newest()
    reader = tf.train.load_checkpoint(prefix)
    names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
    return step, {name: reader.get_tensor(name) for name in names}


def metrics(run):
    """The lines of metrics.jsonl, but for times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if name not in TIMES} for line in lines]


def events(run):
    """[(step, tag, value)] of the TensorBoard events, in order, without times."""
    found = []
    for path in (run / "tensorboard").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag not in TIMES:
                    found.append((event.step, value.tag, float(tf.make_ndarray(value.tensor))))
    return sorted(found)


def check_same(run, whole):
    """Weights, optimiser, metrics and results are those of the uninterrupted run, bit for bit."""
    (step, ours), (_, expected) = checkpoint(run), checkpoint(whole)
    assert step == STEPS and ours.keys() == expected.keys() and len(ours) > 100
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, name)
    assert metrics(run) == metrics(whole)
    assert events(run) == events(whole)


@pytest.fixture
def briefly(monkeypatch):
    """Has trainings end without measuring and exporting the encoder, to save time."""
    monkeypatch.setattr("amdim_tf.runs.training.wanted", lambda *_: ())
    monkeypatch.setattr("amdim_tf.runs.finish.export", lambda *_: None)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder and the report of kill_training.py."""
    folder = tmp_path_factory.mktemp("killed")
    script = TESTS / "kill_training.py"
    done = subprocess.run(
        [sys.executable, script, folder, "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_killed_at_any_instant_it_ends_as_if_it_had_not_been(killed):
    """Also between the last step and the end, with every row of the table and one export."""
    folder, report = killed
    assert set(report["status"].values()) == {0}
    assert all(0 < step < STEPS for step in report["killed_after"])
    expected = read_result(folder / "whole")
    assert list(expected["accuracy"]) == list(ROWS) and not expected["missing"]
    runs = [folder / "killed", *folder.glob("end*")]
    assert len(runs) == 1 + len(report["killed_after"])
    for run in runs:
        check_same(run, folder / "whole")
        result = read_result(run)
        assert result["accuracy"] == expected["accuracy"] and not result["missing"]
        assert [path.name for path in (run / "export").iterdir()] == ["1"]
        card = (run / "export" / "1" / "MODEL_CARD.md").read_text()
        assert f"{expected['accuracy']['raw_pixels']['mlp']:.3f}" in card
        assert (run / "encoder.keras").exists()
    starts = (folder / "killed" / "starts.jsonl").read_text().splitlines()
    assert len(starts) > 1 and {"step", "command", "versions"} <= set(json.loads(starts[-1]))


@pytest.mark.parametrize("number", callbacks.SIGNALS)
def test_a_signal_stops_it_after_a_step(killed, tmp_path, monkeypatch, briefly, number):
    folder, _ = killed
    handlers = [signal.getsignal(number) for number in callbacks.SIGNALS]
    config = small_config()
    config.checkpoint_minutes = 100.0  # its only checkpoint is that of the stop
    with monkeypatch.context() as patch:
        patch.setattr(
            callbacks.Progress,
            "on_train_batch_end",
            lambda self, batch, logs: signal.raise_signal(number) if batch == 6 else None,
        )
        with pytest.raises(Stopped, match="after step 8: the same command goes on"):
            train(config, tmp_path, baselines=False)
    assert [signal.getsignal(number) for number in callbacks.SIGNALS] == handlers
    assert Checkpoints(tmp_path / "checkpoints").steps() == [8]
    with (tmp_path / "metrics.jsonl").open("a") as lines:  # of steps after the checkpoint
        lines.write('{"step": 14, "loss": 1.0}\n{"step": 21, "lo')
    train(config, tmp_path, baselines=False)
    # Step 8 lies between two lines of metrics.
    check_same(tmp_path, folder / "whole")


def test_a_second_signal_ends_it_at_once(tmp_path, monkeypatch):
    def twice(self, batch, logs):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(callbacks.Progress, "on_train_batch_end", twice)
    # A shell has what it runs in the background ignore SIGINT.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(small_config(), tmp_path, baselines=False)
    finally:
        signal.signal(signal.SIGINT, inherited)


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of the steps 1 and 2 of a variable that counts steps, and the variable."""
    checkpoints, variable = Checkpoints(tmp_path / "checkpoints"), tf.Variable(tf.zeros(999))
    for step in (1, 2):
        variable.assign(tf.fill([999], float(step)))
        checkpoints.save(step, {"parts": [variable]})
    return checkpoints, variable


def test_cut_at_any_byte_the_one_before_it_is_used(saved, capsys):
    checkpoints, variable = saved
    generator = random.Random(0)
    for _ in range(50):
        path = generator.choice(sorted((checkpoints.folder / "2").iterdir()))
        content = path.read_bytes()
        path.write_bytes(content[: generator.randrange(len(content))])
        step, prefix = checkpoints.newest()
        assert step == 1 and "2 is damaged; using the one before it" in capsys.readouterr().err
        tf.train.Checkpoint(parts=[variable]).read(prefix).assert_consumed()
        assert set(variable.numpy()) == {1.0}
        path.write_bytes(content)
        assert checkpoints.newest()[0] == 2


def test_without_a_whole_one_nothing_starts_from_zero(saved, killed, tmp_path):
    checkpoints, variable = saved
    for path in checkpoints.folder.glob("[12]/*.index"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="All checkpoints in .* are damaged; restore one of them"):
        checkpoints.newest()
    # A damaged one is replaced when its step comes again.
    checkpoints.save(1, {"parts": [variable]})
    assert checkpoints.newest()[0] == 1
    with pytest.raises(InputError, match="All checkpoints"):
        (checkpoints.folder / "1" / "digest.json").unlink()
        checkpoints.newest()


def test_the_last_two_and_the_best_are_kept(saved):
    checkpoints, variable = saved
    content = {"parts": [variable]}
    for step, score in ((3, 0.5), (4, 0.7), (5, 0.6), (6, None), (7, 0.65)):
        checkpoints.save(step, content, score)
    assert checkpoints.steps() == [7, 6, 4] and checkpoints.best() == (4, 0.7)


def test_a_full_disk_leaves_the_run_as_it_was(killed, tmp_path, monkeypatch, briefly):
    """Files cannot grow over 100 kB after the second checkpoint."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    original, count = Checkpoints.save, []

    def save(*arguments):
        count.append(0)
        if len(count) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        original(*arguments)

    monkeypatch.setattr(Checkpoints, "save", save)
    try:
        with pytest.raises(InputError, match="cannot be written"):
            train(small_config(), tmp_path, baselines=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.setattr(Checkpoints, "save", original)
    step = Checkpoints(tmp_path / "checkpoints").newest()[0]
    assert 0 < step < STEPS
    train(small_config(), tmp_path, baselines=False)
    check_same(tmp_path, killed[0] / "whole")


def test_numbers_that_are_not_finite_end_it_and_change_nothing(tmp_path):
    """Table 3's -stabilize at a learning rate that the regulariser and clip would not save."""
    config = apply_variant(small_config(), "-stabilize")
    config.update({"learning_rate": 1e12, "warmup_steps": 0, "bad_steps": 3, "steps": 40})
    with pytest.raises(InputError, match=r"\S+ was not finite in the 3 steps up to step \d+, as"):
        train(config, tmp_path, baselines=False)
    model, step = load_model(tmp_path)
    assert step > 0
    for variable in model.variables:
        assert np.isfinite(variable.numpy()).all(), variable.path


def test_overwrite_starts_anew(killed, tmp_path, briefly):
    folder, _ = killed
    config = small_config()
    config.update({"steps": 2, "seed": 5})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="workdir must be a run directory"):
        train(config, tmp_path / "other", baselines=False, overwrite=True)
    assert (tmp_path / "other" / "mine.txt").read_text() == "mine"
    with pytest.raises(InputError, match="seed is 0 there and 5 here; steps is 30 there"):
        train(config, folder / "killed", baselines=False)
    train(config, folder / "killed", baselines=False, overwrite=True)
    assert load_model(folder / "killed")[1] == 2
