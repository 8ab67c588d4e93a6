"""The command `python -m amdim_tf.train`: from a data set to a measured and exported encoder."""

import os
import pathlib
import platform
import sys
import time

import keras
import tensorflow as tf
from absl import flags, logging

from amdim_tf import command, datasets, pipeline, protocols
from amdim_tf.callbacks import Checkpoints, Measurements, Progress
from amdim_tf.config import check_config, fields
from amdim_tf.encoder import Encoder
from amdim_tf.export import export_encoder
from amdim_tf.model import AMDIM
from amdim_tf.optimizer import AdamL2, WarmupStepDecay
from amdim_tf.run_directory import RunDirectory, write_json

FLAGS = flags.FLAGS
INTERRUPTED = 130


def train(config, workdir, data_dir=None):
    """Trains, measures and exports an encoder, or goes on where an earlier run of it stopped.

    Args:
        config: a config, see `amdim_tf.config`.
        workdir: the run directory, see `amdim_tf.run_directory`.
        data_dir: where TFDS keeps prepared data.

    Returns:
        What result.json holds: accuracies, config, hardware, versions and time.

    Raises:
        InputError: input that a user can correct.
        KeyboardInterrupt: after a checkpoint was saved.
    """
    started = time.time()
    check_config(config)
    data = datasets.load(config, data_dir)
    epoch_steps = pipeline.steps_per_epoch(data, config)
    last_step = config.steps or config.epochs * epoch_steps
    run = RunDirectory(workdir, config)
    if result := run.result():
        print(f"{workdir} holds this run, finished: nothing to do.\n\n{table(result)}")
        return result

    model = build(config, len(data.class_names), last_step)
    checkpoints = run.checkpoints(model)
    checkpoints.restore_or_initialize()
    first_step = int(model.optimizer.iterations)
    run.forget_metrics_after(first_step)
    print(plan(config, data, model, first_step, last_step, run.path))

    test = pipeline.test_batches(data.test, config)
    if first_step < last_step:
        try:
            model.fit(
                pipeline.train_batches(data, config, first_step, last_step),
                shuffle=False,
                verbose=0,
                callbacks=[
                    Progress(config.batch_size, first_step, last_step),
                    Measurements(run.path, config.log_every, test, epoch_steps),
                    Checkpoints(checkpoints, epoch_steps),
                ],
            )
        except KeyboardInterrupt:
            checkpoints.save(int(model.optimizer.iterations))
            raise

    print("Measuring the encoder, an untrained one and raw pixels ...", flush=True)
    accuracy = measure(model, config, data, test)
    model.encoder.save(run.path / ".unfinished.keras")
    os.replace(run.path / ".unfinished.keras", run.path / "encoder.keras")
    if not (run.path / "export" / "1").exists():
        export_encoder(model.encoder, config.mean, config.std, run.path / "export" / "1")
    result = {
        "accuracy": accuracy,
        "steps": last_step,
        "seconds": round(time.time() - started, 1),
        "config": fields(config),
        "train_images": data.train_size,
        "test_images": data.test_size,
        "hardware": hardware(),
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "command": sys.argv,
    }
    write_json(run.result_path, result)
    print(f"\n{table(result)}\n\nWrote {run.path} in {result['seconds']:.0f} s.")
    return result


def build(config, classes, last_step):
    """The model of `config`, compiled, with weights drawn from its seed."""
    keras.utils.set_random_seed(config.seed)
    encoder = Encoder(
        config.image_size, config.ndf, config.nrkhs, config.ndepth, config.use_bn, name="encoder"
    )
    model = AMDIM(encoder, classes, config.tasks, config.clip, config.regulariser, config.seed)
    schedule = WarmupStepDecay(
        config.learning_rate,
        min(config.warmup_steps, last_step // 5),
        [round(part * last_step) for part in config.decays],
        config.decay_rate,
    )
    # XLA pays on an accelerator; on a CPU it loses to oneDNN's convolutions.
    accelerated = bool(tf.config.list_physical_devices("GPU"))
    model.compile(optimizer=AdamL2(schedule, config.l2), jit_compile=accelerated)
    model.optimizer.build(model.trainable_variables)
    return model


def measure(model, config, data, test):
    """Accuracies {row: {"linear", "mlp", "knn"}} on the whole test set."""
    classes = len(data.class_names)
    images = data.train.take(config.probe_images)
    known = pipeline.test_batches(images, config)
    online = model.evaluate(test, return_dict=True, verbose=0)
    accuracy = {
        "beside": {name: online[f"{name}_accuracy"] for name in protocols.NAMES},
    }
    untrained = build(config, classes, 1).encoder
    for name, encoder in (("amdim", model.encoder), ("untrained", untrained)):
        features = [protocols.encode(encoder, batches) for batches in (known, test)]
        accuracy[name] = protocols.measure(*features, classes, config.seed)
    pixels = [protocols.raw_pixels(batches) for batches in (known, test)]
    accuracy["raw_pixels"] = protocols.measure(*pixels, classes, config.seed)
    return accuracy


def plan(config, data, model, first_step, last_step, path):
    """What a run is about to do, for people."""
    shape = "x".join(str(side or "?") for side in data.image_shape)
    devices = ", ".join(device.name for device in tf.config.list_logical_devices())
    encoder = model.encoder.count_params()
    start = f" from step {first_step}" if first_step else ""
    return "\n".join(
        [
            f"data      {config.dataset}: {data.train_size} training and {data.test_size} test "
            f"images of {shape} pixels, {len(data.class_names)} classes"
            + (f" ({data.note})" if data.note else ""),
            f"model     ndf {config.ndf}, nrkhs {config.nrkhs}, ndepth {config.ndepth} at "
            f"{config.image_size} pixels: {encoder:,} parameters in the encoder, "
            f"{model.count_params():,} in all",
            f"training  {last_step} steps of {config.batch_size} images{start}, "
            f"tasks {config.tasks}, seed {config.seed}",
            f"devices   {devices} ({hardware()})",
            f"writes    {path}",
        ]
    )


ROWS = {
    "beside": "AMDIM, probes trained beside it",
    "amdim": "AMDIM, frozen",
    "untrained": "untrained encoder, frozen",
    "raw_pixels": "raw pixels",
}


def table(result):
    """The accuracies of a result as a table."""
    config = result["config"]
    lines = [
        f"Accuracy on the {result['test_images']} test images of {config['dataset']}",
        f"{'':34}{'linear':>8}{'MLP':>8}{'kNN':>8}",
    ]
    for key, title in ROWS.items():
        row = result["accuracy"][key]
        cells = (
            f"{row[name]:8.3f}" if name in row else f"{'-':>8}" for name in ("linear", "mlp", "knn")
        )
        lines.append(f"{title:34}" + "".join(cells))
    return "\n".join(lines)


def hardware():
    """The processor's name, number of cores and accelerators."""
    try:
        names = pathlib.Path("/proc/cpuinfo").read_text().split("model name\t: ")
        processor = names[1].splitlines()[0]
    except (OSError, IndexError):
        processor = platform.processor() or platform.machine()
    accelerators = [
        tf.config.experimental.get_device_details(device).get("device_name", device.name)
        for device in tf.config.list_physical_devices("GPU")
    ]
    return ", ".join([f"{os.cpu_count()} cores of {processor}", *accelerators])


def main():
    logging.set_verbosity(logging.ERROR)
    config = FLAGS.config
    for name in ("seed", "epochs", "steps"):
        if FLAGS[name].present:
            config[name] = FLAGS[name].value
    workdir = FLAGS.workdir or f"runs/{config.dataset}-{FLAGS.size}-seed{config.seed}"
    try:
        train(config, workdir, FLAGS.data_dir)
    except KeyboardInterrupt:
        print(f"\nInterrupted; a checkpoint is in {workdir}, the same command goes on from there.")
        return INTERRUPTED


if __name__ == "__main__":
    command.define_data_flags()
    flags.DEFINE_string("workdir", None, "run directory; runs/<dataset>-<size>-seed<seed> if none")
    flags.DEFINE_integer("seed", None, "of weights, order of the data, views and locations")
    flags.DEFINE_integer("epochs", None, "passes over the training images")
    flags.DEFINE_integer("steps", None, "updates; takes precedence over epochs")
    command.run(main)
