"""The evaluations of many runs as one table, with the paper's figures."""

import collections
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from amdim_tf import command
from amdim_tf.config import config_module, fields, load_config
from amdim_tf.errors import InputError
from amdim_tf.evaluation.protocols import NEIGHBOURS
from amdim_tf.files import local

HEADER = (
    "encoder",
    "measured on",
    "protocol",
    "accuracy, %",
    "paper, %",
    "other than its config",
)
# Fields that do not make a run another experiment.
INCIDENTAL = ("seed", "log_every", "probe_images")


def results_table(folder: str | pathlib.Path) -> str:
    """A Markdown table of the evaluations in the runs under `folder`, next to the paper's figures.

    Runs that differ only in their seed share a row, with their mean and its 95 % interval by
    Student's t. The row of a single run has the interval by bootstrap over test images.

    Raises:
        InputError: the folder holds no evaluations.
    """
    rows = collections.defaultdict(list)
    for path in sorted(local(folder, "folder").glob("**/evaluation/*.json")):
        result = json.loads(path.read_text())
        rows[_row(result)].append(result)
    if not rows:
        raise InputError(
            "folder must hold run directories that amdim_tf.evaluate has measured. "
            f"Received: folder={folder}"
        )
    lines: list[Sequence[str]] = [HEADER]
    for (encoder, data, protocol, paper, differences), results in sorted(rows.items()):
        lines.append([encoder, data, protocol, _accuracy(results), paper, differences])
    return command.markdown(lines)


def title(result: dict[str, Any]) -> str:
    """A result in one line."""
    accuracy = result["accuracy"]
    low, high = accuracy["interval"]
    names = {"top1": "top-1", "top5": "top-5", "mean_iou": "mean IoU", "pixels": "pixels"}
    first, second = (name for name in names if name in accuracy)
    votes = ""
    if weighted := accuracy.get("weighted"):
        by = f"{accuracy['neighbours']} votes by {accuracy['feature']}"
        votes = f"; weighted {weighted['top1']:.3f}; {by}"
    return (
        f"{result['config']['dataset']}, {result['protocol']}{' (fast)' * result['fast']}: "
        f"{names[first]} {accuracy[first]:.3f} ({low:.3f} to {high:.3f}), "
        f"{names[second]} {accuracy[second]:.3f}{votes}"
    )


def _row(result):
    """What a row of the table says about `result`, except its accuracy."""
    config, encoder = result["config"], result["encoder"]["config"]
    trained = encoder["dataset"], encoder["size"], encoder["variant"]
    module = config_module(config["dataset"])
    intended = fields(load_config(*trained))
    paper = _paper(module, encoder, intended["epochs"])
    intended["epochs"] = paper.get("epochs", intended["epochs"])
    differences = [
        f"{name} {encoder[name]}"
        for name in encoder
        if encoder[name] != intended.get(name) and name not in INCIDENTAL
    ]
    images = getattr(config_module(trained[0]), "IMAGES", {}).get("train")
    seen = result["encoder"]["train_images"]
    if seen is None:
        differences.append(f"unfinished after {result['encoder']['steps']} steps")
    elif images and seen != images:
        differences.append(f"{seen} training images of {images}")
    if result["fast"]:
        differences.append("classifiers on features without augmentation")
    if result.get("features", "f1") != "f1":
        differences.append("all mixture features")
    if (count := result["accuracy"].get("neighbours", NEIGHBOURS)) != NEIGHBOURS:
        differences.append(f"{count} neighbours")
    if result["label_fraction"] < 1:
        differences.append(f"{result['labelled_images']} labels")
    figure = paper.get(result["protocol"])
    return (
        " ".join(filter(None, trained)),
        config["dataset"],
        result["protocol"],
        "" if figure is None else f"{figure:.1f}",
        "; ".join(differences),
    )


def _paper(module, encoder, epochs):
    """The paper's row in a config's `module` for an encoder: of two, that of the same epochs.

    The methods that the paper compares with are known by their variant alone.
    """
    size, variant = encoder["size"], encoder["variant"]
    rows = [
        row
        for row in getattr(module, "PAPER", {}).values()
        if row.get("variant", "") == variant and row.get("size", variant and size) == size
    ]
    rows.sort(key=lambda row: row.get("epochs", epochs) != encoder["epochs"])
    return rows[0] if rows else {}


def _accuracy(results):
    found = [result["accuracy"] for result in results]
    values = [100 * each.get("top1", each.get("mean_iou")) for each in found]
    if len(values) == 1:
        low, high = (100 * limit for limit in results[0]["accuracy"]["interval"])
        return f"{values[0]:.1f} ({low:.1f} to {high:.1f})"
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    return f"{np.mean(values):.1f} ({low:.1f} to {high:.1f}; {len(values)} seeds)"
