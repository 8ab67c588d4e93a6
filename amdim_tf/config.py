"""Configs: what is trained, as one checked dictionary.

`configs/<dataset>.py` has a function `get_config(size)` that fills in `base_config`; the sizes it
knows are the keys of its `SIZES`, the first of them the default.
"""

import difflib
import importlib.util
import pathlib
import re

import ml_collections

from amdim_tf import multiscale
from amdim_tf.encoder import check_encoder
from amdim_tf.errors import InputError
from amdim_tf.views import Policy

# Installed, the configs are the package's; in a checkout they lie beside it.
HERE = pathlib.Path(__file__).parent
FOLDER = next(path for path in (HERE / "configs", HERE.parent / "configs") if path.is_dir())

DEFAULT_DATASET = "photo_patches"
SOURCES = ("tfds", "folder", "photo_patches", "photo_pairs")
LABELS = ("auto", "none")
OBJECTIVES = ("amdim", "supervised")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# Fields that say how to compute, not what.
MEANS = (
    "micro_batch",
    "score_megabytes",
    "log_every",
    "pictures_every",
    "checkpoint_minutes",
    "bad_steps",
    "bad_images",
    # What it changes is in the record that a run keeps of its data.
    "labels",
)
# The config of TFDS sets that have none of their own.
GENERIC = "tfds_image_classification"


def base_config():
    """The reference's settings at 32 pixels, from which each data set's config starts."""
    return ml_collections.ConfigDict(
        {
            "dataset": "",
            "size": "",
            "variant": "",
            # "tfds", "folder", "photo_patches" or "photo_pairs"
            "source": "tfds",
            # "auto": those that the data has; "none": the encoder is trained alone.
            "labels": "auto",
            "train_split": "train",
            # Of the classifiers, where the encoder is trained on images without class, too.
            "probe_split": "",
            "test_split": "test",
            # Normalisation, per channel, of pixels in [0, 1].
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "image_size": 32,
            "ndf": 32,
            "nrkhs": 256,
            "ndepth": 2,
            "use_bn": False,
            # "amdim", or "supervised" by labels
            "objective": "amdim",
            "tasks": "1-5,1-7,5-5",
            # Of the scores; 0: none.
            "clip": 20.0,
            "regulariser": 5e-2,
            # Mixture features in place of f1 as antecedents (3.7), 0: none; and the inverse
            # temperature of their posterior.
            "mixture_components": 0,
            "mixture_tau": 1.0,
            "views": {
                "geometry": "translate",
                "flip_probability": 0.5,
                "translate_probability": 0.8,
                "jitter_probability": 0.8,
                "jitter": 0.4,
                "hue": 0.2,
                "gray_probability": 0.25,
                # Fast AutoAugment: "", "cifar10" or "imagenet"
                "autoaugment": "",
            },
            # "float32", "mixed_bfloat16" or "mixed_float16"; of the trunk and phi.
            "precision": "float32",
            "batch_size": 64,
            # Images that a device embeds at a time, of its part of the batch; 0: all of them.
            "micro_batch": 0,
            # Of a matrix of scores; a larger one is computed in blocks and not kept.
            "score_megabytes": 256,
            "epochs": 300,
            # Updates; 0: as many as `epochs` make.
            "steps": 0,
            "learning_rate": 2e-4,
            "l2": 1e-5,
            # Updates of the linear warm-up; at most a fifth of the training is spent on it.
            "warmup_steps": 500,
            # Parts of the training after which the learning rate is multiplied by `decay_rate`.
            "decays": (250 / 300, 280 / 300),
            "decay_rate": 0.2,
            "seed": 0,
            # Checkpoints are saved at least so often.
            "checkpoint_minutes": 10.0,
            # Steps in a row whose losses or gradients are not finite, after which training stops.
            "bad_steps": 20,
            "log_every": 50,
            # Epochs between pictures in TensorBoard; 0: none.
            "pictures_every": 0,
            # The part of the training images that may be bad; more of them end the run.
            "bad_images": 0.01,
            # Training images, at most, for what is fitted on features after training.
            "probe_images": 10000,
            # Classifiers from scratch on augmented images.
            "probe_epochs": 120,
            "probe_decays": (80 / 120, 110 / 120),
            "probe_learning_rate": 2e-4,
        }
    )


# What the rows of the paper's tables change of a config. Local DIM (3.1) predicts f7 from f1 of the
# same, unaugmented view.
VARIANTS = {
    "-color_jitter": {"views.jitter_probability": 0.0},
    "-random_gray": {"views.gray_probability": 0.0},
    "-random_crop": {"views.geometry": "none"},
    "-multiscale": {"tasks": "1-7"},
    "-stabilize": {"regulariser": 0.0, "clip": 0.0},
    "+strong_aug": {"views.autoaugment": "imagenet"},
    "local_dim": {
        "tasks": "1-7",
        "views.geometry": "none",
        "views.flip_probability": 0.0,
        "views.jitter_probability": 0.0,
        "views.gray_probability": 0.0,
    },
    "supervised": {"objective": "supervised"},
}


def load_config(dataset, size=None, variant=""):
    """The config of `dataset` at one of its named sizes, by default the first.

    A name without a file in `configs/` gets the generic config for TFDS sets.

    Args:
        variant: names of `VARIANTS`, separated by commas.

    Raises:
        InputError: the data set has no such size, or there is no such variant.
    """
    module = config_module(dataset)
    size = size or next(iter(module.SIZES))
    if size not in module.SIZES:
        raise InputError(
            f"size must be one of {', '.join(module.SIZES)} for {dataset}. Received: size={size!r}"
        )
    config = module.get_config(size)
    config.update({"dataset": dataset, "size": size})
    return apply_variant(config, variant)


def apply_variant(config, variant):
    """Changes `config` as `variant` says, see `load_config`, and returns it."""
    for name in filter(None, variant.split(",")):
        if name not in VARIANTS:
            raise InputError(
                f"variant must be one or more of {', '.join(VARIANTS)}, separated by commas. "
                f"Received: variant={variant!r}"
            )
        config.update_from_flattened_dict(VARIANTS[name])
    if config.views.autoaugment and config.image_size == 32:
        config.views.autoaugment = "cifar10"
    config.variant = variant
    return config


def config_module(dataset):
    """The module of `dataset` in `configs/`, or the one for TFDS sets that have none."""
    path = FOLDER / f"{re.split('[/:]', dataset)[0]}.py"
    if not path.is_file():
        path = FOLDER / f"{GENERIC}.py"
    spec = importlib.util.spec_from_file_location(f"amdim_tf.configs.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def file_name(dataset):
    """The name of a data set as it may stand in the name of a file."""
    return re.sub("[/:*]+", "_", dataset)


def known_configs():
    """Names of the data sets with a config of their own."""
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py") if path.stem != GENERIC)


def fields(config, prefix=""):
    """The config as {"views.hue": 0.2, ...}, flat and as JSON has it."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat |= fields(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def nearest(name, valid, count=3):
    """The entries of `valid` that look most like `name`, as text."""
    return ", ".join(difflib.get_close_matches(name, valid, count, cutoff=0.0))


def check_config(config):
    """Raises `InputError` for the first value out of range."""
    check_encoder(config.image_size, config.ndf, config.nrkhs, config.ndepth)
    tasks = multiscale.parse_tasks(config.tasks)
    Policy(**config.views)
    least = {
        "batch_size": 2,
        "epochs": 1,
        "steps": 0,
        "warmup_steps": 0,
        "regulariser": 0,
        "l2": 0,
        "seed": 0,
        "log_every": 1,
        "probe_images": 1,
        "probe_epochs": 1,
        "clip": 0,
        "micro_batch": 0,
        "score_megabytes": 1,
        "mixture_components": 0,
        "pictures_every": 0,
        "checkpoint_minutes": 0,
        "bad_steps": 1,
    }
    for name, value in least.items():
        if not config[name] >= value:
            raise InputError(f"{name} must be at least {value}. Received: {name}={config[name]}")
    for name in ("learning_rate", "decay_rate", "probe_learning_rate", "mixture_tau"):
        if not 0 < config[name] < float("inf"):
            raise InputError(f"{name} must be positive. Received: {name}={config[name]}")
    if not 0 <= config.bad_images <= 1:
        raise InputError(f"bad_images must lie in 0..1. Received: bad_images={config.bad_images}")
    for name in ("mean", "std"):
        if (
            len(config[name]) != 3
            or min(config[name]) < 0
            or (name, min(config[name])) == ("std", 0)
        ):
            raise InputError(
                f"{name} must be three numbers, one per channel, of pixels in 0..1. "
                f"Received: {name}={config[name]}"
            )
    for name in ("decays", "probe_decays"):
        if not all(0 < part <= 1 for part in config[name]):
            raise InputError(
                f"{name} must be parts of the training in 0..1. Received: {name}={config[name]}"
            )
    choices = {"source": SOURCES, "labels": LABELS, "objective": OBJECTIVES}
    choices["precision"] = PRECISIONS
    for name, valid in choices.items():
        if config[name] not in valid:
            raise InputError(
                f"{name} must be one of {', '.join(valid)}. Received: {name}={config[name]!r}"
            )
    if config.micro_batch and config.use_bn:
        raise InputError(
            "micro_batch is for models without use_bn: batch norm inside the trunk would not see "
            f"the whole batch. Received: micro_batch={config.micro_batch}, use_bn={config.use_bn}"
        )
    from_f1 = config.objective == "amdim" and any(n == 1 for n, _ in tasks)
    if config.mixture_components and not from_f1:
        raise InputError(
            "mixture_components are for the amdim objective with a task from scale 1. Received: "
            f"mixture_components={config.mixture_components}, tasks={config.tasks!r}, "
            f"objective={config.objective!r}"
        )
