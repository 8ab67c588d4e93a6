"""Image sets of TensorFlow Datasets, read from their files."""

import tensorflow as tf
import tensorflow_datasets as tfds

from amdim_tf.config import known_configs, nearest
from amdim_tf.data.array_records import in_array_records
from amdim_tf.data.channels import decode
from amdim_tf.data.data import UNLABELLED, Data
from amdim_tf.data.failures import Failures
from amdim_tf.data.splits import LABEL, Split, in_files
from amdim_tf.errors import InputError, one_line
from amdim_tf.typing import Config

# Features of a record.
IMAGE = {"image": tf.io.FixedLenFeature((), tf.string)}
PARSED = IMAGE | LABEL
# What reads records from any place of a split, by the kind of its files.
READERS = {
    tfds.core.FileFormat.TFRECORD: in_files,
    tfds.core.FileFormat.ARRAY_RECORD: in_array_records,
}
# Labels of larger splits are not read before training.
SMALL_BYTES = 2**28


def from_tfds(config: Config, data_dir: str | None) -> Data:
    """An image set of TFDS, prepared if need be; see `sources.load`.

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
    # TFDS does not document what it raises for a wrong config or version.
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
    channels, found, depth = config.channels, image.shape[-1], tf.as_dtype(image.dtype)
    valid = found in (1, 3) and depth == tf.uint8
    if channels != 3:
        valid = (found == channels or channels == 1) and depth in (tf.uint8, tf.uint16)
    if not valid:
        raise InputError(
            "Images must have 1 or 3 channels of 8 bits, or with --config.channels=N other than 3 "
            f"N channels of 8 or 16 bits. Received: {config.dataset} with images {image.shape} "
            f"{depth.name}, and channels={channels}"
        )
    gray = found == 1 and channels == 3
    classes: tuple = ()
    if isinstance(label, tfds.features.ClassLabel) and config.labels != "none":
        classes = tuple(label.names)
    notes = ["grey images, repeated to three channels"] * gray
    notes += ["colour images, turned grey"] * (channels == 1 < found)
    notes += ["no label of classes"] * (not isinstance(label, tfds.features.ClassLabel))

    def decode_any(record):
        return decode(record, channels)

    def decode_fixed(record):
        pixels = image.decode_example(record)
        return tf.image.grayscale_to_rgb(pixels) if gray else pixels

    def pair(example):
        unlabelled = tf.constant(UNLABELLED, tf.int64)
        return example["image"], example["label"] if classes else unlabelled

    def parse(record):
        return pair(tf.io.parse_single_example(record, PARSED if classes else IMAGE))

    mask = _mask(features)

    def masks(kind):
        name = config.test_split if kind == "test" else config.probe_split or config.train_split
        skip = {key: tfds.decode.SkipDecoding() for key in ("image", mask)}
        in_order = tfds.ReadConfig(interleave_cycle_length=1)
        examples = builder.as_dataset(split=name, decoders=skip, read_config=in_order)
        return examples.map(lambda example: (example["image"], example[mask]))

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
        decode_any if None in image.shape[:2] or channels != 3 else decode_fixed,
        image.shape[:2],
        ", ".join(notes),
        failures=Failures(train.size, config.bad_images),
        channels=channels,
        masks=masks if mask else None,
    )


def _mask(features):
    """The name of the feature that is a mask: the only other image, of one channel; None without.

    Its pixels are the numbers of classes.
    """
    found = [
        name
        for name, feature in features.items()
        if isinstance(feature, tfds.features.Image)
        and name != "image"
        and feature.shape[-1] == 1
        and tf.as_dtype(feature.dtype) == tf.uint8
    ]
    return found[0] if len(found) == 1 else None


def _bytes(instruction):
    """About how many bytes the records have that TFDS's `instruction` takes from a file."""
    length = tf.io.gfile.stat(str(instruction.filename)).length
    return length * instruction.take // instruction.examples_in_shard


def _check_labels(labels, lowest, classes, name):
    """Raises `InputError` for a label that is not in `lowest` to `classes` - 1."""
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
