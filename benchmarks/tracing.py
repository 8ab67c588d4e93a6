"""Prints the CPU seconds to the first and the second training step, on N logical devices.

    python benchmarks/tracing.py N --size=large

The model is that of `--dataset=imagenet2012`, with 2 black images for each device: the time that
data takes is not in it.
"""

import argparse
import time

from amdim_tf.config import load_config
from amdim_tf.distribution import choose_strategy
from amdim_tf.training.building import build
import numpy as np
import tensorflow as tf


def main():
    imported = time.process_time()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("devices", type=int)
    parser.add_argument("--size", default="tiny")
    arguments = parser.parse_args()
    devices = arguments.devices
    strategy = choose_strategy(f"cpu:{devices}" if devices > 1 else "none")
    config = load_config("imagenet2012", arguments.size)
    views = np.zeros((2, 2 * devices, 128, 128, 3), "float32")
    labels = np.zeros(2 * devices, int)
    batch = tf.data.Dataset.from_tensors(((views[0], views[1]), labels))
    started = time.process_time()
    with strategy.scope():
        model = build(config, 1000, 1)
    built = time.process_time()
    model.fit(batch, shuffle=False, verbose=0)
    traced = time.process_time()
    model.fit(batch, shuffle=False, verbose=0)
    print(
        f"{arguments.size} on {devices}: imported {imported:.1f} s, built {built - started:.1f} s, "
        f"first step {traced - built:.1f} s, second step {time.process_time() - traced:.1f} s"
    )


if __name__ == "__main__":
    main()
