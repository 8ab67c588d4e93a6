"""What a checkpoint of the authors must hold: dictionaries, sizes, steps and weights.

All is checked against itself before a model is built: a size that its weights do not have could be
larger than any memory.
"""

import re
import reprlib

import numpy as np

from amdim_tf.encoders.amdim import IMAGE_SIZES
from amdim_tf.errors import InputError

CONTENT = ("model", "hyperparams", "cursor")
SIZES = ("encoder_size", "ndf", "n_rkhs", "n_depth", "use_bn", "tclip", "n_classes")
CURSOR = ("info_epoch", "info_step", "classifier_epoch", "classifier_step")
# Weights whose first side is a size.
SIDES = {
    "ndf": "encoder.module.layer_list.0.conv.weight",
    "n_rkhs": "encoder.module.rkhs_block_5.conv1.weight",
    "n_classes": "evaluator.block_glb_lin.block_forward.2.weight",
}
RESIDUAL_LAYER = re.compile(r"encoder\.module\.layer_list\.\d+\.layer_list\.(\d+)\.")
LARGEST = float(np.finfo("float32").max)
# Steps are int32 where locations are drawn.
STEPS = 2**31
# What `DataParallel` puts before the names of all weights.
PARALLEL = "module."


def unpack(content, path) -> tuple[dict, dict, int]:
    """Weights, sizes and training step of the `content` of the checkpoint `path`.

    Raises:
        InputError: it is none of AMDIM, or has sizes or steps that no run has.
    """
    content = _dictionary(content, CONTENT, "A checkpoint of AMDIM", path)
    sizes = _dictionary(content["hyperparams"], SIZES, "hyperparams", path)
    cursor = _dictionary(content["cursor"], ("info_step",), "cursor", path)
    state = _tensors(content["model"], path)
    # Without classes there are no classifiers.
    given = [name for size, name in SIDES.items() if not _whole(sizes[size], (0,))]
    lacking = [name for name in given if name not in state]
    _check_names(lacking, [], path)

    clip, numbers = sizes["tclip"], sizes | cursor
    depth = len({found[1] for found in map(RESIDUAL_LAYER.match, state) if found})
    rules = {
        "encoder_size": (_whole(sizes["encoder_size"], IMAGE_SIZES), "32, 64 or 128"),
        "use_bn": (type(sizes["use_bn"]) is bool, "True or False"),
        "tclip": (type(clip) in (int, float) and 0 <= clip <= LARGEST, "finite and at least 0"),
        "n_depth": (_whole(sizes["n_depth"], (depth,)), f"{depth}, the layers in its blocks"),
    }
    for size, name in SIDES.items():
        side = (*state[name].shape, 0)[0] if name in state else 0
        rules[size] = _whole(sizes[size], (side,)), f"{side}, the first side of {name}"
    for name in CURSOR:
        if name in cursor:
            rules[name] = (
                _whole(cursor[name], range(STEPS)),
                f"a whole number from 0 to {STEPS - 1}",
            )
    for name, (valid, rule) in rules.items():
        if not valid:
            raise InputError(
                f"{name} of a checkpoint must be {rule}. Received: {_described(numbers[name])} in "
                f"{path}"
            )
    return state, sizes, cursor["info_step"]


def not_theirs(content) -> list[str]:
    """Names in the `content` of a checkpoint that the authors' have not, and that nobody reads."""
    known = {"hyperparams": SIZES, "cursor": CURSOR}
    return [str(name) for name in content if name not in CONTENT] + [
        f"{group}.{name}" for group in known for name in content[group] if name not in known[group]
    ]


def check_weights(state, shapes, needed, path):
    """Checks names, shapes, types and values of the weights `state` of the checkpoint `path`.

    Args:
        shapes: {name: shape} of all that the authors' have at its sizes.
        needed: the names of those that ours has, too.

    Raises:
        InputError: for the first that is not as it must be.
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


def check_values(state, path):
    """Checks that the weights `state`, {name: array}, of the file or folder `path` are numbers.

    Raises:
        InputError: for the first that is not finite in float32, or negative where none may be.
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
    """`content`, if it is a dictionary with `names`."""
    if not isinstance(content, dict) or not content.keys() >= {*names}:
        raise InputError(
            f"{what} must be a dictionary with {', '.join(names)}. Received: "
            f"{_described(content)} in {path}"
        )
    return content


def _tensors(state, path):
    """`state`, if it is a dictionary of tensors, without the prefix of DataParallel."""
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


def _whole(value, choices):
    """Whether `value` is an int of `choices`, and not True or 32.0, which equal some."""
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
