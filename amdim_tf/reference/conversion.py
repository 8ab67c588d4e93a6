"""Makes runs from the authors' checkpoints, and checkpoints from runs.

The authors' checkpoints have weights and classifiers but no state of the optimiser, so training
goes on from their step with new moments. Writing one takes PyTorch, reading does not.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from amdim_tf.config import config_module, fields, load_config
from amdim_tf.encoders.amdim import Block, Encoder
from amdim_tf.errors import InputError
from amdim_tf.files import local, replacing, write_json
from amdim_tf.objectives.amdim import Amdim
from amdim_tf.reference import authors_checkpoint, torch_file
from amdim_tf.training.building import build, check_config
from amdim_tf.training.learner import Learner
from amdim_tf.training.run_directory import RunDirectory, load_model
from amdim_tf.typing import Config

# The data sets that the authors trained on, by image size.
DATASETS = {32: "cifar10", 64: "stl10", 128: "imagenet2012"}
HYPERPARAMETERS = {
    "encoder_size": "image_size",
    "ndf": "ndf",
    "n_rkhs": "nrkhs",
    "n_depth": "ndepth",
    "use_bn": "use_bn",
    "tclip": "clip",
}


def from_checkpoint(
    path: str | pathlib.Path, output: str | pathlib.Path, dataset: str | None = None
) -> Config:
    """Makes a run directory from an authors' checkpoint, to export, evaluate or train further.

    Args:
        path: the checkpoint, in PyTorch's new or old layout.
        output: a new directory.
        dataset: the data set that it was trained on, for normalisation, views and schedule; by
            default the one that the authors used at its image size: CIFAR-10, STL-10 or ImageNet.

    Returns:
        The config of the run.

    Raises:
        InputError: the file is no checkpoint, has sizes or steps that no run has, or weights that
            an encoder of its sizes does not have; or the output is a run already.
    """
    path, output = local(path, "checkpoint"), local(output, "output")
    content = torch_file.read(path)
    state, sizes, step = authors_checkpoint.unpack(content, path)
    own = {ours: sizes[theirs] for theirs, ours in HYPERPARAMETERS.items()}
    dataset = dataset or DATASETS[own["image_size"]]
    config = load_config(dataset, named_size(dataset, own))
    config.update(own)
    check_config(config)
    model = build(config, sizes["n_classes"], 1)
    variables = named_variables(model)
    shapes = {name: to_torch(np.asarray(x)).shape for name, x in named_weights(model).items()}
    authors_checkpoint.check_weights(state, shapes, variables, path)
    for name, variable in variables.items():
        variable.assign(to_keras(state[name]))
    model.step.assign(step)
    model.optimizer.iterations.assign(step)
    try:
        run = RunDirectory(output, config)
        if run.checkpoints.steps():
            raise InputError("it is a run already")
    except InputError as error:
        raise InputError(
            "output must be a new directory, or an empty one, that can be written. Received: "
            f"output={output}"
        ) from error
    write_json(run.path / "classes.json", [str(label) for label in range(sizes["n_classes"])])
    run.save(model, step)
    unused = authors_checkpoint.unused(content)
    if unused:
        print(f"Content that AMDIM does not have in {path} was left out: {', '.join(unused)}.")
    return config


def training_command(config: Config, workdir: str | pathlib.Path) -> str:
    """The command that trains the run of `config` in `workdir`."""
    named = fields(load_config(config.dataset, config.size))
    changed = [
        f"--config.{name}={value}" for name, value in fields(config).items() if value != named[name]
    ]
    words = [f"--dataset={config.dataset}", f"--size={config.size}", *changed]
    return " ".join(["python -m amdim_tf.train", *words, f"--workdir={workdir}"])


def to_checkpoint(workdir: str | pathlib.Path, path: str | pathlib.Path) -> None:
    """Writes the last checkpoint of a run with the authors' names and layout.

    Raises:
        InputError: it is no run of AMDIM's encoder and objective, its weights are not finite,
            PyTorch is not installed, or the file cannot be written.
    """
    path = local(path, "output")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"output must be a file in an existing folder. Received: output={path}")
    try:
        import torch
    except ImportError as error:
        raise InputError(
            "Writing a checkpoint of PyTorch takes PyTorch: pip install 'amdim_tf[torch]'"
        ) from error
    content = to_content(workdir)
    weights = {name: torch.from_numpy(x) for name, x in content["model"].items()}
    with replacing(path) as unfinished:
        torch.save(content | {"model": weights}, unfinished)


def to_content(workdir: str | pathlib.Path) -> dict[str, dict]:
    """The content of an authors' checkpoint for the run in `workdir`, with NumPy arrays."""
    model, step = load_model(workdir)
    encoder, objective = model.encoder, model.objective
    if not isinstance(encoder, Encoder) or not isinstance(objective, Amdim) or objective.mixture:
        raise InputError(
            "workdir must be a run of the encoder amdim and of the objective amdim, without "
            "mixture_components, which the authors' checkpoints cannot hold. "
            f"Received: workdir={workdir}, a run of {type(encoder).__name__}, {objective}"
        )
    weights = {name: np.array(to_torch(np.asarray(x))) for name, x in named_weights(model).items()}
    authors_checkpoint.check_values(weights, f"workdir={workdir} at step {step}")
    sizes = {"tclip": objective.clip or 0.0, "n_classes": model.probes.classes}
    sizes |= {"encoder_size": encoder.image_size, "ndf": encoder.ndf, "n_rkhs": encoder.nrkhs}
    sizes |= {"n_depth": encoder.ndepth, "use_bn": encoder.use_bn}
    cursor = {"info_epoch": 0, "info_step": step, "classifier_epoch": 0, "classifier_step": 0}
    return {"model": weights, "hyperparams": sizes, "cursor": cursor}


def named_size(dataset: str, own: Mapping[str, Any]) -> str | None:
    """The named size, in the config of `dataset`, that has the widths of `own`, or None."""
    for size, widths in config_module(dataset).SIZES.items():
        if tuple(widths[:3]) == (own["ndf"], own["nrkhs"], own["ndepth"]):
            return size
    return None


def named_variables(model: Learner) -> dict[str, keras.Variable]:
    """{the authors' name: our variable} for an `AMDIM`."""
    weights = named_weights(model)
    return {name: x for name, x in weights.items() if not isinstance(x, np.ndarray)}


def named_weights(model: Learner) -> dict[str, keras.Variable | np.ndarray]:
    """`named_variables`, and arrays for the other weights in the authors' checkpoint.

    The arrays are constants, and the batch norms that the authors' encoder has but does not use
    without `use_bn`.
    """
    encoder = model.encoder
    names: dict[str, keras.Variable | np.ndarray] = {}
    layers = [*encoder.stem, *encoder.to_7x7, encoder.bn7, encoder.to_5x5, encoder.to_3x3]
    layers += [encoder.to_1x1, encoder.bn1]
    width = encoder.to_5x5.filters

    def residual(prefix, layer):
        names.update(conv(f"{prefix}.conv1", layer.conv1))
        names.update(conv(f"{prefix}.conv2", layer.conv2))
        names.update(batch_norm(f"{prefix}.bn1.bn", layer.bn, layer.filters))

    for i, layer in enumerate(layers):
        prefix = f"encoder.module.layer_list.{i}"
        if layer in encoder.stem:
            names |= conv(f"{prefix}.conv", layer.conv)
        elif layer is encoder.bn7 or layer is encoder.bn1:
            names |= batch_norm(f"{prefix}.bn", layer, width)
        elif isinstance(layer, Block):
            for j, inner in enumerate(layer.residual):
                residual(f"{prefix}.layer_list.{j}", inner)
        else:
            residual(prefix, layer)
    for n, phi in ((5, model.phi5), (7, model.phi7)):
        prefix = f"encoder.module.rkhs_block_{n}"
        for layer in ("conv1", "conv2", "shortcut"):
            names |= conv(f"{prefix}.{layer}", getattr(phi, layer))
        names |= batch_norm(f"{prefix}.bn_hid.bn", phi.bn_hidden, phi.nrkhs)
        names |= batch_norm(f"{prefix}.bn_out.bn", phi.bn)
    # A mask for each of the 25 locations of f5, from which the authors' code draws an antecedent.
    names["g2l_loss.masks_r5"] = np.eye(25, dtype=bool).reshape(25, 1, 5, 5)
    if model.probes.classes:
        mlp = [layer for layer in model.probes.mlp.layers if layer.weights]
        names |= conv("evaluator.block_glb_lin.block_forward.2", model.probes.linear)
        names |= conv("evaluator.block_glb_mlp.block_forward.2", mlp[0])
        names |= batch_norm("evaluator.block_glb_mlp.block_forward.3", mlp[1])
        names |= conv("evaluator.block_glb_mlp.block_forward.6", mlp[2])
    return names


def conv(prefix: str, layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """{name: variable} of a convolution, or of a dense layer."""
    names = {f"{prefix}.weight": layer.kernel}
    return names | ({f"{prefix}.bias": layer.bias} if layer.use_bias else {})


def batch_norm(
    prefix: str, layer: keras.layers.Layer | None, width: int | None = None
) -> dict[str, keras.Variable | np.ndarray]:
    """{name: variable} of a batch norm, or {name: array} of an unused one of `width` channels."""
    if layer is None:
        values: list = [make(width, "float32") for make in (np.ones, np.zeros, np.zeros, np.ones)]
    else:
        values = [layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance]
    ends = ("weight", "bias", "running_mean", "running_var")
    names = {f"{prefix}.{end}": value for end, value in zip(ends, values, strict=True)}
    return names | {f"{prefix}.num_batches_tracked": np.array(0)}


def to_keras(array: np.ndarray) -> np.ndarray:
    """Transposes PyTorch's (out,in,h,w) and (out,in) to Keras's (h,w,in,out) and (in,out)."""
    return array.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, range(array.ndim)))


def to_torch(array: np.ndarray) -> np.ndarray:
    """Transposes Keras's kernels to PyTorch's; other arrays stay as they are."""
    if array.dtype == bool:
        return array
    return array.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, range(array.ndim)))
