"""Data sets: a name becomes uint8 images with labels, for training and for testing."""

import dataclasses
import hashlib
import os
import sys
import threading
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from amdim_tf.array_records import in_array_records
from amdim_tf.config import known_configs, nearest
from amdim_tf.decoding import decode, plausible, reason
from amdim_tf.errors import InputError, one_line
from amdim_tf.exif import orientation
from amdim_tf.files import printable, readable
from amdim_tf.folders import EXTENSIONS, PassedOver, images_in, subfolders, walk
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
UNLABELLED = -1
# Of a record of TFDS.
IMAGE = {"image": tf.io.FixedLenFeature((), tf.string)}
PARSED = IMAGE | LABEL
# What reads records from any place of a split, by the kind of its files.
READERS = {
    tfds.core.FileFormat.TFRECORD: in_files,
    tfds.core.FileFormat.ARRAY_RECORD: in_array_records,
}
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
        self._reasons, self._lock = {}, threading.Lock()

    @property
    def names(self):
        return list(self.reasons)

    @property
    def reasons(self):
        """{name: why it could not be used}."""
        with self._lock:
            return dict(self._reasons)

    def __contains__(self, name):
        with self._lock:
            return name in self._reasons

    def add(self, name, why):
        """Notes that the image `name` is bad, unless that is known."""
        with self._lock:
            if name not in self._reasons and len(self._reasons) < SHOWN:
                print(f"Skipped a bad image: {printable(name)}: {why}", file=sys.stderr, flush=True)
            self._reasons.setdefault(name, why)

    def check(self):
        """Raises `InputError` if more images are bad than are allowed to be."""
        names = self.names
        if len(names) > self.allowed * self.images:
            raise InputError(
                f"bad_images={self.allowed:g} is the part of the {self.images} training images "
                f"that may be bad. Received: {len(names)} that cannot be decoded or have no valid "
                f"label, first {', '.join(map(printable, names[:5]))}"
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

    def record(self):
        """What a run is trained on, as JSON has it: classes, and numbers and digests of images."""
        splits = {name: getattr(self, name) for name in ("train", "probe", "test")}
        return {"classes": list(self.class_names)} | {
            name: split and {"images": split.size, "digest": split.digest}
            for name, split in splits.items()
        }

    def lose(self, records):
        """Tells `failures` of bad images, by an array of their records (N,)."""
        for record in records:
            name = self.name(record)
            if name not in self.failures:
                self.failures.add(name, self._why(record))

    def _why(self, record):
        try:
            contents = self.read(tf.constant(record)).numpy()
        except tf.errors.OpError:
            return "it cannot be read"
        return reason(contents) or "another shape than the others', or no valid label"

    def decode_window(self, record, boxes_of):
        """The part of an image that its crops cover; of a JPEG, if upright, no more is decoded.

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

        upright = tf.io.is_jpeg(contents) & (orientation(contents) == 1)
        return tf.cond(upright, of_jpeg, of_other)


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
    if data_dir is not None:
        data_dir = readable(data_dir, "data_dir")
        if not tf.io.gfile.isdir(data_dir):
            raise InputError(f"data_dir must be an existing folder. Received: data_dir={data_dir}")
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
    """An image set of TFDS, prepared if need be; see `load`.

    Without a `label` of classes, it is for the encoder alone.
    """
    try:
        builder = tfds.builder(config.dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        near = nearest(config.dataset, {*known_configs(), *tfds.list_builders()})
        raise InputError(
            f"dataset must be one of {', '.join(known_configs())} or an image-classification set "
            f"of TFDS; the nearest names are {near}. Received: dataset={config.dataset!r}"
        ) from error
    # What TFDS makes of a wrong config or version, it does not document.
    except Exception as error:  # noqa: BLE001
        raise InputError(
            "dataset must be NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION of a set, a "
            f"config and a version that TFDS has: {one_line(error)}. "
            f"Received: dataset={config.dataset!r}"
        ) from error
    _prepare(builder)

    features = dict(builder.info.features)
    image, label = (features.get(key) for key in ("image", "label"))
    if not isinstance(image, tfds.features.Image):
        raise InputError(
            "A data set needs the feature image. "
            f"Received: {config.dataset} with {', '.join(features)}"
        )
    if image.shape[-1] not in (1, 3) or tf.as_dtype(image.dtype) != tf.uint8:
        raise InputError(
            "Images must have 1 or 3 channels of 8 bits; convert others beforehand. "
            f"Received: {config.dataset} with images {image.shape} {tf.as_dtype(image.dtype).name}"
        )
    gray = image.shape[-1] == 1
    classes = ()
    if isinstance(label, tfds.features.ClassLabel) and config.labels != "none":
        classes = tuple(label.names)
    notes = ["grey images, repeated to three channels"] * gray
    notes += ["no label of classes"] * (not isinstance(label, tfds.features.ClassLabel))

    def decode_fixed(record):
        pixels = image.decode_example(record)
        return tf.image.grayscale_to_rgb(pixels) if gray else pixels

    def pair(example):
        unlabelled = tf.constant(UNLABELLED, tf.int64)
        return example["image"], example["label"] if classes else unlabelled

    def parse(record):
        return pair(tf.io.parse_single_example(record, PARSED if classes else IMAGE))

    def split(name, lowest):
        try:
            size = builder.info.splits[name].num_examples
        except (KeyError, ValueError, AssertionError) as error:
            raise InputError(
                f"The splits of {config.dataset} are {', '.join(builder.info.splits)}, complete or "
                f"a slice as in train[:10%]. Received: {name!r}"
            ) from error
        if size <= 0:
            raise InputError(
                f"A split must have images. Received: {name!r} of {config.dataset}, which is empty"
            )
        if builder.info.file_format not in READERS:
            skip = {"image": tfds.decode.SkipDecoding()}
            examples = builder.as_dataset(split=name, decoders=skip).map(pair)
            return Split(examples, size, f"{builder.info.full_name}/{name}")
        try:
            instructions = [
                (str(one.filename), one.skip, one.take, _bytes(one))
                for one in builder.info.splits[name].file_instructions
            ]
            read = READERS[builder.info.file_format](instructions, parse)
            if not classes or sum(length for *_, length in instructions) > SMALL_BYTES:
                return read
            labels = read.labels()
        except tf.errors.OpError as error:
            raise InputError(
                f"The files of {config.dataset} must be there and intact: {one_line(error)}. "
                f"Received: {name} in {builder.data_dir}"
            ) from error
        _check_labels(labels, lowest, len(classes), name)
        return read

    train, probe, test = split(config.train_split, lowest=UNLABELLED), None, None
    if classes:
        probe = split(config.probe_split, lowest=0) if config.probe_split else train
        test = split(config.test_split, lowest=0)
    return Data(
        train,
        probe,
        test,
        classes,
        decode if None in image.shape[:2] else decode_fixed,
        image.shape[:2],
        ", ".join(notes),
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
        raise InputError(
            f"{builder.name} is not prepared in {builder.data_dir} and could not be downloaded "
            f"({one_line(error)}); prepare it with: tfds build {builder.name} --data_dir=DIR"
        ) from error


def from_folder(config, folder):
    """Images in `folder`/<split>/<class>/, or without classes all in `folder`/<train split>/.

    Raises:
        InputError: a folder without images, or classes that differ between the splits.
    """
    train, test = (f"{folder}/{name}" for name in (config.train_split, config.test_split))
    if folder is None or not tf.io.gfile.isdir(train):
        raise InputError(
            f"data_dir must name a folder with {config.train_split}/<class>/ and "
            f"{config.test_split}/<class>/, or with images in {config.train_split}/. "
            f"Received: data_dir={folder}"
        )
    classes = [] if config.labels == "none" else subfolders(train)
    of_test = subfolders(test) if classes and tf.io.gfile.isdir(test) else []
    if classes != of_test:
        different = sorted(set(classes) ^ set(of_test))
        raise InputError(
            f"{train} and {test} must hold the same classes; --config.labels=none trains on images "
            f"in any subfolders without classes. Received: {len(classes)} and {len(of_test)}; only "
            f"one of the folders has {', '.join(map(printable, different[:5]))}"
        )
    passed_over = PassedOver()
    if classes:
        labels = {name: label for label, name in enumerate(classes)}
        train, test = (_files(split, labels, passed_over) for split in (train, test))
    else:
        train, test = _files(train, {"": UNLABELLED}, passed_over), None
    return Data(
        train,
        train if classes else None,
        test,
        tuple(map(printable, classes)),
        lambda path: decode(tf.io.read_file(path)),
        (None, None),
        str(passed_over),
        read=tf.io.read_file,
        name=os.fsdecode,
        failures=Failures(train.size, config.bad_images),
    )


def _files(folder, labels, passed_over):
    """The images in the subfolders of `folder` that `labels` names, in a fixed random order."""
    names, of_names = [], []
    for name, label in labels.items():
        passed = PassedOver()
        found = [f"{name}/{path}".lstrip("/") for path in walk(f"{folder}/{name}", passed)]
        passed_over.update(passed)
        if not found:
            raise InputError(
                f"Images must end in {', '.join(EXTENSIONS)}. Received: "
                f"{printable(f'{folder}/{name}')}, which holds none ({passed or 'it is empty'})"
            )
        names += found
        of_names += [label] * len(found)
    if "" not in labels:
        passed_over["images outside of the folders of the classes"] += len(images_in(folder))
    # By class, as they are on disk, no shuffle buffer would mix them.
    order = np.random.default_rng(0).permutation(len(names))
    names, of_names = [names[i] for i in order], np.array(of_names, "int64")[order]
    digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
    digest.update(of_names.tobytes())
    return in_memory([os.fsencode(f"{folder}/{name}") for name in names], of_names, digest)
