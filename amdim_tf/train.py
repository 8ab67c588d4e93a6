"""The command `python -m amdim_tf.train`: from a data set to a measured and exported encoder."""

import pathlib
import time

import keras
import tensorflow as tf
from absl import flags

from amdim_tf import command, datasets, pipeline, protocols
from amdim_tf.callbacks import (
    BadImages,
    BadNumbers,
    Checkpoints,
    Measurements,
    Pictures,
    Progress,
    stop_on_signals,
)
from amdim_tf.config import VARIANTS, check_config, fields, load_config
from amdim_tf.distribution import check_agreement, check_batch, choose_strategy, replicas, worker
from amdim_tf.errors import InputError, Stopped
from amdim_tf.export import export
from amdim_tf.files import replacing, write_json
from amdim_tf.model import build_model
from amdim_tf.optimizer import AdamL2, WarmupStepDecay, guarded
from amdim_tf.run_directory import (
    RunDirectory,
    environment,
    erase,
    hardware,
    load_model,
    read_result,
)

FLAGS = flags.FLAGS
FINISHED = "finished"


def train(
    config,
    workdir,
    data_dir=None,
    baselines=True,
    strategy="auto",
    xla="auto",
    views_on="host",
    overwrite=False,
):
    """Trains, measures and exports an encoder, or goes on where an earlier run of it stopped.

    Args:
        config: a config, see `amdim_tf.config`.
        workdir: the run directory, see `amdim_tf.run_directory`.
        data_dir: where the data is, see `datasets.load`.
        baselines: whether to measure an untrained encoder and raw pixels, too.
        strategy: see `amdim_tf.distribution.choose_strategy`.
        xla: "on" or "off" for the compiler; "auto" for accelerators alone, since on a CPU it loses
            to oneDNN's convolutions.
        views_on: "host", beside the training steps, or "accelerator", before each of them.
        overwrite: whether to remove a run that is in `workdir`, and start anew.

    Returns:
        What result.json holds: accuracies, config, hardware, versions and time.

    Raises:
        InputError: input that a user can correct.
        Stopped: by SIGINT or SIGTERM, after a checkpoint was saved.
    """
    started = time.time()
    check_config(config)
    strategy = choose_strategy(strategy)
    me = worker(strategy)
    check_batch(config.batch_size, config.micro_batch, strategy)
    compiled = xla == "on" or (xla == "auto" and bool(tf.config.list_physical_devices("GPU")))
    data = datasets.load(config, data_dir)
    if config.objective == "supervised" and not data.class_names:
        raise InputError(
            f"The supervised objective needs classes. Received: {config.dataset} without any"
        )
    epoch_steps = pipeline.steps_per_epoch(data, config)
    last_step = config.steps or config.epochs * epoch_steps
    # The chief makes the directory, and the others then find it.
    if overwrite and me.chief:
        erase(workdir)
    run = RunDirectory(workdir, config) if me.chief else None
    check_agreement(strategy, f"{data.train.size} images, {fields(config)}")
    run = run or RunDirectory(workdir, config)
    if result := read_result(workdir):
        print(f"{workdir} holds this run, finished: nothing to do.\n\n{table(result)}")
        return result
    if me.chief:
        write_json(run.path / "classes.json", data.class_names)

    with strategy.scope():
        model = build(config, len(data.class_names), last_step, compiled)
        first_step = run.restore(model)
    test = data.test and pipeline.test_batches(data, data.test, config)
    measured = Measurements(run.path, config.log_every, test, epoch_steps, me.chief)
    callbacks = [
        measured,
        Checkpoints(me.chief and run, epoch_steps, config.checkpoint_minutes, measured),
        BadNumbers(config.bad_steps),
        BadImages(data.failures, run.path / "bad_images.txt" if me.chief else None),
    ]
    if me.chief:
        run.forget_metrics_after(first_step)
        run.record_start(first_step)
        print(plan(config, data, model, first_step, last_step, run.path))
        callbacks.insert(0, Progress(config.batch_size, first_step, last_step))
        if config.pictures_every and config.objective == "amdim":
            every = config.pictures_every * epoch_steps
            callbacks.append(Pictures(run.path / "pictures", every, config, data))

    to_views = pipeline.views_of(data, config)
    if views_on == "accelerator":
        model.to_views, to_views = to_views, lambda images, draws: (images, draws)

    def batches(context=None):
        return pipeline.train_batches(data, config, first_step, last_step, to_views, me)

    check_agreement(strategy, f"step {first_step}")
    if first_step < last_step:
        try:
            with stop_on_signals(model):
                model.fit(
                    batches() if me.alone else strategy.distribute_datasets_from_function(batches),
                    steps_per_epoch=last_step - first_step,
                    shuffle=False,
                    verbose=0,
                    callbacks=callbacks,
                )
        except Stopped:
            check_agreement(strategy, "stopped")  # not before the chief has saved
            raise
    if not me.chief:
        check_agreement(strategy, FINISHED)  # one that ended before would end the chief, too
        return read_result(workdir)

    beside = model.measure(test) if test else {}
    # From here on there is one device, and what the checkpoint holds.
    trained, _ = load_model(run.path)
    encoder = trained.encoder
    accuracy = measure(encoder, beside, config, data, baselines) if test else {}
    with replacing(run.path / "encoder.keras") as path:
        encoder.save(path)
    result = {
        "accuracy": accuracy,
        "steps": last_step,
        "seconds": round(time.time() - started, 1),
        "config": fields(config),
        "train_images": data.train.size,
        "test_images": data.test.size if data.test else 0,
        **environment(),
    }
    if not (run.path / "export" / "1").exists():
        export(trained, config, run.path / "export", 1, data.class_names, result)
    write_json(run.path / "result.json", result)
    print(f"\n{table(result)}\n\nWrote {run.path} in {result['seconds']:.0f} s.")
    check_agreement(strategy, FINISHED)
    return result


def build(config, classes, last_step, compiled=False):
    """The model of `config` with weights drawn from its seed, `compiled` by XLA or not."""
    keras.utils.set_random_seed(config.seed)
    model = build_model(config, classes)
    regions = compiled and replicas() > 1
    if config.objective == "amdim" and (config.micro_batch or regions):
        model.divide(regions, config.micro_batch)
    schedule = WarmupStepDecay(
        config.learning_rate,
        min(config.warmup_steps, last_step // 5),
        [round(part * last_step) for part in config.decays],
        config.decay_rate,
    )
    optimizer = AdamL2(schedule, config.l2)
    if config.precision == "mixed_float16":
        optimizer = guarded(optimizer, scale=2.0**15, growth_steps=2000)
    model.compile(optimizer=optimizer, jit_compile=compiled and not regions)
    model.optimizer.build(model.trainable_variables)
    return model


def measure(encoder, beside, config, data, baselines):
    """Accuracies {row: {"linear", "mlp", "knn"}} on the whole test set, see `ROWS`.

    `beside` is what evaluating the model gave, with the probes trained beside the encoder.
    """
    print("Measuring the encoder ...", flush=True)
    classes = len(data.class_names)
    test = pipeline.test_batches(data, data.test, config)
    images = datasets.Split(
        data.probe.examples.take(config.probe_images), min(config.probe_images, data.probe.size)
    )
    known = pipeline.test_batches(data, images, config)

    def frozen(encode, *encoder):
        features = [encode(*encoder, batches) for batches in (known, test)]
        return protocols.measure(*features, classes, config.seed)

    accuracy = {
        "beside": {name: beside[f"{name}_accuracy"] for name in protocols.NAMES},
        "frozen": frozen(protocols.encode, encoder),
    }
    if baselines:
        print("Measuring an untrained encoder and raw pixels ...", flush=True)
        untrained = build(config, classes, 1).encoder
        accuracy["untrained"] = frozen(protocols.encode, untrained)
        accuracy["raw_pixels"] = frozen(protocols.raw_pixels)
    return accuracy


def plan(config, data, model, first_step, last_step, path):
    """What a run is about to do, for people."""
    shape = "x".join(str(side or "?") for side in data.image_shape)
    devices = ", ".join(device.name for device in tf.config.list_logical_devices())
    encoder = model.encoder.count_params()
    start = f" from step {first_step}" if first_step else ""
    objective = f"tasks {config.tasks}" if config.objective == "amdim" else config.objective
    return "\n".join(
        [
            f"data      {config.dataset}: {data.train.size} training and "
            f"{data.test.size if data.test else 0} test images of {shape} pixels, "
            f"{len(data.class_names)} classes" + (f" ({data.note})" if data.note else ""),
            f"model     ndf {config.ndf}, nrkhs {config.nrkhs}, ndepth {config.ndepth} at "
            f"{config.image_size} pixels: {encoder:,} parameters in the encoder, "
            f"{model.count_params():,} in all",
            f"training  {last_step} steps of {config.batch_size} images{start}, "
            f"{objective}, seed {config.seed}",
            f"devices   {devices} ({hardware()})",
            f"writes    {path}",
        ]
    )


def table(result):
    """The accuracies of a result as a table."""
    config = result["config"]
    if not result["accuracy"]:
        return f"{config['dataset']} has no classes by which to measure the encoder."
    lines = [
        f"Accuracy on the {result['test_images']} test images of {config['dataset']}",
        f"{'':34}{'linear':>8}{'MLP':>8}{'kNN':>8}",
    ]
    for key, row in result["accuracy"].items():
        cells = (f"{row[name]:8.3f}" if name in row else f"{'-':>8}" for name in protocols.COLUMNS)
        lines.append(f"{protocols.ROWS[key]:34}" + "".join(cells))
    return "\n".join(lines)


def run_name(config):
    """The folder of a run, such as cifar10-small--multiscale-seed0."""
    dataset = config.dataset.replace("/", "_")
    return "-".join(filter(None, [dataset, config.size, config.variant, f"seed{config.seed}"]))


def main():
    config = command.configured("seed", "epochs", "steps")
    workdir = pathlib.Path(FLAGS.workdir or pathlib.Path("runs") / run_name(config))
    try:
        train(
            config,
            workdir,
            FLAGS.data_dir,
            strategy=FLAGS.strategy,
            xla=FLAGS.xla,
            views_on=FLAGS.views_on,
            overwrite=FLAGS.overwrite,
        )
    except KeyboardInterrupt:
        if any((workdir / "checkpoints").glob("[0-9]*")):
            print(f"\nA checkpoint is in {workdir}: the same command goes on from there.")
        raise


if __name__ == "__main__":
    command.define_training_flags()
    flags.DEFINE_string(
        "variant", "", f"what to change, of {', '.join(VARIANTS)}; several by commas"
    )
    flags.DEFINE_string("strategy", "auto", "devices: auto, none, mirrored, multiworker, cpu:N")
    flags.DEFINE_enum("xla", "auto", ["auto", "on", "off"], "compile the training step by XLA")
    flags.DEFINE_enum("views_on", "host", ["host", "accelerator"], "where views are made")
    flags.DEFINE_string("workdir", None, "run directory; a name in runs/ if none")
    flags.DEFINE_bool("overwrite", False, "remove the run in workdir and start anew")
    flags.DEFINE_integer("seed", None, "of weights, order of the data, views and locations")
    command.run(main, load_config)
