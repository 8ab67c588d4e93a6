"""Evaluation is training of a kind: on several devices, killed and started again, and once only."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from amdim_tf.config import load_config
from amdim_tf.data import sources
from amdim_tf.errors import InputError
from amdim_tf.evaluation import evaluation, features
from amdim_tf.evaluation.evaluation import evaluate
from amdim_tf.evaluation.features import encode, kept_features
from amdim_tf.evaluation.predictions import Predictions
from amdim_tf.runs.training import train
from amdim_tf.training.checkpoints import Checkpoints
from amdim_tf.training.run_directory import load_model
from amdim_tf.training.run_files import evaluation_config

FIELDS = {"probe_epochs": 1, "checkpoint_minutes": 0.0}
CHOSEN = ("knn", "linear", "mlp", "finetune")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory after 20 steps."""
    config = load_config("photo_patches")
    config.update({"ndf": 4, "nrkhs": 16, "ndepth": 1, "batch_size": 16, "steps": 20})
    config.update({"probe_images": 100, "learning_rate": 1e-3})
    path = tmp_path_factory.mktemp("runs") / "trained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amdim_tf.runs.training.wanted", lambda *_: ())
        patch.setattr("amdim_tf.runs.finish.export", lambda *_: None)
        train(config, path)
    return path


def config_of(run):
    config = evaluation_config(str(run))
    config.update(FIELDS)
    return config


def start(run, *flags):
    command = [sys.executable, "-m", "amdim_tf.evaluate", f"--workdir={run}", *flags]
    command += ["--label_fraction=0.1", *(f"--config.{name}={x}" for name, x in FIELDS.items())]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def accuracies(run):
    """{file: accuracy} of all results of a run."""
    paths = sorted((run / "evaluation").glob("photo_patches-*.json"))
    return {path.name: json.loads(path.read_text())["accuracy"] for path in paths}


def last_checkpoints(run):
    """{training: {name: numbers}} of what evaluation has trained."""
    found = {}
    for folder in sorted((run / "evaluation").glob("*/checkpoints")):
        reader = tf.train.load_checkpoint(Checkpoints(folder).newest()[1])
        names = [name for name in reader.get_variable_to_shape_map() if "OBJECT" not in name]
        found[folder.parent.name] = {name: reader.get_tensor(name) for name in names}
    return found


@pytest.mark.long
def test_on_any_devices_and_killed_in_the_middle_it_measures_the_same(
    trained, tmp_path, monkeypatch
):
    """On one device and two; killed on one it ends with the same numbers, bit for bit."""
    runs = {name: tmp_path / name for name in ("one", "killed", "cpu:2")}
    for path in runs.values():
        shutil.copytree(trained, path)
    on_two = start(runs["cpu:2"], "--strategy=cpu:2")
    kills = 0
    for training in ("probes-0.1", "finetune-0.1"):
        process = start(runs["killed"], "--strategy=none")
        while not list(runs["killed"].glob(f"evaluation/*-{training}.*/checkpoints/[1-9]*")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        process.kill()
        process.communicate()
        kills += 1
    monkeypatch.setattr(evaluation.Evaluation, "tidy", lambda self: None)
    for name in ("killed", "one"):
        evaluate(runs[name], config_of(runs[name]), CHOSEN, label_fraction=0.1)
    trainings = {name: last_checkpoints(runs[name]) for name in ("killed", "one")}
    assert kills == len(trainings["one"]) == 2
    for training, expected in trainings["one"].items():
        ours = trainings["killed"][training]
        assert ours.keys() == expected.keys() and len(ours) > 20
        for name, value in expected.items():
            np.testing.assert_array_equal(ours[name], value, f"{training} {name}")
    on_one = accuracies(runs["one"])
    assert len(on_one) == len(CHOSEN) and accuracies(runs["killed"]) == on_one
    output, error = on_two.communicate(timeout=600)
    assert on_two.returncode == 0, error
    assert output.count("top-1") == len(CHOSEN)
    assert accuracies(runs["cpu:2"]) == on_one
    assert not list((runs["cpu:2"] / "evaluation").glob("*/checkpoints"))


@pytest.mark.long
def test_what_was_measured_before_is_not_measured_again(trained, tmp_path, monkeypatch, capsys):
    """But it is with another setting, and after more steps."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    first = evaluate(run, config_of(run), ("knn",))
    measured, report = [], Predictions.report
    monkeypatch.setattr(Predictions, "report", lambda *x: measured.append(0) or report(*x))
    config = config_of(run)
    config.micro_batch = 2  # how it computes may change
    assert evaluate(run, config, ("knn",)) == first and not measured
    assert "measured before" in capsys.readouterr().out
    config.seed = 5
    evaluate(run, config, ("knn",))
    assert len(measured) == 2  # plain and weighted votes
    (run / "checkpoints" / "20").rename(run / "checkpoints" / "19")
    evaluate(run, config, ("knn",))
    assert len(measured) == 4
    # Features of the step that is gone are gone, too.
    records = (run / "evaluation" / "features").glob("*/record.json")
    assert {json.loads(path.read_text())["step"] for path in records} == {19}


@pytest.fixture(scope="module")
def encoded(trained):
    """(encoder, data, split, config) of 840 images."""
    config = config_of(trained)
    data, (model, _) = sources.load(config, None), load_model(trained)
    return model.encoder, data, data.test, config


@pytest.mark.long
def test_features_go_on_where_they_were_stopped(encoded, tmp_path, monkeypatch):
    """A process that dies between two records computes again what lies after the first."""
    encoder, _, split, config = arguments = encoded
    written, write = [], features.Kept.write

    def dies(kept, place, rows):
        write(kept, place, rows)
        written.append(place)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(features, "FLUSH_SECONDS", 0)
    monkeypatch.setattr(features.pipeline, "batch_size", lambda split: 200)
    expected = encode(*arguments)  # in memory
    with monkeypatch.context() as patch:
        patch.setattr(features.Kept, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            encode(*arguments, folder=tmp_path, step=7)
    assert kept_features(encoder, split, config, tmp_path, 7) is None
    monkeypatch.setattr(features.Kept, "write", lambda *x: written.append(x[1]) or write(*x))
    found = encode(*arguments, folder=tmp_path, step=7)
    assert written == [0, 200, 400, 600, 800]
    np.testing.assert_array_equal(found.block(0, 840), expected.block(0, 840))
    np.testing.assert_array_equal(found.labels, expected.labels)
    again = encode(*arguments, folder=tmp_path, step=7)
    assert len(written) == 5 and isinstance(again.values, np.memmap)
    np.testing.assert_array_equal(again.block(5, 9), expected.block(5, 9))


@pytest.mark.long
def test_features_that_do_not_fit_on_the_disk_are_refused(encoded, tmp_path, monkeypatch):
    full = shutil._ntuple_diskusage(1e9, 1e9, 1000)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: full)
    with pytest.raises(InputError, match="The features of 840 images take 0.0 GB in .*Received:"):
        encode(*encoded, folder=tmp_path)
    assert not list(tmp_path.glob("*/f1.npy"))
