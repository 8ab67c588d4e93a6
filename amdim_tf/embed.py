"""Writes the features f1 of a folder, a TFDS set or TFRecords.

python -m amdim_tf.embed --encoder=RUN --folder=IMAGES --output=DIR
python -m amdim_tf.embed --encoder=RUN --tfds=cifar10/test --output=DIR --runner=DirectRunner
"""

import shlex

from absl import flags

from amdim_tf import command
from amdim_tf.errors import InputError

FLAGS = flags.FLAGS
FORMATS = ("parquet", "tfrecord")
SOURCES = ("folder", "tfds", "tfrecords")


def main() -> None:
    from amdim_tf.serving.bulk import Job, embed

    given = {name: str(FLAGS[name].value) for name in SOURCES if FLAGS[name].value}
    if len(given) != 1:
        raise InputError(f"One of {', '.join(SOURCES)} must be given. Received: {given}")
    ((source, path),) = given.items()
    job = Job(FLAGS.encoder, FLAGS.output, FLAGS.format, source, path, FLAGS.data_dir)
    broken = embed(job, FLAGS.runner, shlex.split(FLAGS.beam_options))
    print(f"Wrote {FLAGS.output}.")
    if broken:
        first = ", ".join(broken[:5])
        print(f"Images that cannot be decoded: {len(broken)}, first {first}.")
        print(f"{FLAGS.output}/_*.broken.txt names all of them.")


if __name__ == "__main__":
    flags.DEFINE_string("encoder", None, "run or version of an export; required", required=True)
    flags.DEFINE_string("output", None, "folder to write to; required", required=True)
    flags.DEFINE_string("folder", None, "images to embed: a folder")
    flags.DEFINE_string("tfds", None, "images to embed: DATASET/SPLIT of TFDS")
    flags.DEFINE_string("tfrecords", None, "images to embed: a pattern of files")
    flags.DEFINE_string("data_dir", None, "folder of TFDS; ~/tensorflow_datasets if none")
    flags.DEFINE_enum("format", "parquet", FORMATS, "kind of the files that are written")
    flags.DEFINE_string("runner", None, "runner of Apache Beam; without Beam if none")
    flags.DEFINE_string("beam_options", "", "more options of Apache Beam")
    command.run(main)
