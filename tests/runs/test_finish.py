"""The end of a run: saved first, measured after, and what fails costs its row alone."""

import json
import pathlib
import signal

import numpy as np
import pytest

from amdim_tf.config import load_config
from amdim_tf.errors import Stopped
from amdim_tf.evaluation.rows import ROWS, gains
from amdim_tf.runs import finish
from amdim_tf.runs.finish import Rows
from amdim_tf.runs.training import table, train
from amdim_tf.serving import c_api, self_check

SMALL = {"ndf": 4, "nrkhs": 16, "ndepth": 1, "batch_size": 16, "steps": 2, "probe_images": 60}


def small(**fields):
    config = load_config("photo_patches")
    config.update(SMALL | fields)
    return config


def result_of(path):
    return json.loads((path / "result.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The result of a run in which nothing fails."""
    return train(small(), tmp_path_factory.mktemp("whole"))


@pytest.mark.long
def test_what_fails_costs_its_row_and_is_tried_again(whole, tmp_path, monkeypatch):
    """The export, a row, and the process between two rows."""
    found = []

    def no_symbol(*arguments):
        raise AttributeError("undefined symbol: TF_NewStatus")

    def no_memory(rows):
        found.append((result_of(tmp_path)["missing"], (tmp_path / "encoder.keras").exists()))
        raise MemoryError("no room for\n  the features")

    def stopped(rows):
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(finish, "export", no_symbol)
        patch.setattr(Rows, "beside", no_memory)
        patch.setattr(Rows, "untrained", stopped)
        with pytest.raises(Stopped, match="the same command goes on with what is missing"):
            train(small(), tmp_path)
    symbol = "AttributeError: undefined symbol: TF_NewStatus"
    # The encoder was saved before the first measurement, and the result says what it lacks.
    assert found == [({"export": symbol} | dict.fromkeys(ROWS, finish.NOT_YET), True)]
    result = result_of(tmp_path)
    assert list(result["accuracy"]) == ["frozen"]
    assert result["missing"] == {
        "export": symbol,
        "beside": "MemoryError: no room for the features",
        "untrained": finish.NOT_YET,
        "raw_pixels": finish.NOT_YET,
    }
    lines = table(result).splitlines()
    assert f"missing: export ({symbol})" in lines
    assert lines[-1] == "The same command tries again what is missing."

    with monkeypatch.context() as patch:
        measured = Rows.frozen
        patch.setattr(Rows, "frozen", None)  # which is not measured again
        result = train(small(), tmp_path)
    assert Rows.frozen is measured and result["missing"] == {}
    assert result["accuracy"] == whole["accuracy"] and list(result["accuracy"]) == list(ROWS)
    assert "missing" not in table(result)
    card = (tmp_path / "export" / "1" / "MODEL_CARD.md").read_text()
    assert f"{whole['accuracy']['untrained']['linear']:.3f}" in card


def test_the_gain_of_training_has_an_interval():
    """As in Newcombe 1998, Table II, contrast (a), method 10: 56 of 70 and 48 of 80."""
    accuracy = {"frozen": {"linear": 56 / 70, "knn": 0.5}, "untrained": {"linear": 48 / 80}}
    result = {"accuracy": accuracy, "test_images": 70, "notes": {"untrained": "80 test images"}}
    ((name, found),) = gains(result).items()
    assert name == "linear" and np.allclose(found, (0.2, 0.0524, 0.3339), atol=5e-5)
    assert "linear +0.200 (+0.052 to +0.334)" in table(result | {"config": {"dataset": "x"}})
    assert gains({"accuracy": {"frozen": accuracy["frozen"]}, "test_images": 70}) == {}


@pytest.mark.long
def test_baselines_can_be_left_out_and_come_later(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(finish, "export", lambda *_: None)
    result = train(small(), tmp_path, baselines=False)
    assert list(result["accuracy"]) == ["beside", "frozen"] and not result["missing"]
    assert train(small(), tmp_path, baselines=False) == result
    result = train(small(), tmp_path)
    assert result["accuracy"] == whole["accuracy"] and list(result["accuracy"]) == list(ROWS)


@pytest.mark.long
def test_raw_pixels_are_few_small_and_said_to_be(tmp_path, monkeypatch):
    pixels, measured = [], finish.raw_pixels

    def raw_pixels(*arguments):
        pixels.append(measured(*arguments))
        return pixels[-1]

    monkeypatch.setattr(finish, "raw_pixels", raw_pixels)
    monkeypatch.setattr(finish, "export", lambda *_: None)
    monkeypatch.setattr(Rows, "untrained", lambda rows: ({"linear": 0.5}, ""))
    result = train(small(image_size=64, nrkhs=32), tmp_path)
    assert result["notes"] == dict.fromkeys(["beside", "frozen", "untrained"], "") | {
        "raw_pixels": "32x32, 60 test images"
    }
    (line,) = (each for each in table(result).splitlines() if each.startswith("raw pixels"))
    assert line.endswith("  (32x32, 60 test images)")
    for part in pixels:
        assert part.values.dtype == np.uint8 and part.values.shape == (60, 32 * 32 * 3)


@pytest.mark.long
@pytest.mark.parametrize("lacking", ["library", "symbol"])
def test_a_tensorflow_without_its_c_api_exports_all_the_same(
    lacking, tmp_path, monkeypatch, capsys
):
    if lacking == "library":
        monkeypatch.setattr(self_check.tf.sysconfig, "get_lib", lambda: str(tmp_path))
        reason = f"there is no libtensorflow_cc in {tmp_path}"
    else:
        script = tmp_path / "c_api.py"
        source = pathlib.Path(c_api.__file__).read_text()
        script.write_text(source.replace("TF_NewGraph", "TF_NoSuchThing"))
        monkeypatch.setattr(self_check, "__file__", str(tmp_path / "self_check.py"))
        reason = "undefined symbol: TF_NoSuchThing"
    for row in ("beside", "frozen"):
        monkeypatch.setattr(Rows, row, lambda rows: ({"linear": 0.5}, ""))
    result = train(small(), tmp_path / "run", baselines=False)
    assert not result["missing"] and (tmp_path / "run/export/1/saved_model.pb").exists()
    error = capsys.readouterr().err
    assert "This TensorFlow cannot run the export as a server does" in error and reason in error
