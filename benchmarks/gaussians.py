"""Draws docs/bounds.png: what each bound finds between Gaussians of known mutual information.

    python benchmarks/gaussians.py FILE.png

Pairs of Gaussian vectors of 20 dimensions, correlated dimension by dimension; 20,000 pairs, 2000
updates of the critic, three seeds. Three quarters of an hour of one core.
"""

import argparse

import matplotlib

matplotlib.use("Agg")
from amdim_tf.evaluation.information import estimate  # noqa: E402
from amdim_tf.objectives.bounds import BOUNDS  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

CORRELATIONS = np.arange(1, 10) / 10
DIMENSIONS, PAIRS, UPDATES, SEEDS = 20, 20000, 2000, (0, 1, 2)


def pairs(correlation, seed):
    x, noise = np.random.default_rng(seed).normal(size=(2, PAIRS, DIMENSIONS))
    return x, correlation * x + (1 - correlation**2) ** 0.5 * noise


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=argparse.FileType("wb"))
    picture = parser.parse_args().picture
    known = -DIMENSIONS / 2 * np.log(1 - CORRELATIONS**2)
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    ax.plot(known, known, "k--", label="known")
    print(
        "| correlation | known | "
        + " | ".join(BOUNDS)
        + " |\n"
        + "| --- " * (2 + len(BOUNDS))
        + "|"
    )
    found = {name: [] for name in BOUNDS}
    for correlation, nats in zip(CORRELATIONS, known, strict=True):
        for name, values in found.items():
            seeds = [estimate(*pairs(correlation, s), name, UPDATES, s) for s in SEEDS]
            values.append([each.nats for each in seeds])
        cells = [f"{np.mean(x[-1]):.2f} +- {np.std(x[-1], ddof=1):.2f}" for x in found.values()]
        print(f"| {correlation} | {nats:.2f} | " + " | ".join(cells) + " |", flush=True)
    for name, values in found.items():
        ax.errorbar(known, np.mean(values, 1), np.std(values, 1, ddof=1), label=name, capsize=2)
    ax.axhline(seeds[0].most, color="gray", linewidth=0.8)
    ax.annotate("log of the batch", (0, seeds[0].most), textcoords="offset points", xytext=(0, 3))
    ax.set(xlabel="known mutual information, nats", ylabel="bound, nats")
    ax.grid(alpha=0.3)
    ax.legend()
    figure.savefig(picture, dpi=90)


main()
