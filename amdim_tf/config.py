"""Configs: what is trained, as one checked dictionary.

`configs/<dataset>.py` has a function `get_config(size)` that fills in `base_config`; the sizes it
knows are the keys of its `SIZES`, the first of them the default.
"""

import dataclasses
import difflib
import importlib.machinery
import math
import pathlib
import re
import types
from collections.abc import Callable, Iterable

import ml_collections

from amdim_tf.errors import InputError
from amdim_tf.typing import Config
from amdim_tf.variants import VARIANTS

# Installed, the configs are in the package; in a checkout they lie next to it.
HERE = pathlib.Path(__file__).parent
FOLDER = next(path for path in (HERE / "configs", HERE.parent / "configs") if path.is_dir())

DEFAULT_DATASET = "photo_patches"
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# The config of TFDS sets that have none of their own.
GENERIC = "tfds_image_classification"


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a config.

    Args:
        default: the reference's setting at 32 pixels, if it has one.
        meaning: what it is, in a phrase.
        valid: the valid values, as the end of the sentence "NAME must ...".
        check: tells whether a value is valid; None if another file does.
        of_result: whether it changes what a run computes, and not only how.
    """

    default: object
    meaning: str
    valid: str = ""
    check: Callable | None = None
    of_result: bool = True


def _one_of(default, meaning, *valid, **options):
    return Field(default, meaning, f"be one of {', '.join(valid)}", valid.__contains__, **options)


def _at_least(least, default, meaning, **options):
    valid = f"be at least {least}" + " and finite" * isinstance(default, float)
    return Field(default, meaning, valid, lambda x: least <= x < math.inf, **options)


def _positive(default, meaning):
    return Field(default, meaning, "be positive and finite", lambda x: 0 < x < math.inf)


def _fraction(default, meaning, **options):
    return Field(default, meaning, "lie in 0..1", lambda x: 0 <= x <= 1, **options)


def _channels(default, meaning, least):
    valid = "be one number per channel, of pixels in 0..1"
    return Field(default, meaning, valid, lambda x: all(least <= each < math.inf for each in x))


def _range(default, meaning):
    return Field(default, meaning, "be the least and the largest, positive numbers")


def _milestones(default, meaning):
    valid = "be fractions of the training in 0..1"
    return Field(default, meaning, valid, lambda x: all(0 < each <= 1 for each in x))


FIELDS: dict[str, Field] = {
    "dataset": Field("", "the data set; that of --dataset"),
    "size": Field("", "the named size; that of --size"),
    "variant": Field("", "what was changed by name; that of --variant"),
    "source": _one_of(
        "tfds", "where images come from", "tfds", "folder", "photo_patches", "photo_pairs"
    ),
    # What it changes is in the record that a run keeps of its data.
    "labels": _one_of(
        "auto",
        "auto: the labels of the data; none: no labels, and the encoder alone is trained",
        "auto",
        "none",
        of_result=False,
    ),
    "train_split": Field("train", "split that the encoder is trained on"),
    "probe_split": Field("", "split with labels for the classifiers; empty: train_split"),
    "test_split": Field("test", "split that is measured on"),
    "channels": _at_least(1, 3, "channels of an image; other than 3, its precision is kept"),
    "white": _at_least(
        0,
        0.0,
        "other than 3 channels: the value of a pixel that counts as white, beyond which all are "
        "white, and below 0 black; 0: the largest of its type, 1 for floats",
    ),
    "mean": _channels(
        (0.5, 0.5, 0.5),
        "normalisation: mean of pixels in 0..1, by channel; empty: that of training images",
        0,
    ),
    "std": _channels(
        (0.25, 0.25, 0.25),
        "normalisation: deviation of these pixels; empty: that of training images",
        1e-12,
    ),
    "encoder": Field(
        "amdim",
        "what encodes an image",
        "be amdim, a model of keras.applications such as resnet50v2, or MODULE:NAME",
    ),
    "weights": Field(
        "",
        "weights that the training of the encoder starts from; empty: random ones",
        "be imagenet for a model of keras.applications, a run directory, or a .keras or "
        ".weights.h5 file",
    ),
    "freeze": _at_least(0, 0, "stages of the encoder, from the first on, that are not trained"),
    "image_size": Field(
        32,
        "side of the encoder's images, in pixels",
        "be 32, 64, 128 or 256 for amdim, and what the encoder takes for others",
    ),
    "patch_size": _at_least(
        0, 0, "side of the patches that the encoder sees, in pixels; 0: it sees complete images"
    ),
    "patch_grid": Field(3, "with patch_size: patches in a row and in a column", "be at least 2"),
    "lab": Field(False, "an encoder of lightness and one of colour, of half the width each"),
    "ndf": Field(32, "amdim: channels of the encoder's first layer", "be at least 1"),
    "nrkhs": Field(
        256,
        "dimensions of all embeddings, and of amdim's f1",
        "be at least 1, and the width of amdim's f5",
    ),
    "ndepth": Field(2, "amdim: residual layers in each block of the encoder", "be at least 1"),
    "use_bn": Field(False, "amdim: batch norm inside the encoder, too"),
    "objective": Field(
        "amdim",
        "what the encoder learns",
        "be amdim, supervised, that of a variant such as rotation, or MODULE:CLASS",
    ),
    "tasks": Field(
        "",
        "n-to-m tasks; empty: those for the encoder, 1-5,1-7,5-5 for amdim",
        "be pairs of the encoder's scales, separated by commas",
    ),
    "bound": _one_of(
        "nce",
        "amdim and infomax_vae: the bound on mutual information, see docs/objectives.md",
        "nce",
        "jsd",
        "dv",
    ),
    "clip": _at_least(0, 20.0, "range to which scores are clipped smoothly, in nats; 0: no clip"),
    "regulariser": _at_least(0, 5e-2, "weight of the squared scores in the loss"),
    "mixture_components": _at_least(0, 0, "mixture features in place of f1 (3.7); 0: none"),
    "mixture_tau": _positive(1.0, "inverse temperature of the mixture's posterior"),
    "views.geometry": Field("translate", "how a view is cut", "be crop, translate or none"),
    "views.flip_probability": Field(0.5, "probability of mirroring both views", "lie in 0..1"),
    "views.translate_probability": Field(0.8, "probability of moving a view", "lie in 0..1"),
    "views.jitter_probability": Field(0.8, "probability of new colours in a view", "lie in 0..1"),
    "views.jitter": Field(0.4, "range of brightness, contrast and saturation", "lie in 0..1"),
    "views.hue": Field(0.2, "range of hue, in turns", "lie in 0..0.5"),
    "views.gray_probability": Field(0.25, "probability of a view in grey", "lie in 0..1"),
    "views.autoaugment": Field(
        "", "Fast AutoAugment's policies; empty: none", "be empty, cifar10 or imagenet"
    ),
    "views.crop_area": _range((0.3, 1.0), "area of a crop, as a fraction of the image's"),
    "views.crop_ratio": _range((0.7, 1.4), "width of a crop, over its height"),
    "views.blur_probability": _fraction(0.0, "probability of a Gaussian blur in a view"),
    "views.blur_sigma": _range((0.3, 1.5), "deviation of the blur, in hundredths of the side"),
    "views.solarize_probability": _fraction(0.0, "probability of inverting what is bright"),
    "views.number": _at_least(
        1, 2, "views of an image; an objective that takes another number sets it"
    ),
    "views.small_crops": _at_least(
        0, 0, "further views, small crops that are scored against both others"
    ),
    "views.small_area": _range((0.05, 0.3), "area of a small crop, as a fraction of the image's"),
    "views.layer": Field(
        "", "a Keras layer that changes the views", "be MODULE:NAME of it, or of what makes it"
    ),
    "precision": _one_of(
        "float32", "type in which trunk and phi compute; weights stay float32", *PRECISIONS
    ),
    "batch_size": _at_least(2, 64, "images in a batch, of all devices together"),
    "micro_batch": _at_least(
        0, 0, "images that a device embeds at a time, for less memory; 0: all", of_result=False
    ),
    "score_megabytes": _at_least(
        1, 256, "size of a matrix of scores; a larger one is computed in blocks", of_result=False
    ),
    "epochs": _at_least(1, 300, "passes over the training images"),
    "steps": _at_least(0, 0, "updates; 0: those of the epochs"),
    "optimizer": Field(
        "reference",
        "what changes the weights; reference: Adam with weight decay in its gradients",
        "be reference, or the name of an optimiser of Keras such as adamw, lamb, lion, muon or sgd",
    ),
    "optimizer_arguments": Field(
        "",
        "arguments of the optimiser; those that are not given have its defaults",
        "be NAME=VALUE, separated by commas, such as weight_decay=0.05,beta_2=0.95",
    ),
    "learning_rate": _positive(2e-4, "learning rate after the warm-up"),
    "l2": _at_least(0, 1e-5, "weight decay of the reference's optimiser"),
    "warmup_steps": _at_least(0, 500, "updates of linear warm-up; at most a fifth of all"),
    "schedule": _one_of(
        "steps", "how the learning rate falls: at decays, or as a cosine to zero", "steps", "cosine"
    ),
    "decays": _milestones(
        (250 / 300, 280 / 300), "when it falls by steps, as fractions of the training"
    ),
    "decay_rate": _positive(0.2, "factor of the learning rate at each decay"),
    "clip_norm": _at_least(0, 0.0, "largest norm of the gradient of all weights; 0: any"),
    "weight_averaging": Field(
        0.0,
        "momentum of a moving average of all weights, such as 0.999; 0: none",
        "be at least 0 and less than 1",
        lambda x: 0 <= x < 1,
    ),
    "measured_weights": _one_of(
        "averaged",
        "with weight_averaging, the weights that are measured and exported",
        "averaged",
        "trained",
    ),
    "seed": _at_least(0, 0, "seed of all random draws"),
    "checkpoint_minutes": _at_least(
        0, 10.0, "minutes between checkpoints, at most", of_result=False
    ),
    "bad_steps": _at_least(
        1, 20, "updates in a row without finite numbers that end a run", of_result=False
    ),
    "log_every": _at_least(1, 50, "updates in a line of metrics.jsonl", of_result=False),
    "pictures_every": _at_least(
        0, 0, "epochs between pictures in TensorBoard; 0: none", of_result=False
    ),
    "bad_images": _fraction(
        0.01, "fraction of the training images that may be unusable", of_result=False
    ),
    "probe_images": _at_least(1, 10000, "training images for what is fitted on features, at most"),
    "probe_epochs": _at_least(1, 120, "epochs of classifiers that learn on augmented images"),
    "probe_decays": _milestones((80 / 120, 110 / 120), "when their learning rate falls"),
    "probe_learning_rate": _positive(2e-4, "learning rate of these classifiers"),
}
# Fields that say how to compute, not what.
MEANS = tuple(name for name, field in FIELDS.items() if not field.of_result)


def base_config() -> Config:
    """The reference's settings at 32 pixels, from which each data set's config starts."""
    config = ml_collections.ConfigDict()
    for name, field in FIELDS.items():
        section, _, key = name.rpartition(".")
        if section and section not in config:
            config[section] = {}
        (config[section] if section else config)[key] = field.default
    return config


def load_config(dataset: str, size: str | None = None, variant: str = "") -> Config:
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


def apply_variant(config: Config, variant: str) -> Config:
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


def config_module(dataset: str) -> types.ModuleType:
    """The module of `dataset` in `configs/`, or the one for TFDS sets that have none."""
    path = FOLDER / f"{re.split('[/:]', dataset)[0]}.py"
    if not path.is_file():
        path = FOLDER / f"{GENERIC}.py"
    loader = importlib.machinery.SourceFileLoader(f"amdim_tf.configs.{path.stem}", str(path))
    module = types.ModuleType(loader.name)
    loader.exec_module(module)
    return module


def file_name(dataset: str) -> str:
    """The name of a data set as it may stand in the name of a file."""
    return re.sub("[/:*]+", "_", dataset)


def known_configs() -> list[str]:
    """Names of the data sets with a config of their own."""
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py") if path.stem != GENERIC)


def fields(config: Config, prefix: str = "") -> dict:
    """The config as {"views.hue": 0.2, ...}, flat and as JSON has it."""
    flat: dict = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat |= fields(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def nearest(name: str, valid: Iterable[str], count: int = 3) -> str:
    """The entries of `valid` that are most like `name`, as text."""
    return ", ".join(difflib.get_close_matches(name, valid, count, cutoff=0.0))


def check_fields(config: Config) -> None:
    """Raises `InputError` for the first value out of range, as far as `FIELDS` tells."""
    for name, value in fields(config).items():
        field = FIELDS.get(name)
        if field and field.check and not field.check(value):
            raise InputError(f"{name} must {field.valid}. Received: {name}={value!r}")
