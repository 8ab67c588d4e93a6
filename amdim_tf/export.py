"""Exports a run as a SavedModel for TF Serving.

    python -m amdim_tf.export --workdir=RUN --output=DIR

DIR/1/                              a version, which a server that polls DIR takes up
    saved_model.pb, variables/      weights once, several signatures
    assets.extra/                   warm-up requests; amdim.json, from which Keras loads it
    batching_params.pbtxt           for a server with per-model batching parameters
    MODEL_CARD.md                   what it is and what it is worth
DIR/python-xla-1/                   with --xla: the same, compiled, for Python alone
"""

from absl import flags

from amdim_tf import command
from amdim_tf.training.run_files import read_class_names, read_result, run_config

FLAGS = flags.FLAGS
DTYPES = ("float32", "bfloat16")


def main() -> None:
    from amdim_tf.serving.saved_model import export
    from amdim_tf.training.run_directory import load_model

    config = run_config(FLAGS.workdir)
    model, _ = load_model(FLAGS.workdir, FLAGS.dtype)
    class_names, result = read_class_names(FLAGS.workdir), read_result(FLAGS.workdir)
    target = export(model, config, FLAGS.output, FLAGS.version, class_names, result)
    print(f"Wrote {target}.")
    if FLAGS.xla:
        version = int(target.name)
        target = export(model, config, FLAGS.output, version, class_names, result, compiled=True)
        print(f"Wrote {target}, for Python alone: no server can run it.")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "run directory; required", required=True)
    flags.DEFINE_string("output", None, "folder that a server polls; required", required=True)
    flags.DEFINE_integer("version", None, "number of the version; the next one if none", 1)
    flags.DEFINE_enum("dtype", "float32", DTYPES, "type of weights and computation")
    flags.DEFINE_bool("xla", False, "write another one, compiled, for Python alone")
    command.run(main)
