"""Checks what an authors' checkpoint must hold: dictionaries, sizes, steps and weights.

The checks come before a model is built: a size that its weights do not have could be larger than
any memory.
"""

import pathlib
import re
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from amdim_tf.encoders.amdim import IMAGE_SIZES
from amdim_tf.errors import InputError

CONTENT = ("model", "hyperparams", "cursor")
SIZES = ("encoder_size", "ndf", "n_rkhs", "n_depth", "use_bn", "tclip", "n_classes")
CURSOR = ("info_epoch", "info_step", "classifier_epoch", "classifier_step")
# For some sizes, the weights that have this size as their first side.
SIDES = {
    "ndf": "encoder.module.layer_list.0.conv.weight",
    "n_rkhs": "encoder.module.rkhs_block_5.conv1.weight",
    "n_classes": "evaluator.block_glb_lin.block_forward.2.weight",
}
RESIDUAL_LAYER = re.compile(r"encoder\.module\.layer_list\.\d+\.layer_list\.(\d+)\.")
LARGEST = float(np.finfo("float32").max)
# Steps are int32 where locations are drawn.
STEPS = 2**31
# `DataParallel` puts this before the names of all weights.
PARALLEL = "module."


def unpack(content: Any, path: str | pathlib.Path) -> tuple[dict, dict, int]:
    """Weights, sizes and training step in the `content` of the checkpoint `path`.

    Raises:
        InputError: it is no checkpoint of AMDIM, or has sizes or steps that no run has.
    """
    content = _dictionary(content, CONTENT, "A checkpoint of AMDIM", path)
    sizes = _dictionary(content["hyperparams"], SIZES, "hyperparams", path)
    cursor = _dictionary(content["cursor"], ("info_step",), "cursor", path)
    state = _tensors(content["model"], path)
    # Without classes there are no classifiers.
    given = [name for size, name in SIDES.items() if not _is_int(sizes[size], (0,))]
    lacking = [name for name in given if name not in state]
    _check_names(lacking, [], path)

    clip, numbers = sizes["tclip"], sizes | cursor
    depth = len({found[1] for found in map(RESIDUAL_LAYER.match, state) if found})
    rules = {
        "encoder_size": (_is_int(sizes["encoder_size"], IMAGE_SIZES), "32, 64 or 128"),
        "use_bn": (type(sizes["use_bn"]) is bool, "True or False"),
        "tclip": (type(clip) in (int, float) and 0 <= clip <= LARGEST, "finite and at least 0"),
        "n_depth": (_is_int(sizes["n_depth"], (depth,)), f"{depth}, the layers in its blocks"),
    }
    for size, name in SIDES.items():
        side = (*state[name].shape, 0)[0] if name in state else 0
        rules[size] = _is_int(sizes[size], (side,)), f"{side}, the first side of {name}"
    for name in CURSOR:
        if name in cursor:
            rules[name] = (
                _is_int(cursor[name], range(STEPS)),
                f"a whole number from 0 to {STEPS - 1}",
            )
    for name, (valid, rule) in rules.items():
        if not valid:
            raise InputError(
                f"{name} of a checkpoint must be {rule}. Received: {_described(numbers[name])} in "
                f"{path}"
            )
    return state, sizes, cursor["info_step"]


def unused(content: Mapping[str, Any]) -> list[str]:
    """Names in the `content` of a checkpoint that no checkpoint of the authors has."""
    known = {"hyperparams": SIZES, "cursor": CURSOR}
    return [str(name) for name in content if name not in CONTENT] + [
        f"{group}.{name}" for group in known for name in content[group] if name not in known[group]
    ]


def check_weights(
    state: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    needed: Mapping[str, Any],
    path: str | pathlib.Path,
) -> None:
    """Checks names, shapes, types and values of the weights `state` of the checkpoint `path`.

    Args:
        shapes: {name: shape} of all weights that the authors have at these sizes.
        needed: the names of the weights that our models have, too.

    Raises:
        InputError: for the first weight that is not valid.
    """
    lacking = [name for name in needed if name not in state]
    _check_names(lacking, [name for name in state if name not in shapes], path)
    for name, array in state.items():
        if array.shape != shapes[name]:
            raise InputError(
                f"checkpoint must have weights of its sizes, and {name} of shape {shapes[name]}. "
                f"Received: {array.shape} in {path}"
            )
        if name in needed and array.dtype.kind != "f":
            raise InputError(
                f"{name} of a checkpoint must be of a floating-point type. Received: {array.dtype} "
                f"in {path}"
            )
    check_values(state, path)


def check_values(state: Mapping[str, np.ndarray], path: str | pathlib.Path) -> None:
    """Checks the values of the weights `state`, {name: array}, of the file or folder `path`.

    Raises:
        InputError: for the first weight that is not finite in float32, or negative where it must
            not be.
    """
    for name, array in state.items():
        with np.errstate(over="ignore"):
            finite = np.isfinite(array.astype("float32", copy=False))
        if not finite.all():
            raise InputError(
                f"{name} must be finite in float32. Received: {np.sum(~finite)} of "
                f"{finite.size} numbers that are not, such as {array[~finite][0]}, in {path}"
            )
        if name.endswith(("running_var", "num_batches_tracked")) and array.min() < 0:
            raise InputError(f"{name} must not be negative. Received: {array.min()} in {path}")


def _dictionary(content, names, what, path):
    """Returns `content` if it is a dictionary with `names`."""
    if not isinstance(content, dict) or not content.keys() >= {*names}:
        raise InputError(
            f"{what} must be a dictionary with {', '.join(names)}. Received: "
            f"{_described(content)} in {path}"
        )
    return content


def _tensors(state, path):
    """Returns `state` if it is a dictionary of tensors, without the prefix of DataParallel."""
    wrong = [_described(state)]
    if isinstance(state, dict):
        wrong = [
            f"{_described(value)} as {_described(name)}"
            for name, value in state.items()
            if not isinstance(name, str) or not isinstance(value, np.ndarray)
        ]
    if wrong:
        raise InputError(
            "model of a checkpoint must be a dictionary of tensors by name. Received: "
            f"{wrong[0]} in {path}"
        )
    while state and all(name.startswith(PARALLEL) for name in state):
        state = {name.removeprefix(PARALLEL): value for name, value in state.items()}
    return state


def _check_names(lacking, unknown, path):
    if lacking or unknown:
        raise InputError(
            "model of a checkpoint must have all weights of AMDIM at its sizes and no others. "
            f"Received: {_some(lacking)} lacking and {_some(unknown)} unknown in {path}"
        )


def _some(names):
    return f"{len(names)} ({names[0]}{', ...' * (len(names) > 1)})" if names else "none"


def _is_int(value, choices):
    """Whether `value` is an int among `choices`; True and 32.0 are none, but equal some."""
    return type(value) is int and value in choices


def _described(value):
    """`value` in a few words."""
    if isinstance(value, np.ndarray):
        return f"a tensor of shape {value.shape}"
    if isinstance(value, dict):
        return f"a dictionary with {reprlib.repr(list(value))}"
    if isinstance(value, int) and abs(value) > 2**64:  # Python refuses to print the largest
        return "a whole number of more than 64 bits"
    return f"a list of {len(value)}" if isinstance(value, list) else reprlib.repr(value)
