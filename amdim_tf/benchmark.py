"""Measures how fast each part runs, and how near to the machine's limit.

    python -m amdim_tf.benchmark --output=benchmark.json

The limit is a matrix product measured beside it. Every time is the median of several, with its
quartiles, after a warm-up; memory is the peak above what was there before.
"""

from absl import flags

from amdim_tf import command
from amdim_tf.config import PRECISIONS, load_config
from amdim_tf.errors import InputError
from amdim_tf.files import local
from amdim_tf.typing import Config

FLAGS = flags.FLAGS


def main() -> None:
    from amdim_tf.speed.benchmark import benchmark, read_earlier

    config = command.configured()
    earlier = read_earlier(FLAGS.compare) if FLAGS.compare else {}
    if not all(batch.isdecimal() and int(batch) > 1 for batch in FLAGS.nce_batches):
        raise InputError(
            f"nce_batches must be whole numbers from 2 on. Received: {FLAGS.nce_batches}"
        )
    output = local(FLAGS.output, "output")
    if output.suffix != ".json" or not output.parent.is_dir():
        raise InputError(
            f"output must be a .json file in an existing folder. Received: output={output}"
        )
    benchmark(
        config,
        output,
        earlier,
        FLAGS.strategy,
        [(precision, xla == "on") for precision in FLAGS.precisions for xla in FLAGS.xla],
        [int(batch) for batch in FLAGS.nce_batches],
        FLAGS.inference_batch,
        FLAGS.runs,
        FLAGS.memory_only,
    )


def choose_config(size: str | None) -> Config:
    """The patches of the default run, with an encoder that gives the processor some work."""
    config = load_config("photo_patches", size)
    config.update({"ndf": 64, "nrkhs": 512, "ndepth": 3, "batch_size": 64})
    return config


if __name__ == "__main__":
    flags.DEFINE_string("output", "benchmark.json", "where the results are written")
    flags.DEFINE_string("compare", None, "the results of an earlier benchmark, for ratios to them")
    flags.DEFINE_string("strategy", "none", "devices: auto, none, mirrored, cpu:N")
    flags.DEFINE_string("size", None, "size of the config of photo_patches; its first if none")
    flags.DEFINE_multi_enum(
        "precisions", ["float32", "mixed_bfloat16"], PRECISIONS, "of the step; repeat for several"
    )
    flags.DEFINE_multi_enum("xla", ["off", "on"], ["off", "on"], "repeat for both")
    flags.DEFINE_list("nce_batches", ["64", "128", "256", "512", "1024"], "for the loss by itself")
    flags.DEFINE_integer("inference_batch", 64, "images in a request", lower_bound=1)
    flags.DEFINE_bool("memory_only", False, "measure no times")
    flags.DEFINE_integer("runs", 10, "of each measurement", lower_bound=1)
    command.run(main, choose_config)
