"""Makes runs from the authors' checkpoints, and checkpoints from runs.

    python -m amdim_tf.convert --checkpoint=amdim_ndf256_rkhs2048_rd10.pth --output=DIR
    python -m amdim_tf.convert --workdir=RUN --output=FILE.pth

Their checkpoints have weights and classifiers but no state of the optimiser: training goes on from
their step with new moments. Writing one takes PyTorch, reading does not.
"""

from absl import flags

from amdim_tf import command
from amdim_tf.errors import InputError

FLAGS = flags.FLAGS


def main() -> None:
    from amdim_tf.reference.conversion import from_checkpoint, to_checkpoint, training_command

    if (FLAGS.checkpoint is None) == (FLAGS.workdir is None):
        raise InputError(
            "Either checkpoint or workdir must be given: what to convert. "
            f"Received: checkpoint={FLAGS.checkpoint}, workdir={FLAGS.workdir}"
        )
    if FLAGS.checkpoint:
        config = from_checkpoint(FLAGS.checkpoint, FLAGS.output, FLAGS.dataset)
        further = training_command(config, FLAGS.output)
        print(f"Wrote {FLAGS.output}. To train it further:\n{further}")
    else:
        to_checkpoint(FLAGS.workdir, FLAGS.output)
        print(f"Wrote {FLAGS.output}.")


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "a checkpoint of the authors'")
    flags.DEFINE_string("workdir", None, "a run directory, to convert the other way")
    flags.DEFINE_string("output", None, "run directory or .pth file; required", required=True)
    flags.DEFINE_string("dataset", None, "what it was trained on; by its image size if none")
    command.run(main)
