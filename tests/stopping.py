"""A training that is stopped, and goes on, ends as one that was not."""

import signal

import numpy as np
import pytest

from amdim_tf.errors import Stopped
from amdim_tf.runs.training import train
from amdim_tf.training.callbacks import Progress
from amdim_tf.training.run_directory import load_model


def assert_it_ends_the_same(make_config, folder, monkeypatch, last):
    """Trains by `make_config()` twice in `folder`; one gets SIGTERM in its batch `last`."""
    monkeypatch.setattr("amdim_tf.runs.training.wanted", lambda *_: ())
    complete, stopped = folder / "complete", folder / "stopped"
    train(make_config(), complete)
    with monkeypatch.context() as patch:
        patch.setattr(
            Progress,
            "on_train_batch_end",
            lambda self, batch, logs: (
                signal.raise_signal(signal.SIGTERM) if batch == last else None
            ),
        )
        with pytest.raises(Stopped):
            train(make_config(), stopped)
    train(make_config(), stopped)
    weights = [load_model(path)[0].get_weights() for path in (complete, stopped)]
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
