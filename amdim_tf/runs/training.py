"""Trains, measures and exports an encoder; the code is in the order of a run."""

import contextlib
import gc
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from amdim_tf.config import fields, file_name
from amdim_tf.data import pipeline, sources
from amdim_tf.data.data import Data
from amdim_tf.data.statistics import pixel_statistics
from amdim_tf.distribution import check_agreement, check_batch, choose_devices
from amdim_tf.errors import InputError
from amdim_tf.evaluation.online import Online
from amdim_tf.evaluation.rows import COLUMNS, HEADINGS, ROWS, gain_phrase
from amdim_tf.evaluation.tensorboard import Pictures
from amdim_tf.files import local
from amdim_tf.lock import locked
from amdim_tf.objectives.objective import find_objective
from amdim_tf.processor import emulates
from amdim_tf.runs.finish import finish, missing, wanted
from amdim_tf.runs.starting import first_weights
from amdim_tf.training.building import build, check_config
from amdim_tf.training.checkpoints import Checkpoints
from amdim_tf.training.fitting import Course, fit
from amdim_tf.training.health import phrase as health_phrase
from amdim_tf.training.learner import Learner
from amdim_tf.training.named_optimizer import description
from amdim_tf.training.run_directory import CHECKPOINTS, RunDirectory, erase, hardware
from amdim_tf.training.run_files import CONFIG, read_config, read_result
from amdim_tf.typing import Config

FINISHED = "finished"
# Training has seen this many times the images of a measurement before there is another. An image
# is encoded once to be measured, and six times or more in a step: two views, forth and back.
APART = 4


def train(
    config: Config,
    workdir: str | pathlib.Path,
    data_dir: str | pathlib.Path | None = None,
    baselines: bool = True,
    strategy: str = "auto",
    xla: str = "auto",
    views_on: str = "host",
    overwrite: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, Any]:
    """Trains, saves, exports and measures an encoder, or goes on where an earlier run stopped.

    Args:
        config: a config, see `amdim_tf.config`.
        workdir: the run directory, see `amdim_tf.training.run_directory`.
        data_dir: the folder of the data, see `sources.load`.
        baselines: whether to measure an untrained encoder and raw pixels, too.
        strategy, xla: see `amdim_tf.distribution.choose_devices`.
        views_on: where views are made: "host", while the training steps run, or "accelerator",
            before each step.
        overwrite: whether to remove a run that is in `workdir`, and start from scratch.
        callbacks: Keras callbacks that follow the training, see `amdim_tf.training.trackers`.

    Returns:
        The content of result.json: accuracies, config, hardware, versions and time; `missing` says
        what could not be measured or exported, and why.

    Raises:
        InputError: input that a user can correct.
        Stopped: by SIGINT or SIGTERM, after a checkpoint was saved.
    """
    started = time.time()
    devices = choose_devices(strategy, xla)  # before TensorFlow runs anything
    check_config(config)
    check_batch(config.batch_size, config.micro_batch, devices.strategy)
    data, chief = sources.load(config, data_dir), devices.worker.chief
    rows, workdir = wanted(data, baselines), local(workdir, "workdir")
    if not (config.mean and config.std):
        known = {} if overwrite or not (workdir / CONFIG).exists() else read_config(workdir)
        measured = (known["mean"], known["std"]) if known else pixel_statistics(data, config)
        config.mean, config.std = map(tuple, measured)
    if find_objective(config.objective).needs_labels and not data.class_names:
        raise InputError(
            f"The objective {config.objective} needs classes. "
            f"Received: {config.dataset} without any"
        )
    epoch_steps = pipeline.steps_per_epoch(data, config)
    last_step = config.steps or config.epochs * epoch_steps
    # Before anything is written. A run that goes on has them in its checkpoints.
    goes_on = Checkpoints(workdir / CHECKPOINTS).steps() and not overwrite
    weights = None if goes_on else first_weights(config)
    with locked(workdir, "workdir") if chief else contextlib.nullcontext():
        # The chief makes the directory, and the others then find it.
        if overwrite and chief:
            erase(workdir)
        if chief:
            RunDirectory(workdir, config).claim_data(data.record())
        check_agreement(devices.strategy, f"{data.record()}, {fields(config)}")
        run = RunDirectory(workdir, config)
        result = read_result(workdir)
        if result and not missing(result, rows):
            print(f"{workdir} holds this run, finished: nothing to do.\n\n{table(result)}")
            return result
        if last_step not in run.checkpoints.steps() or run.checkpoints.newest()[0] < last_step:
            steps = (epoch_steps, last_step)
            _fit_encoder(run, config, data, steps, devices, views_on, weights, callbacks)
            gc.collect()  # its model and optimiser, before another model is loaded
        if not chief:
            check_agreement(devices.strategy, FINISHED)  # if it ended now, so would the chief
            return read_result(workdir) or {}
        result = finish(run, config, data, last_step, rows, started)
        print(f"\n{table(result)}\n\nWrote {run.path} in {result['seconds']:.0f} s.")
        check_agreement(devices.strategy, FINISHED)
        return result


def _fit_encoder(run, config, data, steps, devices, views_on, weights, trackers):
    """Trains the model of `config`; `steps` are (steps of an epoch, last step), see `train`."""
    epoch_steps, last_step = steps
    with devices.strategy.scope():
        model = build(config, len(data.class_names), last_step, devices.compiled)
        if weights:
            model.encoder.set_weights(weights)
    to_views = pipeline.views_of(data, config)
    if views_on == "accelerator":
        model.to_views, to_views = to_views, lambda images, draws: (images, draws)
    callbacks = []
    if config.pictures_every:
        every = config.pictures_every * epoch_steps
        callbacks.append(Pictures(run.path / "pictures", every, config, data))
    test = data.test and pipeline.Rounds(
        pipeline.test_batches(data, data.test, config, devices.worker)
    )
    online = Online(data, config, devices)
    measured = APART * (online.images + (data.test.size if data.test else 0))
    course = Course(
        lambda first, worker: pipeline.train_batches(
            data, config, first, last_step, to_views, worker
        ),
        config.batch_size,
        epoch_steps,
        last_step,
        test,
        data.failures,
        tuple(callbacks),
        tuple(trackers),
        lambda first: plan(config, data, model, first, last_step, run),
        online,
        math.ceil(measured / (epoch_steps * config.batch_size)),
    )
    fit(model, course, run, config, devices)


def plan(
    config: Config, data: Data, model: Learner, first_step: int, last_step: int, run: RunDirectory
) -> str:
    """Says what a run is about to do."""
    shape = "x".join(str(side or "?") for side in data.image_shape)
    devices = ", ".join(device.name for device in tf.config.list_logical_devices())
    encoder, size = model.encoder, config.image_size
    start = f" from step {first_step}" if first_step else ""
    mean, std = (", ".join(f"{x:.3g}" for x in each) for each in (config.mean, config.std))
    colour = "; no hue, saturation or grey, which need 3 channels" * (config.channels != 3)
    seconds, stored = run.stop_seconds(model)
    slow = ""
    if "GPU" not in devices and emulates(config.precision):
        slow = f"; {config.precision} is slower than float32 here, without instructions for it"
    return "\n".join(
        [
            f"data      {config.dataset}: {data.train.size} training and "
            f"{data.test.size if data.test else 0} test images of {shape} pixels, "
            f"{len(data.class_names)} classes" + (f" ({data.note})" if data.note else ""),
            f"model     {config.encoder} ({encoder.phrase}) at {size} pixels: "
            f"{encoder.count_params():,} parameters, {model.count_params():,} with phi and probes",
            f"pixels    {config.channels} channels, minus {mean}, over {std}{colour}",
            f"training  {last_step} steps of {config.batch_size} images{start}, "
            f"{model.objective}, seed {config.seed}",
            f"optimiser {description(config, last_step)}",
            f"devices   {devices} ({hardware()}){slow}",
            f"writes    {run.path}",
            f"stops     on SIGTERM or SIGINT, after its step and a checkpoint: "
            f"{stored / 1e6:,.0f} MB, about {seconds:.1f} s",
        ]
    )


def table(result: dict[str, Any]) -> str:
    """The accuracies of a result as a table, and what it lacks."""
    config, lines = result["config"], []
    if result["accuracy"]:
        lines = [
            f"Accuracy on the {result['test_images']} test images of {config['dataset']}",
            f"{'':34}" + "".join(f"{heading:>8}" for heading in HEADINGS.values()),
        ]
    for key, row in result["accuracy"].items():
        cells = (f"{row[name]:8.3f}" if name in row else f"{'-':>8}" for name in COLUMNS)
        note = result.get("notes", {}).get(key)
        lines.append(f"{ROWS[key]:34}" + "".join(cells) + (f"  ({note})" if note else ""))
    lines += filter(None, [gain_phrase(result)])
    lacking = result.get("missing", {})
    if not lines and not set(lacking) & set(ROWS):
        lines = [f"{config['dataset']} has no classes by which to measure the encoder."]
    for name, why in lacking.items():
        lines.append(f"missing: {ROWS.get(name, name)} ({why})")
    if health := result.get("health"):
        lines.insert(0, health_phrase(health))
    if lacking:
        lines.append("The same command tries again what is missing.")
    return "\n".join(lines)


def run_name(config: Config) -> str:
    """The name of a run's folder, such as cifar10-small--multiscale-seed0."""
    dataset = file_name(config.dataset)
    return "-".join(filter(None, [dataset, config.size, config.variant, f"seed{config.seed}"]))
