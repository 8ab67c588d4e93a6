"""Trains an encoder on a data set, exports it and measures it.

python -m amdim_tf.train
python -m amdim_tf.train --dataset=cifar10 --size=small --data_dir=DIR --workdir=RUN
"""

import pathlib

from absl import flags

from amdim_tf import command
from amdim_tf.config import load_config
from amdim_tf.files import local
from amdim_tf.variants import VARIANTS

FLAGS = flags.FLAGS


def main() -> None:
    from amdim_tf.runs.training import run_name, train
    from amdim_tf.training.trackers import named_callbacks

    config = command.configured("seed", "epochs", "steps")
    workdir = local(FLAGS.workdir or pathlib.Path("runs") / run_name(config), "workdir")
    try:
        train(
            config,
            workdir,
            FLAGS.data_dir,
            FLAGS.baselines == "on",
            strategy=FLAGS.strategy,
            xla=FLAGS.xla,
            views_on=FLAGS.views_on,
            overwrite=FLAGS.overwrite,
            callbacks=named_callbacks(FLAGS.callbacks),
        )
    except KeyboardInterrupt:
        if any((workdir / "checkpoints").glob("[0-9]*")):
            print(f"\nA checkpoint is in {workdir}: the same command goes on from there.")
        raise


if __name__ == "__main__":
    command.define_training_flags()
    flags.DEFINE_string(
        "variant", "", f"what to change, of {', '.join(VARIANTS)}; several by commas"
    )
    command.define_device_flags()
    flags.DEFINE_enum(
        "baselines", "on", ["on", "off"], "measure an untrained encoder and raw pixels, too"
    )
    flags.DEFINE_enum("views_on", "host", ["host", "accelerator"], "where views are made")
    flags.DEFINE_string("workdir", None, "run directory; if none, in runs/ by data, size and seed")
    flags.DEFINE_list(
        "callbacks",
        [],
        "Keras callbacks MODULE:NAME that follow the training, as trackers have them",
    )
    flags.DEFINE_bool("overwrite", False, "remove the run in workdir and start anew")
    flags.DEFINE_integer("seed", None, "seed of all random draws; that of the config if none")
    command.run(main, load_config)
