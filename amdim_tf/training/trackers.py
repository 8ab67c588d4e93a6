"""Your own callbacks, such as those of Weights & Biases and MLflow, see a training as Keras's.

A run is a single call of `fit`, with all the steps that are left. Trackers expect epochs, and
metrics that can be read at once. So they are told of the epochs of the data, with the metrics of
the last window and of the test set, and of the last batch of each window, with the metrics that
metrics.jsonl gets then.
"""

import sys
from collections.abc import Callable, Sequence

import keras

from amdim_tf.errors import InputError, one_line
from amdim_tf.finding import made


class Trackers(keras.callbacks.Callback):
    """Passes a training on to your own callbacks; one that fails is left out from then on.

    Args:
        callbacks: Keras callbacks.
        epoch_steps: number of steps in an epoch.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback], epoch_steps: int):
        super().__init__()
        self.callbacks, self.epoch_steps = list(callbacks), epoch_steps
        self.latest: dict[str, float] = {}
        self.epoch: int | None = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        steps = {"epochs": None, "steps": self.epoch_steps, "verbose": 0}
        self._tell(lambda each: each.set_params(steps))
        self._tell(lambda each: each.set_model(self.model))
        self._tell(lambda each: each.on_train_begin())

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        if self.epoch is None:
            epoch = self.epoch = int(self.model.step.numpy()) // self.epoch_steps
            self._tell(lambda each: each.on_epoch_begin(epoch))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Passes on the metrics {name: value} of `step` that metrics.jsonl has got."""
        self.latest |= values
        self._tell(lambda each: each.on_train_batch_end(step - 1, dict(values)))

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if int(self.model.step.numpy()) % self.epoch_steps == 0:
            self._end_epoch()
        if self.model.stop_training:  # as Keras's EarlyStopping asks for it
            self.model.stop_training, self.model.asked = False, True

    def on_train_end(self, logs: dict | None = None) -> None:
        if self.latest:
            self._end_epoch()
        self.close()

    def close(self) -> None:
        """Tells the callbacks that the training has ended or was stopped, once."""
        self._tell(lambda each: each.on_train_end())
        self.callbacks = []

    def _end_epoch(self):
        epoch, values = self.epoch or 0, dict(self.latest)
        self._tell(lambda each: each.on_epoch_end(epoch, values))
        self.epoch, self.latest = None, {}

    def _tell(self, call: Callable) -> None:
        for each in list(self.callbacks):
            try:
                call(each)
            except Exception as error:  # noqa: BLE001  no tracker is worth a training
                self.callbacks.remove(each)
                print(
                    f"{type(each).__name__} is left out from now on: {type(error).__name__}: "
                    f"{one_line(error)}",
                    file=sys.stderr,
                    flush=True,
                )


def named_callbacks(names: Sequence[str]) -> list[keras.callbacks.Callback]:
    """The callbacks MODULE:NAME, each a Keras callback or a function that makes one.

    Raises:
        InputError: there is no such callback.
    """
    found = []
    for name in names:
        try:
            found.append(made(name, keras.callbacks.Callback))
        except Exception as error:  # it is the user's
            raise InputError(
                "callbacks must be MODULE:NAME of Keras callbacks, or of what makes one, separated "
                f"by commas ({one_line(error)}). Received: callbacks={name!r}"
            ) from error
    return found
