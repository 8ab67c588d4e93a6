"""Measures the encoder of a run by kNN, classifiers and fine-tuning (4).

python -m amdim_tf.evaluate --workdir=RUN --data_dir=DIR
python -m amdim_tf.evaluate --workdir=RUN --dataset=places205 --protocol=linear --data_dir=DIR
"""

from absl import flags

from amdim_tf import command
from amdim_tf.evaluation.protocols import NEIGHBOURS, PROTOCOLS
from amdim_tf.training.run_files import evaluation_config

FLAGS = flags.FLAGS


def main() -> None:
    from amdim_tf.evaluation.evaluation import evaluate
    from amdim_tf.evaluation.protocols.protocol import find_protocol

    chosen = [FLAGS.protocol]
    if FLAGS.protocol == "all":
        ways = {name: find_protocol(name).ways for name in PROTOCOLS}
        chosen = [name for name in PROTOCOLS if not FLAGS.fast or "features" in ways[name]]
    evaluate(
        FLAGS.workdir,
        FLAGS.config,
        chosen,
        FLAGS.data_dir,
        FLAGS.fast,
        FLAGS.label_fraction,
        FLAGS.features,
        FLAGS.strategy,
        FLAGS.xla,
        FLAGS.knn,
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "run directory of the encoder; required", required=True)
    flags.DEFINE_string("dataset", None, "the data to measure it on; its own if none")
    flags.DEFINE_string("data_dir", None, command.DATA_DIR)
    flags.DEFINE_string(
        "protocol", "all", f"how to measure it: {', '.join(PROTOCOLS)}, all or MODULE:CLASS"
    )
    flags.DEFINE_bool("fast", False, "classifiers learn from features that are computed once")
    flags.DEFINE_float("label_fraction", 1.0, "share of the labelled images of each class")
    flags.DEFINE_string(
        "features", "f1", "what is measured: f1, or mixture of runs with mixture_components"
    )
    flags.DEFINE_integer("knn", NEIGHBOURS, "neighbours that vote in the protocol knn")
    command.define_device_flags()
    command.run(main, evaluation_config)
