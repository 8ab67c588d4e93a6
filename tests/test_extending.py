"""What docs/extending.md says holds: contracts kept by files outside of the package."""

import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_values import ROOT
from stopping import assert_it_ends_the_same

from amdim_tf import InputError, load_encoder
from amdim_tf.config import load_config
from amdim_tf.evaluation.evaluation import evaluate
from amdim_tf.objectives.objective import find_objective
from amdim_tf.runs.training import train
from amdim_tf.serving.saved_model import export
from amdim_tf.training.building import build_encoder
from amdim_tf.training.run_directory import load_model

GUIDE = ROOT / "docs" / "extending.md"
SMALL = {"ndf": 4, "nrkhs": 16, "ndepth": 1, "batch_size": 16, "steps": 6, "log_every": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the guide's files, from which Python imports."""
    folder = tmp_path_factory.mktemp("extension")
    for name, code in re.findall(r"`(\w+\.py)`[^`]*```python\n(.*?)```", GUIDE.read_text(), re.S):
        (folder / name).write_text(code)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def config(**fields):
    config = load_config("photo_patches")
    config.update(SMALL | {"objective": "align_uniform:AlignUniform", "probe_images": 60} | fields)
    return config


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    train(config(steps=60, learning_rate=1e-2), run, baselines=False)
    return run


@pytest.mark.long
def test_it_trains_and_is_measured_and_exported(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.1
    assert lines[-1].keys() >= {"alignment", "uniformity"}
    result = json.loads((run / "result.json").read_text())
    assert not result["missing"] and set(result["accuracy"]) == {"beside", "frozen"}

    served = tf.saved_model.load(str(run / "export" / "1")).signatures["normalized"]
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    f1 = load_encoder(run)(images)["f1"]
    np.testing.assert_allclose(served(images=tf.constant(images))["f1"], f1, rtol=1e-4, atol=1e-5)
    # What is exported is loaded without the objective.
    np.testing.assert_array_equal(load_encoder(run / "export" / "1")(images)["f1"], f1)
    model, step = load_model(run)
    assert step == 60 and export(model, config(), run / "export").name == "2"


@pytest.mark.long
def test_the_model_is_saved_and_loaded_by_keras(run, tmp_path):
    model, _ = load_model(run)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.objective) is type(model.objective)
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.long
def test_the_protocol_measures_a_run(run):
    found = evaluate(run, config(), ("centroids:Centroids", "knn"))
    for result in found.values():
        assert 0.2 < result["accuracy"]["top1"] < 1  # of 14 classes
    assert (run / "evaluation" / "photo_patches-centroids_Centroids.json").exists()


def test_the_encoder_has_maps(folder):
    scales = build_encoder(config(encoder="three_stages:three_stages")).scales
    assert scales == {1: 128, 4: 128, 8: 64, 16: 32}


@pytest.mark.long
def test_a_stopped_training_goes_on_to_the_same_end(folder, tmp_path, monkeypatch):
    assert_it_ends_the_same(config, tmp_path, monkeypatch, 2)


def trained_by_command(folder, run, *flags):
    """Weights of the encoder after three steps by the command, called from where `run` is."""
    words = [f"--config.{name}={value}" for name, value in config().items() if name in SMALL]
    words += ["--config.objective=align_uniform:AlignUniform", "--baselines=off", "--steps=3"]
    command = [sys.executable, "-m", "amdim_tf.train", f"--workdir={run}", *words, *flags]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_model(run)[0].encoder.get_weights()


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("plain") / "run"
    return trained_by_command(folder, run, "--strategy=none", "--xla=off")


@pytest.mark.long
@pytest.mark.parametrize(
    "flags", [["--strategy=cpu:2", "--xla=on"], ["--strategy=cpu:2", "--config.micro_batch=8"]]
)
def test_it_trains_on_replicas_by_xla_and_in_micro_batches(folder, plain, tmp_path, flags):
    """To the weights of one replica without XLA."""
    found = trained_by_command(folder, tmp_path / "run", *flags)
    for ours, theirs in zip(found, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize(
    "name", ["dim", "", "align_uniform", "nowhere:Here", "json:JSONDecoder", "json:Nothing"]
)
def test_what_is_no_objective_is_refused(name):
    with pytest.raises(InputError, match="must be one of amdim, .*supervised, or MODULE:CLASS"):
        find_objective(name)
