"""Keras callbacks of a training run: progress, measurements and checkpoints."""

import contextlib
import json
import math
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from amdim_tf.data.failures import Failures
from amdim_tf.errors import InputError, Stopped
from amdim_tf.files import write_text
from amdim_tf.progress import progress
from amdim_tf.training.events import Events
from amdim_tf.training.learner import Learner
from amdim_tf.training.run_directory import RunDirectory

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# The fraction of the training time that checkpoints may take.
SHARE = 0.02


class Progress(keras.callbacks.Callback):
    """A progress bar with images/s and time left."""

    def __init__(self, batch: int, first_step: int, last_step: int):
        super().__init__()
        self.batch, self.first_step, self.last_step = batch, first_step, last_step

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.bar = progress(self.last_step * self.batch, self.first_step * self.batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.bar.update(self.batch):  # reading the loss waits for the step: only when shown
            loss = float(logs.get("loss", logs.get("linear_loss")))
            if math.isfinite(loss):
                self.bar.set_postfix(loss=f"{loss:.2f}", refresh=False)

    def on_train_end(self, logs: dict | None = None) -> None:
        self.bar.close()


class Measurements(keras.callbacks.Callback):
    """Writes metrics.jsonl and TensorBoard events, with the model's step as their step.

    It writes training metrics every `every` steps, as means over the steps since the line before,
    with the fraction of the time spent waiting for batches (input_wait). When it measures the
    model, it writes the probes' accuracy on the test set, if there is one, and what `online` finds.
    All workers measure together, and one of them writes.

    Args:
        path: the run directory.
        every: number of steps between two lines.
        test_batches: batches of the test set, if any.
        measures: maps a step to whether the model is measured after it.
        writes: whether this worker writes.
        online: maps the model to {name: value}.
        told: also gets each step and its metrics {name: value}.
    """

    def __init__(
        self,
        path: pathlib.Path,
        every: int,
        test_batches: Iterable | None,
        measures: Callable[[int], bool],
        writes: bool = True,
        online: Callable | None = None,
        told: Callable | None = None,
    ):
        super().__init__()
        self.writes, self.online, self.told = writes, online, told
        self.path, self.every = path, every
        self.test_batches, self.measures = test_batches, measures
        # The last step that was evaluated, and its accuracy.
        self.score: tuple[int | None, float | None] = None, None

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self.writes:
            self.lines = (self.path / "metrics.jsonl").open("a+")
            self.lines.seek(0)
            self.events = Events(self.path / "tensorboard", list(map(json.loads, self.lines)))
        self._start_clock()

    def _start_clock(self):
        self.model.waited = 0.0
        self.started, self.steps = time.perf_counter(), 0

    def _start_window(self):
        self.model.reset_metrics()
        self._start_clock()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step = int(self.model.step.numpy())
        self.steps += 1
        if step % self.every == 0:
            seconds = time.perf_counter() - self.started
            rate = float(self.model.optimizer.learning_rate)
            self.write(
                step,
                logs
                | {
                    "learning_rate": rate,
                    "steps_per_second": self.steps / seconds,
                    "input_wait": self.model.waited / seconds,
                },
            )
            self._start_window()
        if self.measures(step):
            self.evaluate(step)
            self._start_window()

    def evaluate(self, step: int) -> None:
        """Measures the model at `step`, on the test set if there is one, and writes the result."""
        logs = self.model.measure(self.test_batches) if self.test_batches else {}
        self.score = step, logs.get("linear_accuracy")
        logs = {f"test_{name}": value for name, value in logs.items()}
        logs |= self.online(self.model) if self.online else {}
        if logs:
            self.write(step, logs)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes `values` {name: scalar} as the metrics of `step`, if this worker writes."""
        if not self.writes:
            return
        values = {name: float(value) for name, value in values.items()}
        # A mean over no values, such as over no labelled images, is left out.
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        self.lines.write(json.dumps({"step": step} | values) + "\n")
        self.lines.flush()
        os.fsync(self.lines.fileno())
        self.events.write(step, values)
        if self.told:
            self.told(step, values)

    def on_train_end(self, logs: dict | None = None) -> None:
        if self.writes:
            self.lines.close()
            self.events.close()


class Checkpoints(keras.callbacks.Callback):
    """Saves after measurements and between them, at the end, and before a stop.

    The time that the last checkpoint took decides which measurements are skipped and how many
    checkpoints lie between them, so that saving takes at most `SHARE` of the time; two checkpoints
    are never further apart than `minutes`. All workers take part in a stop; the one with a `run`
    saves.

    Args:
        run: the run directory of the worker that saves; None for the others.
        measures: maps a step to whether the model was measured after it.
        minutes: the longest time between two checkpoints.
        measured: its accuracy on test images decides which checkpoint is the best.
    """

    def __init__(
        self,
        run: RunDirectory | None,
        measures: Callable[[int], bool],
        minutes: float,
        measured: Measurements,
    ):
        super().__init__()
        self.run, self.measures, self.measured = run, measures, measured
        self.longest = 60 * minutes

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.began = self.saved = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self.run:
            self.run.restore_metrics(self.model)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        step = int(self.model.step.numpy())
        if self.model.stop:
            self.stop(step)
        elif self.run and self.is_due(self.measures(step)):
            self.save(step, overlapped=True)

    def is_due(self, measured: bool) -> bool:
        """Whether a checkpoint is to be written now, when the model was just measured or not."""
        assert self.run  # the caller's duty, as in `save`
        now, checkpoints = time.monotonic(), self.run.checkpoints
        seconds = checkpoints.seconds or 0
        if measured and checkpoints.spent + seconds <= SHARE * (now - self.began):
            return True
        # Half of the share is kept for measured models: only their checkpoints can be the best.
        interval = 2 * seconds / SHARE if seconds else self.longest
        return now - self.saved > min(interval, self.longest)

    def save(self, step: int, overlapped: bool = False) -> None:
        """Saves the model as the checkpoint of `step`; see `checkpoints.Checkpoints.save`."""
        assert self.run
        measured, score = self.measured.score
        self.run.save(self.model, step, score if measured == step else None, overlapped)
        self.saved = time.monotonic()

    def stop(self, step: int) -> None:
        """Ends a training with a checkpoint: the one that is being written, or a new one.

        Raises:
            Stopped: always.
        """
        place = "there"
        if self.run:
            if not self.run.checkpoints.writing:
                self.save(step)
            saved = self.run.checkpoints.wait()
            place = place if saved == step else f"step {saved}"
        raise Stopped(f"Stopped after step {step}: the same command goes on from {place}.")

    def on_train_end(self, logs: dict | None = None) -> None:
        if self.run:
            self.save(int(self.model.step.numpy()))


class BadNumbers(keras.callbacks.Callback):
    """Ends a training after `limit` skipped updates in a row, see `Learner.update`."""

    def __init__(self, limit: int):
        super().__init__()
        self.limit = limit

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        count = int(self.model.bad_steps.numpy())
        if count >= self.limit:
            step = int(self.model.step.numpy())
            term = self.model.terms[int(self.model.bad_term.numpy())]
            raise InputError(
                f"{term} was not finite in the {count} steps up to step {step}, as many as "
                "bad_steps allows. None of them changed a weight: the last checkpoint is good; try "
                f"a smaller learning_rate. Received: learning_rate up to "
                f"{float(self.model.optimizer.learning_rate):g}"
            )


class BadImages(keras.callbacks.Callback):
    """Lists the images that could not be used in a file, and ends a training with too many.

    Args:
        failures: the images that could not be used.
        path: the file, if this process writes it.
    """

    def __init__(self, failures: Failures, path: pathlib.Path | None = None):
        super().__init__()
        self.failures, self.path, self.named = failures, path, 0

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self.path and self.path.exists():  # failures of an earlier start count, too
            for line in os.fsdecode(self.path.read_bytes()).splitlines():
                name, _, why = line.partition("\t")
                self.failures.add(name, why)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        reasons = self.failures.reasons
        if self.path and len(reasons) > self.named:
            write_text(self.path, "".join(f"{name}\t{why}\n" for name, why in reasons.items()))
            self.named = len(reasons)
        self.failures.check()


def stop_on_signals(model: Learner) -> contextlib.AbstractContextManager[None]:
    """SIGINT or SIGTERM asks `model` to stop after its step; a second signal ends the process."""

    def ask():
        model.asked = True
        print("\nStopping after this step; a second signal stops at once.", file=sys.stderr)

    return on_signals(ask)


@contextlib.contextmanager
def on_signals(action: Callable[[], None]) -> Iterator[None]:
    """Calls `action()` at the first SIGINT or SIGTERM; a second one ends the process."""

    def act(number, frame):
        for number in SIGNALS:
            signal.signal(number, before[number])
        action()

    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread alone
        return
    before = {number: signal.signal(number, act) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
