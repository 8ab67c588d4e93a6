"""The JSON files of a run directory: read without TensorFlow, for the flags."""

import json
import pathlib

from amdim_tf.config import load_config
from amdim_tf.errors import InputError
from amdim_tf.files import local
from amdim_tf.typing import Config

CONFIG = "config.json"
OF_ENCODER = ("encoder", "image_size", "channels", "ndf", "nrkhs", "ndepth", "use_bn", "tasks")


def read_config(path: str | pathlib.Path | None) -> dict:
    """The flat config of the run in `path`, as `config.fields` returns it.

    Raises:
        InputError: `path` is no run directory.
    """
    try:
        config = json.loads((local(path or "", "workdir") / CONFIG).read_text())
        if not isinstance(config, dict):
            raise ValueError("config.json holds no fields")
        return config
    except (OSError, ValueError) as error:
        raise InputError(
            f"workdir must be a run directory with its config.json. Received: workdir={path}"
        ) from error


def run_config(path: str | pathlib.Path) -> Config:
    """The config of the run in `path`."""
    return to_config(read_config(path))


def to_config(own: dict) -> Config:
    """The config with the fields `own`, as JSON stores them."""
    config = load_config(own["dataset"], own["size"], own["variant"])
    config.update_from_flattened_dict(
        {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    )
    return config


def read_class_names(path: str | pathlib.Path) -> tuple[str, ...]:
    """Class names of the run in `path`; empty if its data has no classes.

    Raises:
        InputError: `path` is no run directory.
    """
    try:
        return tuple(json.loads((local(path, "workdir") / "classes.json").read_text()))
    except (OSError, ValueError) as error:
        raise InputError(
            f"workdir must be a run directory with its classes.json. Received: workdir={path}"
        ) from error


def read_result(path: str | pathlib.Path) -> dict | None:
    """The result of the run in `path` if it is finished, else None."""
    result = local(path, "workdir") / "result.json"
    return json.loads(result.read_text()) if result.exists() else None


def evaluation_config(workdir: str | pathlib.Path, dataset: str | None = None) -> Config:
    """The config for measuring a run: its own, or that of another `dataset`.

    Images always have the size and normalisation that the encoder was trained with.
    """
    config = run_config(workdir)
    if dataset in (None, config.dataset):
        return config
    other = load_config(dataset)
    for name in (*OF_ENCODER, "white", "mean", "std", "views", "batch_size", "seed", "l2"):
        other[name] = config[name]
    return other
