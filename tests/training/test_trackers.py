"""Callbacks of one's own: what they are told, MLflow's among them, and that none stops a run."""

import json

import keras
import mlflow.keras
import numpy as np
import pytest

from amdim_tf.config import load_config
from amdim_tf.errors import InputError, Stopped
from amdim_tf.runs.training import train
from amdim_tf.training.trackers import named_callbacks

WINDOW, EPOCH = 2, 5


class Heard(keras.callbacks.Callback):
    """Notes all that it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def on_train_begin(self, logs=None):
        self.told.append(("begin", int(self.model.step.numpy())))

    def on_epoch_begin(self, epoch, logs=None):
        self.told.append(("epoch begins", epoch))

    def on_batch_end(self, batch, logs=None):
        self.told.append(("batch", batch, logs))

    def on_epoch_end(self, epoch, logs=None):
        self.told.append(("epoch", epoch, logs))

    def on_train_end(self, logs=None):
        self.told.append(("end",))


class Broken(keras.callbacks.Callback):
    """Loses its server."""

    def on_batch_end(self, batch, logs=None):
        raise ConnectionError("no server")


class Early(keras.callbacks.Callback):
    """Has seen enough after an epoch."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A function that trains 12 steps with callbacks, in epochs of 5, and returns its lines."""
    monkeypatch.setattr("amdim_tf.runs.training.finish", lambda *_: {"accuracy": {}, "seconds": 0})
    monkeypatch.setattr("amdim_tf.runs.training.table", lambda result: "")
    monkeypatch.setattr("amdim_tf.data.pipeline.steps_per_epoch", lambda *_: EPOCH)
    monkeypatch.setattr("amdim_tf.runs.training.APART", 0.001)  # measured after every epoch

    def run(*callbacks):
        config = load_config("photo_patches")
        config.update({"ndf": 4, "nrkhs": 16, "ndepth": 1, "batch_size": 8, "steps": 12})
        config.update({"log_every": WINDOW, "probe_images": 100})
        train(config, tmp_path / "run", baselines=False, callbacks=callbacks)

    run.lines = lambda: list(
        map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    )
    return run


@pytest.mark.long
def test_a_tracker_is_told_what_the_metrics_file_gets(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path / 'store'}")
    heard = Heard()
    with mlflow.start_run() as started:
        by_window = mlflow.keras.MlflowCallback(log_every_epoch=False, log_every_n_steps=WINDOW)
        trained(Broken(), heard, mlflow.keras.MlflowCallback(), by_window)
    mlflow.flush_async_logging()
    lines = trained.lines()

    told = [
        (batch + 1, logs) for kind, batch, logs in filter(lambda x: x[0] == "batch", heard.told)
    ]
    assert [{"step": step} | logs for step, logs in told] == lines
    kinds = [each[:2] for each in heard.told if each[0] != "batch"]
    epochs = [[("epoch begins", i), ("epoch", i)] for i in range(3)]
    assert kinds == [("begin", 0), *sum(epochs, []), ("end",)]
    of_epochs = {each[1]: each[2] for each in heard.told if each[0] == "epoch"}
    last = next(line for line in reversed(lines) if line["step"] == 10 and "loss" in line)
    test = next(line for line in lines if line["step"] == 10 and "test_knn_accuracy" in line)
    assert of_epochs[1] == {name: x for name, x in (last | test).items() if name != "step"}
    assert "Broken is left out from now on: ConnectionError: no server" in capsys.readouterr().err

    kept = mlflow.MlflowClient().get_metric_history(started.info.run_id, "loss")
    found = {(each.step, each.value) for each in kept}
    assert {(line["step"], line["loss"]) for line in lines if "loss" in line} <= found
    assert {(i, logs["loss"]) for i, logs in of_epochs.items()} <= found
    accuracy = mlflow.MlflowClient().get_metric_history(started.info.run_id, "test_knn_accuracy")
    assert [each.step for each in accuracy if each.step < 2] == [0, 1]


@pytest.mark.long
def test_a_callback_may_stop_a_training_which_goes_on(trained):
    heard = Heard()
    with pytest.raises(Stopped, match="after step 6"):
        trained(Early(), heard)
    assert heard.told[-1] == ("end",)
    again = Heard()
    trained(again)
    (_, first), *_ = again.told
    assert first in (5, 6)  # a checkpoint that was being written at the stop is the last
    assert again.told[1] == ("epoch begins", 1)
    assert np.unique([line["step"] for line in trained.lines()]).tolist() == [2, 4, 5, 6, 8, 10, 12]


@pytest.mark.parametrize(
    "name, message",
    [
        ("nothing", "MODULE:NAME of Keras callbacks"),
        ("test_trackers:Nothing", "Nothing"),
        ("test_trackers:load_config", "missing 1 required"),
        ("test_trackers:dict", "it gives|no attribute"),
    ],
)
def test_what_is_no_callback_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        named_callbacks([name])


def test_a_callback_by_its_name():
    (found,) = named_callbacks(["test_trackers:Heard"])
    assert type(found).__name__ == "Heard"
