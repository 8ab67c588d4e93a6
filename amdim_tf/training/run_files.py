"""What a run directory says of its run in JSON: read without TensorFlow, for the flags."""

import json

from amdim_tf.config import load_config
from amdim_tf.errors import InputError
from amdim_tf.files import local


def read_config(path):
    """The flat config of the run in `path`, as `config.fields` gives it."""
    try:
        config = json.loads((local(path or "", "workdir") / "config.json").read_text())
        if not isinstance(config, dict):
            raise ValueError("config.json holds no fields")
        return config
    except (OSError, ValueError) as error:
        raise InputError(
            f"workdir must be a run directory with its config.json. Received: workdir={path}"
        ) from error


def run_config(path):
    """The config of the run in `path`."""
    return to_config(read_config(path))


def to_config(own):
    """The config of which `own` are the fields, as JSON has them."""
    config = load_config(own["dataset"], own["size"], own["variant"])
    config.update_from_flattened_dict(
        {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    )
    return config


def read_class_names(path):
    """Names of the classes of the run in `path`; none if its data has none."""
    try:
        return tuple(json.loads((local(path, "workdir") / "classes.json").read_text()))
    except (OSError, ValueError) as error:
        raise InputError(
            f"workdir must be a run directory with its classes.json. Received: workdir={path}"
        ) from error


def read_result(path):
    """The result of the run in `path` if it is finished, else None."""
    path = local(path, "workdir") / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def evaluation_config(workdir, dataset=None):
    """The config for measuring a run: its own, on another `dataset` that one's.

    Images are always of the size and normalisation that the encoder was trained with.
    """
    config = run_config(workdir)
    if dataset in (None, config.dataset):
        return config
    other = load_config(dataset)
    for name in ("image_size", "mean", "std", "views", "batch_size", "seed", "l2"):
        other[name] = config[name]
    return other
