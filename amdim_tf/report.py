"""Writes one page about a run, to read on any device and to send.

python -m amdim_tf.report --workdir=RUN --data_dir=DIR
"""

from absl import flags

from amdim_tf import command
from amdim_tf.training.run_files import evaluation_config

FLAGS = flags.FLAGS


def main() -> None:
    from amdim_tf.evaluation.report import report

    path = report(FLAGS.workdir, FLAGS.config, FLAGS.data_dir, FLAGS.output)
    print(f"Wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "run directory; required", required=True)
    flags.DEFINE_string("dataset", None, "the data of its pictures; its own if none")
    flags.DEFINE_string("data_dir", None, command.DATA_DIR)
    flags.DEFINE_string("output", None, "the page; RUN/report.html if none")
    command.run(main, evaluation_config)
