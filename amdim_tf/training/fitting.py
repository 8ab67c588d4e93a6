"""Training from the newest checkpoint of a run to its last step, on all devices."""

import dataclasses
from collections.abc import Callable, Iterable

import tensorflow as tf

from amdim_tf.data.failures import Failures
from amdim_tf.distribution import Devices, check_agreement
from amdim_tf.errors import InputError, Stopped
from amdim_tf.training.callbacks import (
    BadImages,
    BadNumbers,
    Checkpoints,
    Measurements,
    Progress,
    stop_on_signals,
)
from amdim_tf.training.learner import Learner
from amdim_tf.training.run_directory import RunDirectory
from amdim_tf.training.trackers import Trackers
from amdim_tf.typing import Config


@dataclasses.dataclass(frozen=True)
class Course:
    """What a training consists of.

    Args:
        batches: takes a step and a `distribution.Worker`, and returns that worker's batches from
            the step to the last.
        batch: number of images in a step, over all replicas.
        epoch_steps, last_step: number of steps in an epoch, and in all epochs.
        test: batches that score the model when it is measured, if any.
        failures: the `Failures` of the images.
        callbacks: additional Keras callbacks, for the process that writes the run.
        trackers: the user's own callbacks, for that process; see `Trackers`.
        plan: takes the step to start from, and returns the text to print before the training.
        online: maps the model to {name: value} of what it is worth, when it is measured.
        measured_epochs: number of epochs between two measurements.
    """

    batches: Callable
    batch: int
    epoch_steps: int
    last_step: int
    test: Iterable | None = None
    failures: Failures = dataclasses.field(default_factory=lambda: Failures(0, 0))
    callbacks: tuple = ()
    trackers: tuple = ()
    plan: Callable | None = None
    online: Callable | None = None
    measured_epochs: int = 1

    def measures(self, step: int) -> bool:
        """Whether the model is measured after `step`: where an epoch ends, not after each."""
        epoch, others = divmod(step, self.epoch_steps)
        return not others and (epoch % self.measured_epochs == 0 or step == self.last_step)


def fit(
    model: Learner,
    course: Course,
    run: RunDirectory | None = None,
    config: Config = None,
    devices: Devices | None = None,
) -> None:
    """Trains `model` to the last step of `course`.

    Args:
        model: compiled, and made under the strategy of `devices`.
        course: what the training consists of.
        run: where training resumes from the newest checkpoint, and writes checkpoints and metrics;
            by default nothing is written.
        config: with a `run`, the config whose fields for checkpoints and metrics are used.
        devices: by default a single one.

    Raises:
        InputError: too many bad images or numbers that are not finite; a full disk.
        Stopped: by SIGINT or SIGTERM, after a checkpoint was saved.
    """
    if not run:
        model.fit(course.batches(0), steps_per_epoch=course.last_step, shuffle=False, verbose=0)
        return
    devices = devices or Devices(tf.distribute.get_strategy())
    worker = devices.worker
    strategy: tf.distribute.Strategy = devices.strategy
    with strategy.scope():
        first_step = run.restore(model)
    check_agreement(strategy, f"step {first_step}")
    if first_step >= course.last_step:
        return
    writer = run if worker.chief else None
    trackers = Trackers(course.trackers if writer else (), course.epoch_steps)
    how = course.test, course.measures, worker.chief, course.online, trackers.write
    measured = Measurements(run.path, config.log_every, *how)
    callbacks = [
        measured,
        Checkpoints(writer, course.measures, config.checkpoint_minutes, measured),
        BadNumbers(config.bad_steps),
        BadImages(course.failures, run.path / "bad_images.txt" if writer else None),
    ]
    if writer:
        run.forget_metrics_after(first_step)
        run.record_start(first_step)
        if course.plan:
            print(course.plan(first_step), flush=True)
        callbacks.insert(0, Progress(course.batch, first_step, course.last_step))
        callbacks += [*([trackers] if course.trackers else []), *course.callbacks]

    def batches(context=None):
        return course.batches(first_step, worker)

    try:
        with stop_on_signals(model):
            model.fit(
                batches() if worker.alone else strategy.distribute_datasets_from_function(batches),
                steps_per_epoch=course.last_step - first_step,
                shuffle=False,
                verbose=0,
                callbacks=callbacks,
            )
    except Stopped:
        check_agreement(strategy, "stopped")  # not before the chief has saved
        raise
    except InputError:
        run.checkpoints.wait()
        raise
    finally:
        trackers.close()
