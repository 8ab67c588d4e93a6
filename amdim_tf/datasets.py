"""Data sets: a name becomes uint8 images with labels, for training and for testing."""

import dataclasses
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from amdim_tf.config import known_configs, nearest
from amdim_tf.errors import InputError

PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "cat",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "motorcycle",
    "retina",
    "rocket",
)


# A patch whose channels all deviate by less than this many grey levels shows nothing.
FLAT = 4


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set; `train` and `test` yield (image, label): (H,W,3) uint8 and () int64.

    `note` says what was done to the images so that they fit, if anything.
    """

    train: tf.data.Dataset
    test: tf.data.Dataset
    train_size: int
    test_size: int
    class_names: tuple
    note: str = ""

    @property
    def image_shape(self):
        """(H, W), None where images differ."""
        return tuple(self.train.element_spec[0].shape[:2])


def load(config, data_dir=None):
    """The data set that `config` names, in full and in a fixed order.

    Args:
        config: `dataset`, `train_split` and `test_split` count.
        data_dir: where TFDS keeps prepared data; None for its own default.

    Raises:
        InputError: an unknown name or split, data that is neither prepared nor downloadable, or
            data that is not images of one or three channels with a class each.
    """
    if config.dataset == "photo_patches":
        return photo_patches()
    return from_tfds(config, data_dir)


def photo_patches(size=32, train_count=300, test_count=60, seed=0):
    """Patches of the 14 photographs that scikit-image ships, class = photograph.

    Training patches come from the left 70 % of each photograph and test patches from the right
    30 %, so none overlap. Flat patches are dropped; `seed` draws which of the others are kept.

    Args:
        size: side of a patch in pixels.
        train_count, test_count: patches of a class, at most.
    """
    generator = np.random.default_rng(seed)
    splits = {"train": [], "test": []}
    for label, name in enumerate(PHOTOGRAPHS):
        photograph = _photograph(name)
        border = int(0.7 * photograph.shape[1])
        for split, half, count in (
            ("train", photograph[:, :border], train_count),
            ("test", photograph[:, border:], test_count),
        ):
            windows = np.lib.stride_tricks.sliding_window_view(half, (size, size), (0, 1))
            windows = windows[:: size // 2, :: size // 2].reshape(-1, 3, size, size)
            patches = windows.transpose(0, 2, 3, 1)
            patches = generator.permutation(patches[patches.std((1, 2)).max(1) >= FLAT])
            splits[split] += [(patch, label) for patch in patches[:count]]

    datasets = []
    for pairs in splits.values():
        generator.shuffle(pairs)
        images, labels = zip(*pairs, strict=True)
        datasets.append(tf.data.Dataset.from_tensor_slices((np.stack(images), np.array(labels))))
    return Data(*datasets, len(splits["train"]), len(splits["test"]), PHOTOGRAPHS)


def _photograph(name):
    import skimage.data

    name = {"cat": "chelsea", "motorcycle": "stereo_motorcycle"}.get(name, name)
    photograph = getattr(skimage.data, name)()
    if isinstance(photograph, tuple):  # the stereo pair: left, right, disparity
        photograph = photograph[0]
    if photograph.ndim == 2:
        photograph = np.repeat(photograph[..., None], 3, axis=-1)
    return photograph


def from_tfds(config, data_dir):
    """An image-classification set of TFDS, prepared if need be; see `load`."""
    if data_dir is not None and not pathlib.Path(data_dir).is_dir():
        raise InputError(f"data_dir must be an existing directory. Received: data_dir={data_dir}")
    try:
        builder = tfds.builder(config.dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        near = nearest(config.dataset, {*known_configs(), *tfds.list_builders()})
        raise InputError(
            f"dataset must be one of {', '.join(known_configs())} or an image-classification set "
            f"of TFDS; the nearest names are {near}. Received: dataset={config.dataset!r}"
        ) from error
    _prepare(builder)

    features = builder.info.features
    image, label = (dict(features).get(key) for key in ("image", "label"))
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise InputError(
            "A data set needs the features image and label, a class. "
            f"Received: {config.dataset} with {', '.join(dict(features))}"
        )
    if image.shape[-1] not in (1, 3) or tf.as_dtype(image.dtype) != tf.uint8:
        raise InputError(
            "Images must have 1 or 3 channels of 8 bits; convert others beforehand. "
            f"Received: {config.dataset} with images {image.shape} {tf.as_dtype(image.dtype).name}"
        )
    gray = image.shape[-1] == 1

    def supervised(example):
        pixels = example["image"]
        return tf.image.grayscale_to_rgb(pixels) if gray else pixels, example["label"]

    datasets, sizes = [], []
    for split in (config.train_split, config.test_split):
        try:
            sizes.append(builder.info.splits[split].num_examples)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"The splits of {config.dataset} are {', '.join(builder.info.splits)}, whole or in "
                f"part as in train[:10%]. Received: {split!r}"
            ) from error
        datasets.append(
            builder.as_dataset(split=split, shuffle_files=False).map(
                supervised, num_parallel_calls=tf.data.AUTOTUNE
            )
        )
    note = "grey images, repeated to three channels" if gray else ""
    return Data(*datasets, *sizes, tuple(label.names), note)


def _prepare(builder):
    """Downloads and prepares what is not there yet."""
    if builder.is_prepared():
        return
    try:
        builder.download_and_prepare()
    # What a data set's own download code raises is not known in advance.
    except Exception as error:  # noqa: BLE001
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{builder.name} is not prepared in {builder.data_dir} and could not be downloaded "
            f"({reason[0]}); prepare it with: tfds build {builder.name} --data_dir=DIR"
        ) from error
