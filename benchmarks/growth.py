"""Draws how time and memory of a training step grow: with batch, widths, depth, size, replicas.

    python benchmarks/growth.py FILE.png

One value at a time is varied from those of `tiny`: ndf 32, nrkhs 256, ndepth 2, 64 pairs of views
of 32 pixels. Each point is two processes, one for time and one for memory. Time is that of all
cores together, which other processes on the machine change little. The exponents are those of
powers of the value, fitted to all points. A single point is measured again by
`--point ndepth 8 seconds`, or `bytes`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

RUNS = 7
KNOBS = {
    "batch_size": (16, 32, 64, 128, 256),
    "ndf": (16, 32, 64, 128),
    "ndepth": (1, 2, 4, 8),
    "image_size": (32, 64, 128),
    "mixture_components": (1, 4, 16, 64),
    "replicas": (1, 2, 4),
}


def point(knob, value, unit):
    """Prints what a step takes, in seconds or bytes, and its floating-point operations, as JSON."""
    from amdim_tf.config import load_config
    from amdim_tf.distribution import choose_strategy
    from amdim_tf.speed.step import step_flops, steps
    from amdim_tf.speed.timing import peak_bytes, quartiles
    from amdim_tf.training.building import check_config

    strategy = choose_strategy(f"cpu:{value}" if knob == "replicas" and value > 1 else "none")
    config = load_config("photo_patches")
    if knob != "replicas":
        config[knob] = value
    config.nrkhs = max(8 * config.ndf, config.nrkhs)
    check_config(config)
    model, step, _ = steps(config, False, strategy)
    if unit == "bytes":
        # Peaks differ by a fifth, with the order in which TensorFlow runs what may run at once.
        taken = statistics.median(peak_bytes(step) for _ in range(RUNS))
    else:
        ((_, taken, _),) = quartiles([step], RUNS, time.process_time)
    print(json.dumps([taken, step_flops(model, config.batch_size)]))


def in_process(knob, value, unit):
    """What `point` prints."""
    # The system's allocator returns what is free; oneDNN's, which trainings have, is faster.
    done = subprocess.run(
        [sys.executable, __file__, "--point", knob, str(value), unit],
        env=os.environ | {"TF_ONEDNN_USE_SYSTEM_ALLOCATOR": str(int(unit == "bytes"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


def main(picture):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator
    import numpy as np

    figure, axes = plt.subplots(2, 3, figsize=(10, 5.4), layout="constrained")
    print("| | exponent of time | of memory | of arithmetic |\n|---|---|---|---|")
    for ax, (knob, values) in zip(axes.flat, KNOBS.items(), strict=True):
        found = []
        for value in values:
            seconds, flops = in_process(knob, value, "seconds")
            found.append([seconds, in_process(knob, value, "bytes")[0], flops])
        points = np.array(found)
        for row, name in zip((points / points[0]).T, ("time", "memory", "arithmetic"), strict=True):
            ax.plot(values, row, "--" if name == "arithmetic" else ".-", label=name)
        slopes, _ = np.polyfit(np.log(values), np.log(points), 1)
        cells = " | ".join(f"{x:.2f}" for x in slopes.round(2) + 0)  # not -0.00
        print(f"| `{knob}`, {values[0]} to {values[-1]} | {cells} |")
        print(f"<!-- {values}: {points.tolist()} -->", flush=True)
        ax.set(xscale="log", yscale="log", title=knob.replace("_", " "), xticks=values)
        ax.set_xticks(values, map(str, values))
        ax.yaxis.set(major_locator=LogLocator(subs=(1, 1.5, 2, 3, 5, 7)), major_formatter="{x:g}")
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=9)
    axes.flat[0].set_ylabel("times the first")
    figure.savefig(picture, dpi=90)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
given = parser.add_mutually_exclusive_group(required=True)
given.add_argument("picture", nargs="?", type=argparse.FileType("wb"))
given.add_argument("--point", nargs=3, metavar=("KNOB", "VALUE", "UNIT"))
arguments = parser.parse_args()
if arguments.point:
    knob, value, unit = arguments.point
    point(knob, int(value), unit)
else:
    main(arguments.picture)
