"""Features of many images, in parts of which each is written whole or not at all.

A part depends on the job alone, so it does not matter who computes it, or how often: one process,
the workers of a pipeline of Apache Beam, or either again after a crash. Paths may be of any file
system that TensorFlow knows.
"""

import dataclasses
import functools
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
import tensorflow_datasets as tfds
from tqdm import tqdm

from amdim_tf.datasets import EXTENSIONS
from amdim_tf.errors import InputError
from amdim_tf.loading import load_encoder, load_preprocess
from amdim_tf.pipeline import transformed

PART_IMAGES = 1024
BATCH = 64
# Of the `tf.train.Example`s that are read.
IMAGE, NAME = "image/encoded", "image/filename"


@dataclasses.dataclass(frozen=True)
class Job:
    """What to embed, and where to.

    Args:
        encoder: a run directory or a version of an export.
        output: a folder.
        format: "parquet" or "tfrecord".
        source: "folder", "tfds" or "tfrecords".
        path: a folder of images; DATASET/SPLIT of TFDS, such as "cifar10/test"; or a pattern of
            files of `tf.train.Example`s with `image/encoded` and perhaps `image/filename`.
        data_dir: of TFDS.
    """

    encoder: str
    output: str
    format: str
    source: str
    path: str
    data_dir: str | None = None

    def parts(self):
        """What each part is made of: lists of files, slices of a split, or one file.

        Raises:
            InputError: nothing is there.
        """
        if self.source == "tfds":
            return self._slices()
        if self.source == "folder":
            found = list(image_files(self.path))
            parts = [found[i : i + PART_IMAGES] for i in range(0, len(found), PART_IMAGES)]
        else:
            parts = tf.io.gfile.glob(self.path)
        if not parts:
            raise InputError(
                f"{self.source} must name at least one image file ({', '.join(EXTENSIONS)}) or "
                f"TFRecord. Received: {self.path}"
            )
        return parts

    def _slices(self):
        name, _, split = self.path.rpartition("/")
        try:
            size = self._builder().info.splits[split].num_examples
        except (KeyError, ValueError, tfds.core.DatasetNotFoundError) as error:
            raise InputError(
                "tfds must be DATASET/SPLIT of a prepared data set, such as cifar10/test. "
                f"Received: {self.path}, in data_dir={self.data_dir}"
            ) from error
        starts = range(0, size, PART_IMAGES)
        return [f"{split}[{i}:{min(i + PART_IMAGES, size)}]" for i in starts]

    def _builder(self):
        return tfds.builder(self.path.rpartition("/")[0], data_dir=self.data_dir)

    def images(self, part):
        """The dataset of (name, image) of a `part`, strings, of which `read` makes the contents."""
        if self.source == "folder":
            return tf.data.Dataset.from_tensor_slices((part, part))
        if self.source == "tfrecords":
            return tf.data.TFRecordDataset(part).enumerate().map(functools.partial(_parse, part))
        examples = self._builder().as_dataset(
            split=part,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(add_tfds_id=True),
        )
        return examples.map(lambda example: (example["tfds_id"], example["image"]))

    def read(self, image):
        """The contents of an `image`, both string scalars."""
        return tf.io.read_file(f"{self.path}/" + image) if self.source == "folder" else image


def image_files(folder):
    """Paths of the images in `folder`, relative to it, in order."""
    for where, folders, names in tf.io.gfile.walk(folder):
        folders.sort()
        inside = where[len(folder) :].strip("/")
        for name in sorted(names):
            if name.lower().endswith(EXTENSIONS):
                yield f"{inside}/{name}".lstrip("/")


def _parse(file, place, record):
    features = {name: tf.io.FixedLenFeature((), tf.string, "") for name in (IMAGE, NAME)}
    example = tf.io.parse_single_example(record, features)
    place = tf.strings.join([file, tf.strings.as_string(place)], "#")
    return tf.where(example[NAME] == "", place, example[NAME]), example[IMAGE]


def embed(job, runner=None, beam_options=()):
    """Writes what is missing of `job`: f1 of each image, by name.

    Args:
        job: a `Job`.
        runner: of Apache Beam, for a pipeline; by default this process does it all.
        beam_options: more of its options, such as "--region=europe-west1".

    Returns:
        Names of what is no image that can be decoded, and so has no features.

    Raises:
        InputError: the output belongs to another job, or there is nothing to embed.
    """
    parts = job.parts()
    _functions(job)  # a wrong encoder ends here, before the output is this job's
    _claim(job, parts)
    targets = [
        f"{job.output}/part-{number:05d}-of-{len(parts):05d}.{job.format}"
        for number in range(len(parts))
    ]
    missing = [
        (part, target)
        for part, target in zip(parts, targets, strict=True)
        if not tf.io.gfile.exists(target)
    ]
    work = functools.partial(embed_part, job)
    if runner is None:
        for item in tqdm(missing, "parts", total=len(parts), initial=len(parts) - len(missing)):
            work(item)
    else:
        _run_pipeline(missing, work, [f"--runner={runner}", *beam_options])
    broken = []
    for path in sorted(tf.io.gfile.glob(f"{job.output}/*.broken.txt")):
        with tf.io.gfile.GFile(path) as file:
            broken += file.read().splitlines()
    return broken


def embed_part(job, item):
    """Computes and writes an `item`, (part, target), of `job`; each image is read once."""
    part, target = item
    prepare, embed_batch = _functions(job)

    def decode(names, images):
        count = tf.size(names, tf.int64)
        good = transformed(prepare, tf.range(count), count, images)
        return good.map(lambda places, images: (names, places[:-1], images[:-1]))

    batches = job.images(part).batch(BATCH).flat_map(decode).prefetch(tf.data.AUTOTUNE)
    names, features, broken = [], [], []
    for all_names, places, images in batches.as_numpy_iterator():
        lost = np.setdiff1d(np.arange(len(all_names)), places)
        names += [all_names[place].decode() for place in places]
        broken += [all_names[place].decode() for place in lost]
        if len(places):
            features += list(embed_batch(images).numpy())
    if broken:
        write_whole(f"{target}.broken.txt", write_text, "\n".join(broken))
    write_whole(target, WRITERS[job.format], names, features)


@functools.cache
def _functions(job):
    """What is traced once for all parts: of an image to a normalised one, and of those to f1."""
    encoder, preprocess = load_encoder(job.encoder, "f1"), load_preprocess(job.encoder)
    shape = (None, preprocess.image_size, preprocess.image_size, 3)
    prepare = tf.function(
        lambda image: preprocess.file(job.read(image)), [tf.TensorSpec((), tf.string)]
    )
    return prepare, tf.function(encoder, [tf.TensorSpec(shape, tf.float32)], autograph=False)


def write_parquet(names, features, path):
    """A Parquet file with the columns name (string) and f1 (list of float32)."""
    rows = {"name": pa.array(names, pa.string()), "f1": pa.array(features, pa.list_(pa.float32()))}
    with tf.io.gfile.GFile(path, "wb") as file:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(rows), sink)
        file.write(sink.getvalue().to_pybytes())


def write_tfrecord(names, features, path):
    """A TFRecord file of `tf.train.Example`s with name (bytes) and f1 (floats)."""
    with tf.io.TFRecordWriter(path) as records:
        for name, f1 in zip(names, features, strict=True):
            feature = {
                "name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name.encode()])),
                "f1": tf.train.Feature(float_list=tf.train.FloatList(value=f1)),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            records.write(example.SerializeToString())


WRITERS = {"parquet": write_parquet, "tfrecord": write_tfrecord}


def write_text(text, path):
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(text)


def write_whole(path, write, *contents):
    """Calls `write(*contents, path)` such that a crash leaves no `path` in part."""
    beside = f"{path}.unfinished"
    write(*contents, beside)
    tf.io.gfile.rename(beside, path, overwrite=True)


def _run_pipeline(items, work, options):
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise InputError("runner needs Apache Beam: pip install 'amdim_tf[beam]'") from error
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        _ = pipeline | beam.Create(items) | beam.Reshuffle() | beam.Map(work)


def _claim(job, parts):
    """Makes the output folder this job's.

    Raises:
        InputError: it is another's.
    """
    own = dataclasses.asdict(job) | {
        "parts": hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    }
    path = f"{job.output}/embedding.json"
    tf.io.gfile.makedirs(job.output)
    if not tf.io.gfile.exists(path):
        write_whole(path, write_text, json.dumps(own, indent=2))
        return
    with tf.io.gfile.GFile(path) as file:
        other = json.load(file)
    differing = [name for name in own if own[name] != other.get(name)]
    if differing:
        raise InputError(
            f"output={job.output} belongs to another job, which differs in {', '.join(differing)}; "
            "name another folder"
        )
