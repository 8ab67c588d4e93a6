"""Prints the CPU seconds of what a training does before its first step, on N logical devices.

    python benchmarks/tracing.py N --size=large

The model is that of `--dataset=imagenet2012`, with 2 black JPEGs for each device: the time that
more data takes is not in it.
"""

import argparse
import time

from amdim_tf.config import load_config
from amdim_tf.data import decoding, pipeline
from amdim_tf.data.data import Data
from amdim_tf.data.splits import in_memory
from amdim_tf.distribution import choose_strategy
import amdim_tf.runs.training  # noqa: F401  what a training imports
from amdim_tf.training.building import build, check_config
import numpy as np
import tensorflow as tf


def main():
    clock = {"imports": time.process_time()}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("devices", type=int)
    parser.add_argument("--size", default="tiny")
    arguments = parser.parse_args()
    devices = arguments.devices
    strategy = choose_strategy(f"cpu:{devices}" if devices > 1 else "none")
    config = load_config("imagenet2012", arguments.size)
    config.batch_size = 2 * devices
    check_config(config)
    clock["check"] = time.process_time()
    jpeg = tf.io.encode_jpeg(tf.zeros((375, 500, 3), "uint8")).numpy()
    split = in_memory([jpeg] * config.batch_size, [0] * config.batch_size)
    data = Data(split, None, None, ("black",), decoding.decode, (None, None))
    batch = next(iter(pipeline.train_batches(data, config, 0, 1)))
    batch = tf.data.Dataset.from_tensors(batch)
    clock["views"] = time.process_time()
    with strategy.scope():
        model = build(config, 1000, 1)
    clock["model"] = time.process_time()
    for step in ("first step", "second step"):
        model.fit(batch, shuffle=False, verbose=0)
        clock[step] = time.process_time()
    taken = np.diff(list(clock.values()), prepend=0)
    parts = (f"{name} {seconds:.1f} s" for name, seconds in zip(clock, taken, strict=True))
    print(f"{arguments.size} on {devices}: {', '.join(parts)}")


if __name__ == "__main__":
    main()
