"""Image sets of TensorFlow Datasets, read from their files."""

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from amdim_tf.config import known_configs, nearest
from amdim_tf.data.array_records import in_array_records
from amdim_tf.data.channels import BEYOND, IN_GREY, NUMBERS, WHITE, decode, reason, scaled
from amdim_tf.data.data import UNLABELLED, Data
from amdim_tf.data.failures import Failures
from amdim_tf.data.splits import Split, in_files
from amdim_tf.errors import InputError, one_line
from amdim_tf.typing import Config

# What reads records from any place of a split, by the kind of its files.
READERS = {
    tfds.core.FileFormat.TFRECORD: in_files,
    tfds.core.FileFormat.ARRAY_RECORD: in_array_records,
}
# Pixels that are stored as a PNG or JPEG; others are numbers of the record.
FILES = ("uint8", "uint16")
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
    key = _image(features, config)
    image, label = features[key], features.get("label")
    channels, found = config.channels, image.shape[-1]
    arrays = not isinstance(image, tfds.features.Image)
    files = not arrays and dtype_name(image) in FILES
    gray = found == 1 and channels == 3
    classes: tuple = ()
    if isinstance(label, tfds.features.ClassLabel) and config.labels != "none":
        classes = tuple(label.names)
    notes = ["grey images, repeated to three channels"] * gray
    notes += ["colour images, turned grey"] * (channels == 1 < found)
    notes += ["no label of classes"] * (not isinstance(label, tfds.features.ClassLabel))

    def parsed(record):
        return tf.io.parse_tensor(record, image.tf_dtype)

    def decode_any(record):
        if files:
            return decode(record, channels, config.white)
        numbers = parsed(record) if arrays else image.decode_example(record)
        return scaled(tf.ensure_shape(numbers, (*image.shape[:2], None)), channels, config.white)

    def decode_fixed(record):
        pixels = image.decode_example(record)
        return tf.image.grayscale_to_rgb(pixels) if gray else pixels

    def pair(example):
        record = tf.io.serialize_tensor(example[key]) if arrays else example[key]
        return record, example["label"] if classes else tf.constant(UNLABELLED, tf.int64)

    read = {name: features[name] for name in (key, *["label"] * bool(classes))}
    skip = {} if arrays else {key: tfds.decode.SkipDecoding()}

    def parse(record):
        return pair(tfds.features.FeaturesDict(read).deserialize_example(record, decoders=skip))

    mask = None if arrays else _mask(features, key)

    def masks(kind):
        name = config.test_split if kind == "test" else config.probe_split or config.train_split
        packed = {each: tfds.decode.SkipDecoding() for each in (key, mask)}
        in_order = tfds.ReadConfig(interleave_cycle_length=1)
        examples = builder.as_dataset(split=name, decoders=packed, read_config=in_order)
        return examples.map(lambda example: (example[key], example[mask]))

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
        reason=lambda contents: reason(contents, channels, config.white) if files else BEYOND,
        failures=Failures(train.size, config.bad_images),
        channels=channels,
        masks=masks if mask else None,
    )


def _image(features, config):
    """The name of the feature that is the image: `image`, or the only one (H,W,C) of numbers.

    Raises:
        InputError: there is none, or it has other channels or another type than `config` says.
    """
    kinds = {
        name: type(feature)
        for name, feature in features.items()
        if len(getattr(feature, "shape", None) or ()) == 3
        and isinstance(feature, (tfds.features.Image, tfds.features.Tensor))
    }
    key = "image" if "image" in kinds else next(iter(kinds), None)
    if key is None or (key != "image" and len(kinds) > 1):
        raise InputError(
            "A data set needs the feature image, or a single one of the shape (H,W,C). "
            f"Received: {config.dataset} with {', '.join(features)}"
        )
    image, channels = features[key], config.channels
    found, depth = image.shape[-1], dtype_name(image)
    valid = found in (1, 3) and depth == "uint8" and key == "image"
    if channels != 3:
        valid = found == channels or (channels == 1 and found in IN_GREY)
        valid = valid and (depth in WHITE or (config.white and depth in NUMBERS))
    if not valid:
        raise InputError(
            "Images must have 1 or 3 channels of 8 bits, or with --config.channels=N other than 3 "
            f"N channels of {', '.join(WHITE)}, or with --config.white of any numbers. "
            f"Received: {config.dataset} with {key} {image.shape} {depth}, and channels={channels}"
        )
    return key


def dtype_name(feature: tfds.features.FeatureConnector) -> str:
    """The name of the type of a feature's numbers."""
    return np.dtype(feature.np_dtype).name


def _mask(features, image):
    """The name of the feature that is a mask: the only other image, of one channel; or None.

    Its pixels are the numbers of classes.
    """
    found = [
        name
        for name, feature in features.items()
        if isinstance(feature, tfds.features.Image)
        and name != image
        and feature.shape[-1] == 1
        and dtype_name(feature) == "uint8"
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
