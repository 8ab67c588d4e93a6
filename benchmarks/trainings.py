"""Compares the images a second of complete trainings with those of their step alone.

    python benchmarks/trainings.py --tfds=DIR --folder=DIR

A training is timed from the end of its first epoch to that of its last, with all that a run does in
between: views, measurements, checkpoints, metrics. Its step alone, on one batch, is timed before
and after it. The last column is without measurements: the median of steps_per_second in
metrics.jsonl. DIR are CIFAR-10 in the layout of TFDS, and images in train/<class>/ and
val/<class>/.
"""

import argparse
import contextlib
import pathlib
import statistics
import sys
import tempfile
import time

from amdim_tf.config import load_config
from amdim_tf.distribution import choose_strategy
from amdim_tf.files import read_json_lines
from amdim_tf.runs.training import train
from amdim_tf.speed.step import steps
from amdim_tf.speed.timing import quartiles
from amdim_tf.training.building import check_config
import keras

RUNS = 15
# By name: the data set, the flag with its folder, and the epochs to train for.
TRAININGS = {
    "the default": ("photo_patches", None, 10),
    "`--dataset=cifar10`": ("cifar10", "tfds", 2),
    "`--dataset=image_folder`": ("image_folder", "folder", 40),
}


class Epochs(keras.callbacks.Callback):
    """Notes when epochs end."""

    def __init__(self):
        super().__init__()
        self.ends = []

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(time.perf_counter())


def alone(config):
    """Seconds of a training step on one batch, the median."""
    check_config(config)
    _, step, _ = steps(config, False, choose_strategy("none"))
    ((_, median, _),) = quartiles([step], RUNS)
    return median


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tfds", required=True)
    parser.add_argument("--folder", required=True)
    folders = vars(parser.parse_args())
    print("| training | images/s | of its step alone | without measurements |\n|---|---|---|---|")
    for name, (dataset, folder, epochs) in TRAININGS.items():
        config, clock = load_config(dataset, "tiny"), Epochs()
        config.steps, config.epochs = 0, epochs
        before = alone(config)
        with tempfile.TemporaryDirectory() as run, contextlib.redirect_stdout(sys.stderr):
            result = train(config, run, folders.get(folder), baselines=False, callbacks=[clock])
            lines = read_json_lines(pathlib.Path(run) / "metrics.jsonl")
        seconds = (before + alone(config)) / 2
        taken = (clock.ends[-1] - clock.ends[0]) / (result["steps"] * (1 - 1 / epochs))
        rate = statistics.median(x["steps_per_second"] for x in lines if "steps_per_second" in x)
        of_step = f"{seconds / taken:.2f} | {seconds * rate:.2f}"
        print(f"| {name} | {config.batch_size / taken:.0f} | {of_step} |", flush=True)


main()
