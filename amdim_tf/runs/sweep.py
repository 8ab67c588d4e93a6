"""Variants of a run and their baseline, over several seeds (Table 3)."""

import copy
import pathlib
from collections.abc import Mapping, Sequence

import keras
import numpy as np
from scipy import stats

from amdim_tf import command
from amdim_tf.config import apply_variant, config_module
from amdim_tf.data import sources
from amdim_tf.data.pipeline import steps_per_epoch
from amdim_tf.errors import InputError
from amdim_tf.evaluation.rows import COLUMNS
from amdim_tf.objectives.objective import find_objective
from amdim_tf.runs.training import run_name, train
from amdim_tf.training.building import check_config
from amdim_tf.typing import Config
from amdim_tf.variants import METHODS

BASELINE = "baseline"


def sweep(
    config: Config,
    variants: Sequence[str],
    seeds: Sequence[int],
    folder: pathlib.Path,
    data_dir: str | pathlib.Path | None = None,
    equal_images: bool = False,
) -> dict[str, np.ndarray]:
    """Trains the baseline and each of `variants` with each of `seeds`; finished runs are kept.

    Args:
        config: the config of the baseline, which may be a variant itself.
        variants: see `amdim_tf.config.load_config`.
        seeds: the seeds of the runs, all different.
        folder: the folder of the run directories.
        data_dir: the folder of the data, see `sources.load`.
        equal_images: whether variants see as many images as the baseline, each view and each
            rotated copy counted, instead of making as many updates.

    Returns:
        {variant: accuracies (seeds,3)} of linear, MLP and kNN on the frozen encoder, with the
        baseline as "baseline".

    Raises:
        InputError: input that a user can correct.
    """
    # All checks first: what cannot be trained should not be found after hours of training.
    if len(set(seeds)) < len(seeds):  # intervals would take one run for several
        received = ",".join(map(str, seeds))
        raise InputError(f"seeds must differ from each other. Received: {received}")
    data = sources.load(config, data_dir)
    if not data.class_names:
        raise InputError(
            "A sweep compares accuracies, so its images need classes. "
            f"Received: {config.dataset} without any"
        )
    configs = {name: apply_variant(copy.deepcopy(config), name) for name in ("", *variants)}
    for name, varied in configs.items():
        varied.variant = ",".join(filter(None, [config.variant, name]))
        check_config(varied)
        if equal_images:
            updates = config.steps or config.epochs * steps_per_epoch(data, config)
            varied.steps = max(1, round(updates * _images(config) / _images(varied)))
    accuracies = {}
    for variant, varied in configs.items():
        rows = []
        for seed in seeds:
            varied.seed = seed
            keras.backend.clear_session()
            result = train(varied, folder / run_name(varied), data_dir, baselines=False)
            if "frozen" not in result["accuracy"]:
                raise InputError(
                    "A sweep compares the frozen encoders. Received: a run that could not be "
                    f"measured, {folder / run_name(varied)}: {result['missing']['frozen']}"
                )
            rows.append([result["accuracy"]["frozen"][name] for name in COLUMNS])
        accuracies[variant or BASELINE] = np.array(rows)
    return accuracies


def _images(config):
    """How many images the encoder gets for each image of the batch."""
    objective = find_objective(config.objective).of(config)
    return objective.views * objective.copies


def sweep_table(accuracies: Mapping[str, np.ndarray], table_1: bool = False) -> str:
    """Markdown: mean accuracies, and differences to the baseline with 95 % intervals.

    Intervals are Student's t of the differences seed by seed: runs of a seed start from the same
    weights, which decide more than most variants do. A star marks those that leave out zero.

    Args:
        accuracies: see `sweep`.
        table_1: whether to add the paper's figures for ImageNet.
    """
    count = len(accuracies[BASELINE])
    header = [f"{name}, %" for name in COLUMNS] + [f"{name} - baseline" for name in COLUMNS]
    lines = [["variant", *header, *["linear on ImageNet, Table 1, %"] * table_1]]
    for variant, values in accuracies.items():
        means = [f"{value:.1f}" for value in 100 * values.mean(0)]
        differences = [""] * len(COLUMNS)
        if variant != BASELINE:
            change = 100 * (values.mean(0) - accuracies[BASELINE].mean(0))
            differences = [f"{value:+.1f}" for value in change]
            if count > 1:
                test = stats.ttest_1samp(values - accuracies[BASELINE], 0)
                low, high = 100 * np.array(test.confidence_interval())
                differences = [
                    f"{text} ({a:+.1f} to {b:+.1f}){'*' * bool(a > 0 or b < 0)}"
                    for text, a, b in zip(differences, low, high, strict=True)
                ]
        lines.append([variant, *means, *differences, *[_of_table_1(variant)] * table_1])
    return command.markdown(lines)


def _of_table_1(variant):
    """The paper's accuracies for a variant: one, several of other sizes, or none."""
    variant = "+strong_aug" if variant == BASELINE else variant  # as AMDIM is in that table
    variant = METHODS.get(variant, {}).get("objective", variant)  # for any number of patches
    rows = config_module("imagenet2012").PAPER.items()
    found = [row for (table, _), row in rows if table == 1 and row.get("variant") == variant]
    return ", ".join(f"{row['linear']:.1f}" for row in found)
