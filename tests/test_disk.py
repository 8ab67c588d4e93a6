"""What users have on disk keeps working: runs, exports and models that an earlier version wrote."""

import json
import shutil

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
from disk.keep import HERE, images
from golden_values import relative_error
from PIL import Image

from amdim_tf import AMDIM, load_encoder, load_preprocess
from amdim_tf.evaluation.evaluation import evaluate
from amdim_tf.reference.conversion import to_content
from amdim_tf.runs.training import train
from amdim_tf.serving.bulk import Job, embed
from amdim_tf.serving.saved_model import export
from amdim_tf.training.run_directory import load_model
from amdim_tf.training.run_files import read_class_names, read_result, run_config

FINISHED = ("finished", "mixture", "supervised")
EXPECTED = np.load(HERE / "expected.npz")
# Of processors: each multiplies in an order of its own.
TOLERANCE = 1e-5


@pytest.fixture
def run(request, tmp_path):
    """The run of a name, in a folder of its own."""
    shutil.unpack_archive(HERE / f"{request.param}.tar.xz", tmp_path)
    return tmp_path / request.param


def f1_of(encoder):
    return np.asarray(encoder(images())["f1"])


@pytest.mark.parametrize("run", FINISHED, indirect=True)
def test_all_that_a_finished_run_holds_is_loaded(run):
    for path in (run, run / "encoder.keras", run / "export" / "1"):
        assert relative_error(f1_of(load_encoder(path)), EXPECTED[run.name]) <= TOLERANCE
    for path in (run, run / "export" / "1"):
        assert load_preprocess(path)(np.zeros((1, 9, 7, 3), "uint8")).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("run", FINISHED, indirect=True)
def test_a_finished_run_is_finished(run, capsys):
    before = read_result(run)
    assert train(run_config(run), run, baselines=False, strategy="none") == before
    assert "finished: nothing to do" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize("run", ["stopped"], indirect=True)
def test_a_stopped_run_goes_on(run, monkeypatch):
    monkeypatch.setattr("amdim_tf.runs.training.wanted", lambda *_: ())
    stopped = load_model(run)[1]
    result = train(run_config(run), run, strategy="none", xla="off")
    starts = [json.loads(line)["step"] for line in (run / "starts.jsonl").open()]
    assert starts == [0, stopped] and 0 < stopped < result["steps"] == 40
    assert relative_error(f1_of(load_encoder(run)), EXPECTED["resumed"]) <= 100 * TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("run", ["finished", "mixture"], indirect=True)
def test_a_finished_run_is_measured_exported_and_embeds(run, tmp_path):
    features = "mixture" if run.name == "mixture" else "f1"
    found = evaluate(run, run_config(run), ("knn", "linear"), fast=True, features=features)
    assert all(0 < result["accuracy"]["top1"] < 1 for result in found.values())
    classes = read_class_names(run)
    version = export(load_model(run)[0], run_config(run), run / "export", class_names=classes)
    assert version.name == "2"
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.zeros((9, 9, 3), "uint8")).save(folder / "0.png")
    embedded = []
    for number in ("1", "2"):
        output = str(tmp_path / number)
        embed(Job(str(run / "export" / number), output, "parquet", "folder", str(folder)))
        embedded.append(pq.read_table(output)["f1"].to_pylist())
    assert relative_error(*embedded) <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("run", ["converted"], indirect=True)
def test_a_converted_run_is_exported_and_converted_back(run):
    assert relative_error(f1_of(load_encoder(run)), EXPECTED["converted"]) <= TOLERANCE
    assert to_content(run)["hyperparams"]["n_rkhs"] == run_config(run).nrkhs
    assert export(load_model(run)[0], run_config(run), run / "export").name == "1"


@pytest.mark.parametrize(("name", "run"), [("amdim", "finished"), ("classifier", "supervised")])
def test_complete_models_are_loaded(name, run):
    model = keras.models.load_model(HERE / f"{name}.keras")
    assert isinstance(model, AMDIM) == (name == "amdim")
    assert relative_error(f1_of(model.encoder), EXPECTED[run]) <= TOLERANCE
    assert np.isfinite(model.predict(images(), verbose=0)["linear"]).all()
