"""Draws docs/curves.png: trainings that learn fast and slowly, and one that collapses.

    python docs/curves.py NAME=RUN ...

docs/training.md says which runs they are.
"""

import argparse
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from amdim_tf.files import read_json_lines  # noqa: E402

PANELS = {
    "loss": "loss",
    "bound_1-5": "bound of the task 1-5, nats",
    "f1_std": "deviation of f1",
    "f1_uniformity": "uniformity of f1",
    "f1_effective_rank": "effective rank of f1",
    "test_knn_accuracy": "kNN accuracy",
}


def named(text):
    name, run = text.split("=", 1)
    return name, run


def main(runs):
    figure, axes = plt.subplots(2, len(PANELS) // 2, figsize=(10, 5.4), layout="constrained")
    for name, run in runs:
        lines = read_json_lines(pathlib.Path(run) / "metrics.jsonl")
        for ax, (metric, title) in zip(axes.flat, PANELS.items(), strict=True):
            points = [(line["step"], line[metric]) for line in lines if metric in line]
            ax.plot(*zip(*points, strict=True), ".-", markersize=4, label=name)
            ax.set(title=title, xlabel="update")
            ax.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=9)
    figure.savefig(pathlib.Path(__file__).with_name("curves.png"), dpi=90)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("run", nargs="+", type=named, metavar="NAME=RUN")
main(parser.parse_args().run)
