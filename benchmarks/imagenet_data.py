"""Makes data of ImageNet's size in the layout of TFDS: its counts and files, but tiny JPEGs.

    python benchmarks/imagenet_data.py DIR

writes 1,281,167 training and 50,000 validation records (1.4 GB) in half a minute. Each class has
colours of its own, so that an encoder can learn something.
"""

import argparse
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

COUNTS = {"train": 1281167, "validation": 50000}
# Files of each split, as TFDS prepares ImageNet.
FILES = {"train": 1024, "validation": 64}
CLASSES = 1000
# Different images of a class; records repeat them.
VARIANTS = 4


def make(folder, name="imagenet2012", counts=COUNTS, files=FILES, classes=CLASSES, sides=(40, 64)):
    """Writes a data set to `folder`, for `tfds.builder(name, data_dir=folder)`.

    Args:
        folder: a directory; what it holds of the set is replaced.
        name: of a set of TFDS with images and labels.
        counts, files: {split: number} of records, and of the files that they are in, 1 by default.
        classes: how many of its classes occur.
        sides: of the images, the least and the largest, in pixels.
    """
    builder = tfds.builder_cls(name)
    target = pathlib.Path(folder) / name / str(builder.VERSION)
    target.mkdir(parents=True, exist_ok=True)
    features = builder(data_dir=folder).info.features
    records = _records(classes, sides)
    generator, infos = np.random.default_rng(0), []
    for split, count in counts.items():
        shards = files.get(split, 1)
        lengths = np.diff(np.linspace(0, count, shards + 1).astype(int)).tolist()
        template = tfds.core.ShardedFileTemplate(
            data_dir=target, dataset_name=name, split=split, filetype_suffix="tfrecord"
        )
        labels = generator.permutation(np.arange(count) % classes)
        variants = generator.integers(0, VARIANTS, count)
        place, size = 0, 0
        for number, length in enumerate(lengths):
            path = template.sharded_filepath(shard_index=number, num_shards=shards)
            with tf.io.TFRecordWriter(str(path)) as writer:
                for i in range(place, place + length):
                    writer.write(records[labels[i]][variants[i]])
                    size += len(records[labels[i]][variants[i]])
            place += length
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=size, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=target, features=features, split_infos=infos, check_data=False
    )


def _records(classes, sides):
    """Serialised examples [class][variant]."""
    generator, made = np.random.default_rng(1), []
    for label in range(classes):
        colours = generator.integers(0, 256, (2, 2, 3))
        made.append([])
        for variant in range(VARIANTS):
            shape = generator.integers(*sides, 2, endpoint=True)
            pixels = tf.image.resize(colours, shape) + generator.normal(0, 20, (*shape, 3))
            image = tf.io.encode_jpeg(
                tf.cast(tf.clip_by_value(pixels, 0, 255), "uint8"), quality=60
            )
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.numpy()])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                "file_name": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[f"{label}_{variant}.JPEG".encode()])
                ),
            }
            feature["id"] = feature["file_name"]  # as CIFAR-10 calls it
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            made[-1].append(example.SerializeToString())
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    make(parser.parse_args().folder)
