"""Features of many images, in chunks; the file of a chunk is written completely or not at all.

A chunk depends on the job alone, so it does not matter who computes it, or how often: one process,
the workers of a pipeline of Apache Beam, or either again after a crash. Paths may be of any file
system that TensorFlow knows.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tqdm import tqdm

from amdim_tf.data.array_records import named_images
from amdim_tf.data.channels import extensions
from amdim_tf.data.folders import PassedOver, walk
from amdim_tf.data.pipeline import transformed
from amdim_tf.data.splits import FRAME_BYTES
from amdim_tf.data.tfds_sets import FILES, dtype_name
from amdim_tf.errors import InputError, one_line
from amdim_tf.evaluation.features import digest
from amdim_tf.files import has_scheme, printable, readable
from amdim_tf.lock import locked
from amdim_tf.serving.feature_files import (
    write_complete,
    write_parquet,
    write_text,
    write_tfrecord,
)
from amdim_tf.serving.loading import load_encoder, load_preprocess
from amdim_tf.typing import Tensor

# Images of a chunk, which becomes one file.
PART_IMAGES = 1024
BATCH = 64
WRITERS = {"parquet": write_parquet, "tfrecord": write_tfrecord}
# Features of the `tf.train.Example`s that are read.
IMAGE, NAME = "image/encoded", "image/filename"
# Files that say what an output is made of. Readers of Parquet folders pass over such names.
CLAIM, NAMES = "_embedding.json", "_names"


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
        data_dir: where TFDS keeps prepared data; None for its default.
    """

    encoder: str
    output: str
    format: str
    source: str
    path: str
    data_dir: str | None = None

    def chunks(self) -> list:
        """What each chunk is made of: lists of names, slices of a split, or one file.

        Raises:
            InputError: nothing is there.
        """
        if self.source == "tfds":
            return self._slices()
        if self.source == "folder":
            found = self._names()
            chunks = [found[i : i + PART_IMAGES] for i in range(0, len(found), PART_IMAGES)]
        else:
            chunks = sorted(tf.io.gfile.glob(self.path))
        if not chunks:
            raise InputError(
                f"{self.source} must name at least one image file "
                f"({', '.join(self._endings())}) or TFRecord. Received: {self.path}"
            )
        return chunks

    def _names(self):
        """Names of the images of the folder, as they were when the job began."""
        if not tf.io.gfile.isdir(self.path):
            return []
        passed_over = PassedOver()
        found = list(walk(self.path, passed_over, self._endings()))
        print(f"Found {len(found)} images in {self.path}. {passed_over}".strip(), flush=True)
        kept = f"{self.output}/{NAMES}"
        if not tf.io.gfile.exists(kept):
            return found
        with tf.io.gfile.GFile(kept, "rb") as file:
            known = os.fsdecode(file.read()).split("\0")
        if added := len(set(found).difference(known)):
            print(f"{added} of them came after the job began, and need another output.", flush=True)
        return known

    def _endings(self):
        return extensions(len(_encoder(self)[1].mean))

    def _slices(self):
        split = self.path.rpartition("/")[2]
        try:
            info = self._builder().info
            size, image = info.splits[split].num_examples, info.features["image"]
        # TFDS does not document what it raises for a wrong name.
        except Exception as error:
            raise InputError(
                "tfds must be DATASET/SPLIT of a prepared set of images, such as cifar10/test: "
                f"{one_line(error)}. Received: {self.path}, in data_dir={self.data_dir}"
            ) from error
        if not isinstance(image, tfds.features.Image) or dtype_name(image) not in FILES:
            raise InputError(
                "tfds must be a set whose feature image is a file of 8 or 16 bits. "
                f"Received: {self.path} with {image}"
            )
        starts = range(0, size, PART_IMAGES)
        return [f"{split}[{i}:{min(i + PART_IMAGES, size)}]" for i in starts]

    def _builder(self):
        return tfds.builder(self.path.rpartition("/")[0], data_dir=self.data_dir)

    def records(self, chunk: Any) -> tf.data.Dataset:
        """The dataset of (origin, record) of a `chunk`, strings.

        An origin tells a record from all others: its name in a folder, or FILE#NUMBER.
        """
        if self.source == "folder":
            names = [os.fsencode(name) for name in chunk]
            return tf.data.Dataset.from_tensor_slices((names, names))
        if self.source == "tfrecords":
            # A file that is cut off gives the records before; `_rows` notices.
            read = tf.data.TFRecordDataset(chunk).ignore_errors()
            return read.enumerate().map(
                lambda place, record: (
                    tf.strings.join([chunk, tf.strings.as_string(place)], "#"),
                    record,
                )
            )
        builder = self._builder()
        if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
            return named_images(builder.info.splits[chunk].file_instructions)
        examples = builder.as_dataset(
            split=chunk,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(add_tfds_id=True),
        )
        return examples.map(lambda example: (example["tfds_id"], example["image"]))

    def read(self, origin: Tensor, record: Tensor) -> tuple[Tensor, Tensor]:
        """The name and the contents of an image, string scalars."""
        if self.source == "folder":
            return origin, tf.io.read_file(tf.strings.join([self.path, record], "/"))
        if self.source == "tfds":
            return origin, record
        features = {name: tf.io.FixedLenFeature((), tf.string, "") for name in (IMAGE, NAME)}
        example = tf.io.parse_single_example(record, features)
        return tf.where(example[NAME] == "", origin, example[NAME]), example[IMAGE]


def embed(job: Job, runner: str | None = None, beam_options: Sequence[str] = ()) -> list[str]:
    """Writes what is missing in the output of `job`: f1 of each image, by name.

    Args:
        job: a `Job`.
        runner: the runner of Apache Beam, for a pipeline; by default this process does it all.
        beam_options: more options of Beam, such as "--region=europe-west1".

    Returns:
        Origins of the records that cannot be decoded as images, and so have no features.

    Raises:
        InputError: the output belongs to another job, or there is nothing to embed.
    """
    paths = {name: readable(getattr(job, name), name) for name in ("encoder", "output")}
    if job.source != "tfds":
        paths["path"] = readable(job.path, job.source)
    if job.data_dir:
        paths["data_dir"] = readable(job.data_dir, "data_dir")
    job = dataclasses.replace(job, **paths)
    chunks = job.chunks()
    weights = _weights(job)  # a wrong encoder ends here, before this job claims the output
    # On other file systems two processes would write the same files twice.
    alone = contextlib.nullcontext() if has_scheme(job.output) else locked(job.output, "output")
    with alone:
        _claim(job, chunks, weights)
        targets = [
            f"{job.output}/part-{number:05d}-of-{len(chunks):05d}.{job.format}"
            for number in range(len(chunks))
        ]
        missing = [
            (chunk, target)
            for chunk, target in zip(chunks, targets, strict=True)
            if not tf.io.gfile.exists(target)
        ]
        work = functools.partial(embed_chunk, job)
        if runner is None:
            done = len(chunks) - len(missing)
            for item in tqdm(missing, "chunks", total=len(chunks), initial=done):
                work(item)
        else:
            _run_pipeline(missing, work, [f"--runner={runner}", *beam_options])
    broken = []
    for path in sorted(tf.io.gfile.glob(f"{job.output}/*.broken.txt")):
        with tf.io.gfile.GFile(path) as file:
            broken += file.read().splitlines()
    return broken


def embed_chunk(job: Job, item: tuple) -> None:
    """Computes and writes an `item`, (chunk, target), of `job`; each image is read once.

    Raises:
        InputError: the files of a set are gone, cut off, or of other features.
    """
    _, target = item
    write_complete(target, WRITERS[job.format], _rows(job, *item))


def _rows(job, chunk, target):
    """Yields (names (N,), f1 (N,D)) of a `chunk`, and writes the origins of what is broken in it.

    They are there before `target` is: a chunk that has its file is not looked at again.
    """
    _, embed_batch = _functions(job)
    broken, count, length = [], 0, 0
    for origins, bytes_read, places, names, images in _batches(job, chunk):
        lost = np.setdiff1d(np.arange(len(origins)), places)
        broken += [printable(origins[place]) for place in lost]
        count, length = count + len(origins), length + int(bytes_read)
        if len(places) > 1:
            yield names[:-1], embed_batch(images[:-1]).numpy()
    if job.source == "tfrecords" and length < tf.io.gfile.stat(chunk).length:
        broken.append(
            f"{printable(chunk)}#{count} and what follows: the file is cut off or damaged"
        )
    if broken:
        # A name that readers pass over who read a folder of Parquet files as one table.
        folder, _, name = target.rpartition("/")
        write_complete(f"{folder}/_{name}.broken.txt", write_text, "\n".join(broken))


def _batches(job, chunk):
    """Yields (origins, bytes, places of good images, their names and images) of a `chunk`."""
    prepare, _ = _functions(job)

    def decode(origins, records):
        count = tf.size(origins, tf.int64)
        good = transformed(prepare, tf.range(count), count, origins, records)
        lengths = tf.reduce_sum(tf.cast(tf.strings.length(records), tf.int64) + FRAME_BYTES)
        return good.map(lambda places, values: (origins, lengths, places, *values))

    # Each batch ends with what `transformed` adds.
    try:
        batches = job.records(chunk).batch(BATCH).flat_map(decode).prefetch(tf.data.AUTOTUNE)
        yield from batches.as_numpy_iterator()
    except tf.errors.OpError as error:
        raise InputError(
            f"{job.source} must name files that can be read ({one_line(error)}). "
            f"Received: {job.path}"
        ) from error


@functools.cache
def _encoder(job):
    return load_encoder(job.encoder, "f1"), load_preprocess(job.encoder)


def _weights(job):
    """Text that differs for other weights or another normalisation of the encoder."""
    encoder, preprocess = _encoder(job)
    settings = json.dumps([preprocess.image_size, preprocess.mean, preprocess.std])
    settings += f" {preprocess.white}" * (preprocess.white > 0)
    return hashlib.sha256(f"{digest(encoder)} {settings}".encode()).hexdigest()


@functools.cache
def _functions(job):
    """Two functions, traced once: a record to its name and image, and images to f1."""
    encoder, preprocess = _encoder(job)
    shape = (None, preprocess.image_size, preprocess.image_size, len(preprocess.mean))

    @tf.function(input_signature=[tf.TensorSpec((), tf.string)] * 2)
    def prepare(origin, record):
        name, contents = job.read(origin, record)
        return name, preprocess.file(contents, tiff=True)

    return prepare, tf.function(encoder, [tf.TensorSpec(shape, tf.float32)], autograph=False)


def _run_pipeline(items, work, options):
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise InputError("runner needs Apache Beam: pip install 'amdim_tf[beam]'") from error
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        _ = pipeline | beam.Create(items) | beam.Reshuffle() | beam.Map(work)


def _claim(job, chunks, weights):
    """Claims the output folder for this job.

    Raises:
        InputError: another job has claimed it.
    """
    own = dataclasses.asdict(job) | {
        "parts": hashlib.sha256(json.dumps(chunks).encode()).hexdigest(),
        "weights": weights,
    }
    path = f"{job.output}/{CLAIM}"
    tf.io.gfile.makedirs(job.output)
    earlier = f"{job.output}/{CLAIM.lstrip('_')}"  # that of the first version
    other = {}
    for known in (path, earlier):
        if tf.io.gfile.exists(known):
            with tf.io.gfile.GFile(known) as file:
                other = json.load(file)
            break
    # The same encoder and output may be named in another way.
    compared = (
        own.keys() - {"encoder", "output"} if "weights" in other else own.keys() - {"weights"}
    )
    differing = sorted(name for name in compared if other and own[name] != other.get(name))
    if differing:
        raise InputError(
            f"output={job.output} belongs to another job, which differs in {', '.join(differing)}; "
            "name another folder"
        )
    if not tf.io.gfile.exists(path):
        if job.source == "folder":
            names = "\0".join(name for chunk in chunks for name in chunk)
            write_complete(f"{job.output}/{NAMES}", write_text, names)
        write_complete(path, write_text, json.dumps(own, indent=2))
    if tf.io.gfile.exists(earlier):
        tf.io.gfile.remove(earlier)
