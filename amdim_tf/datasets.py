"""Data sets: a name becomes uint8 images with labels, for training and for testing."""

import dataclasses
import hashlib
import os
import pathlib
import sys
import threading
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from amdim_tf.config import known_configs, nearest
from amdim_tf.errors import InputError
from amdim_tf.preprocess import decode, plausible
from amdim_tf.splits import LABEL, Split, in_files, in_memory

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
# Of a record of TFDS.
PARSED = {"image": tf.io.FixedLenFeature((), tf.string)} | LABEL
# Bad images that are named on the screen while a run goes on.
SHOWN = 10
# Labels of larger splits are not read before training.
SMALL_BYTES = 2**28


class Failures:
    """The images that could not be used: `names`, each once, in the order they were met.

    Any thread may `add` to them; the first few are named on stderr, too. Of several workers each
    knows those that it met.

    Args:
        images: the number of training images.
        allowed: the part of them that may be bad.
    """

    def __init__(self, images, allowed):
        self.images, self.allowed = images, allowed
        self._names, self._lock = {}, threading.Lock()

    @property
    def names(self):
        with self._lock:
            return list(self._names)

    def add(self, name):
        """Notes that the image `name` is bad, unless that is known."""
        with self._lock:
            if name not in self._names and len(self._names) < SHOWN:
                print(f"Skipped a bad image: {name}", file=sys.stderr, flush=True)
            self._names[name] = True

    def check(self):
        """Raises `InputError` if more images are bad than are allowed to be."""
        names = self.names
        if len(names) > self.allowed * self.images:
            raise InputError(
                f"bad_images={self.allowed:g} is the part of the {self.images} training images "
                f"that may be bad. Received: {len(names)} that cannot be decoded or have no valid "
                f"label, first {', '.join(names[:5])}"
            )


def fingerprint(record):
    """A name for the bytes of an image that has no other."""
    return f"{len(record)} bytes with SHA-256 {hashlib.sha256(record).hexdigest()}"


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set.

    Records are small, so that shuffling and skipping them costs little: the bytes of a file or its
    name, which `read` makes bytes. `decode` makes a record an image (H,W,3) uint8, of the same
    `image_shape` (H,W) for all, or of any, (None, None). The label of images without class is -1;
    without classes `probe` and `test` are None. `note` says what was done to the images so that
    they fit, if anything. Images that turn out to be bad are known to `failures`, by the `name` of
    the bytes of their record.
    """

    train: Split
    probe: Split | None
    test: Split | None
    class_names: tuple
    decode: Callable
    image_shape: tuple
    note: str = ""
    read: Callable = tf.identity
    name: Callable = fingerprint
    failures: Failures = dataclasses.field(default_factory=lambda: Failures(0, 0))

    def lose(self, records):
        """Tells `failures` of bad images, by an array of their records (N,)."""
        for record in records:
            self.failures.add(self.name(record))

    def decode_window(self, record, boxes_of):
        """The part of an image that its crops cover; of a JPEG, the rest is not decoded.

        Args:
            record: of the image.
            boxes_of: of its height and width, to the window and the crops, as `views.crop_boxes`.

        Returns:
            The window (h,w,3) uint8, and the crops in it (2,4) int32.
        """
        contents = plausible(self.read(record))

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
    if config.source in ("photo_patches", "photo_pairs"):
        return (photo_patches if config.source == "photo_patches" else photo_pairs)()
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
    train, test = (in_memory(*each) for each in _patches(size, train_count, test_count, seed))
    return Data(train, train, test, PHOTOGRAPHS, lambda image: image, (size, size))


def photo_pairs(size=32, train_count=300, test_count=60, seed=0):
    """The patches of `photo_patches`, the right half of each from one of another photograph.

    The class is still that of the left half. What tells the halves apart is what mixture features
    may find.
    """
    generator, splits = np.random.default_rng(seed), []
    for images, labels in _patches(size, train_count, test_count, seed):
        others = [generator.choice(np.flatnonzero(labels != label)) for label in labels]
        pairs = np.concatenate([images[:, :, : size // 2], images[others, :, size // 2 :]], axis=2)
        splits.append(in_memory(pairs, labels))
    train, test = splits
    return Data(train, train, test, PHOTOGRAPHS, lambda image: image, (size, size))


def _patches(size, train_count, test_count, seed):
    """Images (N,size,size,3) and labels (N,) of `photo_patches`, to train on and to test on."""
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

    for pairs in splits.values():
        generator.shuffle(pairs)
        yield tuple(map(np.stack, zip(*pairs, strict=True)))


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

    def pair(example):
        return example["image"], example["label"]

    def split(name, lowest):
        try:
            size = builder.info.splits[name].num_examples
        except (KeyError, ValueError) as error:
            raise InputError(
                f"The splits of {config.dataset} are {', '.join(builder.info.splits)}, whole or in "
                f"part as in train[:10%]. Received: {name!r}"
            ) from error
        if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
            skip = {"image": tfds.decode.SkipDecoding()}
            examples = builder.as_dataset(split=name, decoders=skip).map(pair)
            return Split(examples, size, f"{builder.info.full_name}/{name}")
        instructions = [
            (str(one.filename), one.skip, one.take, _bytes(one))
            for one in builder.info.splits[name].file_instructions
        ]
        read = in_files(
            instructions, lambda record: pair(tf.io.parse_single_example(record, PARSED))
        )
        if sum(length for *_, length in instructions) <= SMALL_BYTES:
            _check_labels(read.labels(), lowest, len(label.names), name)
        return read

    train = split(config.train_split, lowest=UNLABELLED)
    test = split(config.test_split, lowest=0)
    return Data(
        train,
        split(config.probe_split, lowest=0) if config.probe_split else train,
        test,
        tuple(label.names),
        decode,
        image.shape[:2],
        "grey images, repeated to three channels" if gray else "",
        failures=Failures(train.size, config.bad_images),
    )


def _bytes(instruction):
    """Of the records that TFDS's `instruction` takes from a file, about."""
    length = tf.io.gfile.stat(str(instruction.filename)).length
    return length * instruction.take // instruction.examples_in_shard


def _check_labels(labels, lowest, classes, name):
    """Raises `InputError` for a label that is neither in `lowest` to `classes` - 1."""
    wrong = labels[(labels < lowest) | (labels >= classes)]
    if wrong.size:
        raise InputError(
            f"Labels must be in {lowest}..{classes - 1}. Received: {wrong.size} others in the "
            f"files of {name}, the first of them {wrong[0]}"
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
    if class_names and _subfolders(test) != class_names:
        different = sorted(set(class_names) ^ set(_subfolders(test)))
        raise InputError(
            f"{train} and {test} must hold the same classes. Received: {len(class_names)} and "
            f"{len(_subfolders(test))}, of which only one has {', '.join(different[:5])}"
        )
    if class_names:
        labels = {name: label for label, name in enumerate(class_names)}
        train, test = _files(train, labels), _files(test, labels)
    else:
        train, test = _files(train, {"": UNLABELLED}), None
    return Data(
        train,
        train if class_names else None,
        test,
        class_names,
        lambda path: decode(tf.io.read_file(path)),
        (None, None),
        read=tf.io.read_file,
        name=os.fsdecode,
        failures=Failures(train.size, config.bad_images),
    )


def _subfolders(folder):
    return tuple(sorted(path.name for path in folder.glob("*") if path.is_dir()))


def _files(folder, labels):
    """The images in the subfolders of `folder` that `labels` names, in a fixed random order."""
    paths, of_paths = [], []
    for name, label in labels.items():
        found = [path for path in walk(folder / name) if path.lower().endswith(EXTENSIONS)]
        if not found:
            raise InputError(
                f"Images must end in {', '.join(EXTENSIONS)}. Received: {folder / name}, which "
                "holds none"
            )
        paths += found
        of_paths += [label] * len(found)
    # By class, as they are on disk, no shuffle buffer would mix them.
    order = np.random.default_rng(0).permutation(len(paths))
    return in_memory([os.fsencode(paths[i]) for i in order], np.array(of_paths, "int64")[order])


def walk(folder):
    """Paths of the files in `folder` and its subfolders, in order, without links to folders."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path)
            elif not entry.is_dir():
                yield entry.path
