"""Gathers the evaluations of many runs in one table.

python -m amdim_tf.results --folder=runs
"""

from absl import flags

from amdim_tf import command

FLAGS = flags.FLAGS


def main() -> None:
    from amdim_tf.evaluation.results import results_table

    print(results_table(FLAGS.folder))


if __name__ == "__main__":
    flags.DEFINE_string("folder", "runs", "where run directories are")
    command.run(main)
