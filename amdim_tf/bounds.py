"""Estimates the mutual information of two sets of features by each of three bounds.

python -m amdim_tf.bounds --first=FEATURES --second=OTHERS
"""

from absl import flags

from amdim_tf import command
from amdim_tf.errors import InputError

FLAGS = flags.FLAGS


def main() -> None:
    from amdim_tf.evaluation.information import estimate
    from amdim_tf.objectives.bounds import BOUNDS
    from amdim_tf.serving.feature_files import read_features

    (names, first), (others, second) = map(read_features, (FLAGS.first, FLAGS.second))
    place = {name: row for row, name in enumerate(others)}
    shared = [(row, place[name]) for row, name in enumerate(names) if name in place]
    if not shared:
        raise InputError(
            "first and second must have names in common. "
            f"Received: first={FLAGS.first}, second={FLAGS.second}"
        )
    print(f"{len(shared)} pairs of the same name")
    if names != others:  # files in the same order are not copied
        rows, other_rows = map(list, zip(*shared, strict=True))
        first, second = first[rows], second[other_rows]
    found = [estimate(first, second, bound, FLAGS.updates, FLAGS.seed) for bound in BOUNDS]
    lines = [["bound", "nats", "95 % interval over batches"]]
    for each in found:
        low, high = each.interval or (None, None)
        interval = "a single batch" if low is None else f"{low:.2f} to {high:.2f}"
        lines.append([each.bound, f"{each.nats:.2f}", interval])
    print(command.markdown(lines))
    print(f"NCE is at most {found[0].most:.2f}, the log of {found[0].batch} pairs in a batch.")


if __name__ == "__main__":
    flags.DEFINE_string(
        "first", None, "folder of amdim_tf.embed, or .npy file (N,D); required", required=True
    )
    flags.DEFINE_string(
        "second", None, "another; images of the same name are pairs; required", required=True
    )
    flags.DEFINE_integer(
        "updates", 4000, "updates of the critic that each bound trains", lower_bound=1
    )
    flags.DEFINE_integer("seed", 0, "seed of the critic and of its batches", lower_bound=0)
    command.run(main)
