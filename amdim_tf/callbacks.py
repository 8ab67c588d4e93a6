"""Keras callbacks of a training run: progress, measurements and checkpoints."""

import json
import sys
import time

import keras
import tensorflow as tf
from tqdm import tqdm


class Progress(keras.callbacks.Callback):
    """A progress bar with images/s and time left."""

    def __init__(self, batch, first_step, last_step):
        super().__init__()
        self.batch, self.first_step, self.last_step = batch, first_step, last_step

    def on_train_begin(self, logs=None):
        self.bar = tqdm(
            total=self.last_step * self.batch,
            initial=self.first_step * self.batch,
            unit=" images",
            unit_scale=True,
            # A log file gets a line now and then, a terminal a moving bar.
            mininterval=0.5 if sys.stderr.isatty() else 15,
        )

    def on_train_batch_end(self, batch, logs=None):
        if self.bar.update(self.batch):  # reading the loss waits for the step: only when shown
            loss = logs.get("loss", logs.get("linear_loss"))
            self.bar.set_postfix(loss=f"{float(loss):.2f}", refresh=False)

    def on_train_end(self, logs=None):
        self.bar.close()


class Measurements(keras.callbacks.Callback):
    """Writes metrics.jsonl and TensorBoard events, with the optimiser's step as their step.

    Training metrics every `every` steps, each the mean of the steps since the line before, with
    the part of the time that went into waiting for batches (input_wait); the probes' accuracy on
    the test set, if there is one, after each epoch. Of several workers all take part, since they
    start to average anew together, and one `writes`.
    """

    def __init__(self, path, every, test_batches, epoch_steps, writes=True):
        super().__init__()
        self.writes = writes
        self.path, self.every = path, every
        self.test_batches, self.epoch_steps = test_batches, epoch_steps

    def on_train_begin(self, logs=None):
        if self.writes:
            self.lines = (self.path / "metrics.jsonl").open("a")
            self.events = tf.summary.create_file_writer(str(self.path / "tensorboard"))
        self._start_window()

    def _start_window(self):
        self.model.reset_metrics()
        self.model.waited = 0.0
        self.started, self.steps = time.perf_counter(), 0

    def on_train_batch_end(self, batch, logs=None):
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
        if step % self.epoch_steps == 0 and self.test_batches:
            self.evaluate(step)
            self._start_window()

    def evaluate(self, step):
        if self.writes:
            logs = self.model.measure(self.test_batches)
            self.write(step, {f"test_{name}": value for name, value in logs.items()})

    def write(self, step, values):
        if not self.writes:
            return
        values = {name: float(value) for name, value in values.items()}
        self.lines.write(json.dumps({"step": step} | values) + "\n")
        self.lines.flush()
        with self.events.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self.events.flush()

    def on_train_end(self, logs=None):
        if self.writes:
            self.lines.close()
            self.events.close()


class Checkpoints(keras.callbacks.Callback):
    """Saves after each epoch and at the end."""

    def __init__(self, manager, epoch_steps):
        super().__init__()
        self.manager, self.epoch_steps = manager, epoch_steps

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.step.numpy())
        if step % self.epoch_steps == 0:
            self.manager.save(step)

    def on_train_end(self, logs=None):
        self.manager.save(int(self.model.step.numpy()))
