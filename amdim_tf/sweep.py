"""Trains variants of a run and their baseline, over several seeds (Table 3).

python -m amdim_tf.sweep --dataset=cifar10 --epochs=5 --variants=-color_jitter,-random_crop
python -m amdim_tf.sweep --dataset=cifar10 --epochs=5 --objectives=amdim,rotation,jigsaw
"""

from absl import flags

from amdim_tf import command
from amdim_tf.config import load_config
from amdim_tf.errors import InputError
from amdim_tf.files import local, write_text
from amdim_tf.variants import METHODS, PAPER

FLAGS = flags.FLAGS


def main() -> None:
    from amdim_tf.runs.sweep import sweep, sweep_table

    config = command.configured("epochs", "steps")
    folder = local(FLAGS.folder, "folder")
    if not FLAGS.seeds or not all(seed.isdecimal() for seed in FLAGS.seeds):
        raise InputError(f"seeds must be whole numbers, such as 0,1,2. Received: {FLAGS.seeds}")
    seeds, objectives = [int(seed) for seed in FLAGS.seeds], FLAGS.objectives
    if objectives and FLAGS["variants"].present:
        raise InputError(
            "variants and objectives cannot both be given, since either is what to compare. "
            f"Received: variants={','.join(FLAGS.variants)}, objectives={','.join(objectives)}"
        )
    valid = ("amdim", "supervised", "local_dim", *METHODS)
    if not set(objectives) <= set(valid):
        raise InputError(
            f"objectives must be some of {', '.join(valid)}. Received: {','.join(objectives)}"
        )
    if objectives and (config.objective != "amdim" or set(valid) & set(config.variant.split(","))):
        raise InputError(
            "objectives are compared with amdim, which the other flags must not change to another. "
            f"Received: variant={config.variant!r}, objective={config.objective!r}"
        )
    others = [name for name in objectives if name != "amdim"]
    variants = others if objectives else FLAGS.variants
    found = sweep(config, variants, seeds, folder, FLAGS.data_dir, bool(objectives))
    table = sweep_table(found, bool(objectives))
    write_text(folder / "sweep.md", table + "\n")
    print(f"\n{table}")


if __name__ == "__main__":
    command.define_training_flags()
    ablations = [name for name in PAPER if name[0] in "+-"]
    flags.DEFINE_string("variant", "", "what the baseline is, such as +recipe")
    flags.DEFINE_list("variants", ablations, "what to change, each by itself")
    flags.DEFINE_list(
        "objectives",
        [],
        "in place of variants: methods to compare with amdim, at equal images seen, views counted",
    )
    flags.DEFINE_list("seeds", ["0", "1", "2"], "each variant is trained with each of them")
    flags.DEFINE_string("folder", "runs/sweep", "where its run directories are")
    command.run(main, load_config)
