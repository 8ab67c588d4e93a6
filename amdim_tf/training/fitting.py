"""Training from the newest checkpoint of a run to its last step, on all devices."""

import dataclasses
from collections.abc import Callable

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


@dataclasses.dataclass(frozen=True)
class Course:
    """What a training consists of.

    Args:
        batches: of a step and a `distribution.Worker`, its batches from that step to the last.
        batch: images of all replicas in a step.
        epoch_steps, last_step: steps of an epoch, and of all.
        test: batches by which the model is scored after each epoch, if any.
        failures: the `Failures` of the images.
        callbacks: more of Keras's callbacks, for the process that writes the run.
        plan: of the step to start from, what is printed before the training.
    """

    batches: Callable
    batch: int
    epoch_steps: int
    last_step: int
    test: tf.data.Dataset | None = None
    failures: Failures = dataclasses.field(default_factory=lambda: Failures(0, 0))
    callbacks: tuple = ()
    plan: Callable | None = None


def fit(model, course, run=None, config=None, devices=None):
    """Trains `model` to the last step of `course`.

    Args:
        model: a `Classifier`, compiled, made under the strategy of `devices`.
        course: a `Course`.
        run: the `RunDirectory` from whose newest checkpoint it goes on, and which gets others and
            the metrics; by default nothing is written.
        config: a config, of which the fields for checkpoints and metrics count.
        devices: `distribution.Devices`, by default one.

    Raises:
        InputError: too many bad images or numbers that are not finite; a full disk.
        Stopped: by SIGINT or SIGTERM, after a checkpoint was saved.
    """
    if not run:
        model.fit(course.batches(0), steps_per_epoch=course.last_step, shuffle=False, verbose=0)
        return
    devices = devices or Devices(tf.distribute.get_strategy())
    strategy, worker = devices.strategy, devices.worker
    with strategy.scope():
        first_step = run.restore(model)
    check_agreement(strategy, f"step {first_step}")
    if first_step >= course.last_step:
        return
    writer = run if worker.chief else None
    measured = Measurements(
        run.path, config.log_every, course.test, course.epoch_steps, worker.chief
    )
    callbacks = [
        measured,
        Checkpoints(writer, course.epoch_steps, config.checkpoint_minutes, measured),
        BadNumbers(config.bad_steps),
        BadImages(course.failures, writer and run.path / "bad_images.txt"),
    ]
    if writer:
        run.forget_metrics_after(first_step)
        run.record_start(first_step)
        if course.plan:
            print(course.plan(first_step), flush=True)
        callbacks.insert(0, Progress(course.batch, first_step, course.last_step))
        callbacks += course.callbacks

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
