"""Draws pictures of what a run has learned (Figure 2).

python -m amdim_tf.visualize --workdir=RUN --data_dir=DIR
"""

import json

from absl import flags

from amdim_tf import command
from amdim_tf.training.run_files import evaluation_config

FLAGS = flags.FLAGS


def main() -> None:
    from amdim_tf.evaluation.visualization import visualize

    options = FLAGS.data_dir, FLAGS.images, FLAGS.projector
    measured = visualize(FLAGS.workdir, FLAGS.config, *options)
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "run directory; required", required=True)
    flags.DEFINE_string("dataset", None, "the data to look at; its own if none")
    flags.DEFINE_string("data_dir", None, command.DATA_DIR)
    flags.DEFINE_integer("images", 1000, "among how many test images neighbours are looked for")
    flags.DEFINE_bool("projector", False, "write their f1 for the projector of TensorBoard, too")
    command.run(main, evaluation_config)
