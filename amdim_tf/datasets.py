"""Data sets: a name becomes uint8 images with labels, for training and for testing."""

import dataclasses
import pathlib
from collections.abc import Callable

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
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
UNLABELLED = -1


@dataclasses.dataclass(frozen=True)
class Split:
    """Records of a data set, in a fixed order: `examples` yields (record, label () int64)."""

    examples: tf.data.Dataset
    size: int

    def labels(self):
        """All labels (size,), without decoding an image."""
        labels = self.examples.map(lambda _, label: label).batch(4096)
        return np.concatenate(list(labels.as_numpy_iterator()))

    def subset(self, chosen):
        """The examples whose places in the order are True in `chosen` (size,)."""
        chosen = tf.constant(chosen)
        examples = (
            self.examples.enumerate()
            .filter(lambda place, _: chosen[place])
            .map(lambda _, example: example)
        )
        return Split(examples, int(np.sum(chosen)))


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set.

    Records are small, so that shuffling and skipping them costs little: the bytes of a file or its
    name, which `read` makes bytes. `decode` makes a record an image (H,W,3) uint8, of the same
    `image_shape` (H,W) for all, or of any, (None, None). The label of images without class is -1;
    without classes `probe` and `test` are None. `note` says what was done to the images so that
    they fit, if anything.
    """

    train: Split
    probe: Split | None
    test: Split | None
    class_names: tuple
    decode: Callable
    image_shape: tuple
    note: str = ""
    read: Callable = tf.identity

    def decode_window(self, record, boxes_of):
        """The part of an image that its crops cover; of a JPEG, the rest is not decoded.

        Args:
            record: of the image.
            boxes_of: of its height and width, to the window and the crops, as `views.crop_boxes`.

        Returns:
            The window (h,w,3) uint8, and the crops in it (2,4) int32.
        """
        contents = self.read(record)

        def of_jpeg():
            height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(contents))
            window, boxes = boxes_of(height, width)
            return tf.image.decode_and_crop_jpeg(contents, window, 3), boxes

        def of_other():
            image = self.decode(record)
            window, boxes = boxes_of(tf.shape(image)[0], tf.shape(image)[1])
            top, left, height, width = tf.unstack(window)
            return image[top : top + height, left : left + width], boxes

        return tf.cond(tf.io.is_jpeg(contents), of_jpeg, of_other)


def load(config, data_dir=None):
    """The data set that `config` names, in full and in a fixed order.

    Args:
        config: `dataset`, `source` and the splits count: the encoder is trained on `train_split`,
            classifiers on `probe_split`, if that is another, and both are scored on `test_split`.
        data_dir: where TFDS keeps prepared data, None for its own default; or the folder of images.

    Raises:
        InputError: an unknown name or split, data that is neither prepared nor downloadable, or
            data that is not images of one or three channels with a class each.
    """
    if config.source == "photo_patches":
        return photo_patches()
    if data_dir is not None and not pathlib.Path(data_dir).is_dir():
        raise InputError(f"data_dir must be an existing directory. Received: data_dir={data_dir}")
    return (from_folder if config.source == "folder" else from_tfds)(config, data_dir)


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

    for name, pairs in splits.items():
        generator.shuffle(pairs)
        images, labels = map(np.stack, zip(*pairs, strict=True))
        splits[name] = Split(tf.data.Dataset.from_tensor_slices((images, labels)), len(labels))
    train, test = splits.values()
    return Data(train, train, test, PHOTOGRAPHS, lambda image: image, (size, size))


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

    def decode(record):
        pixels = image.decode_example(record)
        return tf.image.grayscale_to_rgb(pixels) if gray else pixels

    def split(name):
        try:
            size = builder.info.splits[name].num_examples
        except (KeyError, ValueError) as error:
            raise InputError(
                f"The splits of {config.dataset} are {', '.join(builder.info.splits)}, whole or in "
                f"part as in train[:10%]. Received: {name!r}"
            ) from error
        encoded = builder.as_dataset(split=name, decoders={"image": tfds.decode.SkipDecoding()})
        return Split(encoded.map(lambda example: (example["image"], example["label"])), size)

    train, test = split(config.train_split), split(config.test_split)
    return Data(
        train,
        split(config.probe_split) if config.probe_split else train,
        test,
        tuple(label.names),
        decode,
        image.shape[:2],
        "grey images, repeated to three channels" if gray else "",
    )


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


def from_folder(config, folder):
    """Images in `folder`/<split>/<class>/, or all in `folder`/<train split>/, without classes.

    Raises:
        InputError: a folder without images, or classes that differ between the splits.
    """
    train, test = (
        pathlib.Path(folder or "") / name for name in (config.train_split, config.test_split)
    )
    if folder is None or not train.is_dir():
        raise InputError(
            f"data_dir must name a folder with {config.train_split}/<class>/ and "
            f"{config.test_split}/<class>/, or with images in {config.train_split}/. "
            f"Received: data_dir={folder}"
        )
    class_names = _subfolders(train)
    if not class_names:
        unlabelled = _files(train, {"": UNLABELLED})
        return Data(unlabelled, None, None, (), _decode_file, (None, None), read=tf.io.read_file)
    if _subfolders(test) != class_names:
        different = sorted(set(class_names) ^ set(_subfolders(test)))
        raise InputError(
            f"{train} and {test} must hold the same classes. Received: {len(class_names)} and "
            f"{len(_subfolders(test))}, of which only one has {', '.join(different[:5])}"
        )
    labels = {name: label for label, name in enumerate(class_names)}
    train, test = _files(train, labels), _files(test, labels)
    return Data(train, train, test, class_names, _decode_file, (None, None), read=tf.io.read_file)


def _subfolders(folder):
    return tuple(sorted(path.name for path in folder.glob("*/")))


def _files(folder, labels):
    """The images in the subfolders of `folder` that `labels` names, in a fixed random order."""
    examples = []
    for name, label in labels.items():
        files = sorted((folder / name).rglob("*"))
        found = [(str(file), label) for file in files if file.suffix.lower() in EXTENSIONS]
        if not found:
            raise InputError(
                f"Images must end in {', '.join(EXTENSIONS)}. Received: {folder / name}, which "
                "holds none"
            )
        examples += found
    # By class, as they are on disk, no shuffle buffer would mix them.
    np.random.default_rng(0).shuffle(examples)
    paths, labels = zip(*examples, strict=True)
    labels = np.array(labels, "int64")
    return Split(tf.data.Dataset.from_tensor_slices((list(paths), labels)), len(labels))


def _decode_file(path):
    image = tf.io.decode_image(tf.io.read_file(path), 3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))
