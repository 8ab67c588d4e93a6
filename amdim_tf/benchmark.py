"""The command `python -m amdim_tf.benchmark`: how fast each part runs, and how near to the limit.

    python -m amdim_tf.benchmark --output=benchmark.json

The limit is a matrix product measured beside it. Every time is the median of several, with its
quartiles, after a warm-up; memory is the peak above what was there before.
"""

import contextlib
import ctypes
import functools
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import tensorflow as tf
from absl import flags

from amdim_tf import command, datasets, multiscale, pipeline
from amdim_tf.config import PRECISIONS, check_config, load_config
from amdim_tf.distribution import check_batch, choose_strategy
from amdim_tf.errors import InputError
from amdim_tf.export import export
from amdim_tf.files import write_json
from amdim_tf.loading import load_encoder, load_preprocess
from amdim_tf.run_directory import environment
from amdim_tf.splits import Split
from amdim_tf.train import build

FLAGS = flags.FLAGS
WARM_UP = 3
# Batches that are timed together: pipelines make several at a time.
BURST = 8
PRODUCT = 2048
MEMORY = ", peak memory"


class Table:
    """Rows of measurements, as they come: {name: {"value", "unit", "low", "high"}}."""

    def __init__(self):
        self.rows = {}

    def add(self, name, value, unit, low=None, high=None):
        self.rows[name] = {"value": value, "unit": unit, "low": low, "high": high}
        print(f"{name}: {value:.4g} {unit}", flush=True)
        return value

    def time(self, functions, runs):
        """Adds the seconds of `functions` {name: function}, and returns their medians."""
        rows = zip(functions, quartiles(functions.values(), runs), strict=True)
        return [self.add(name, median, "s", low, high) for name, (low, median, high) in rows]


def quartiles(functions, runs):
    """The quartiles of the seconds that each of `functions` takes.

    They are called in turn, so that what else the machine does reaches all of them.
    """
    for function in functions:
        for _ in range(WARM_UP):
            function()
    seconds = [[] for _ in functions]
    for _ in range(runs):
        for function, times in zip(functions, seconds, strict=True):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return np.quantile(seconds, (0.25, 0.5, 0.75), axis=1).T.tolist()


def peak_bytes(function):
    """Peak memory of `function()` above what is in use: of the accelerator, else of the process.

    The function is called before, so that it is traced and compiled.
    """
    function()
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")
        before = tf.config.experimental.get_memory_info("GPU:0")["current"]
        function()
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] - before
    with contextlib.suppress(OSError):  # what malloc keeps for later is not in use
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@contextlib.contextmanager
def one_core():
    """Keeps all threads of the process on one core."""
    cores = os.sched_getaffinity(0)

    def use(cores):
        for thread in pathlib.Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), cores)

    use({min(cores)})
    try:
        yield
    finally:
        use(cores)


def step_flops(model, batch):
    """Floating-point operations of a training step on `batch` images, by hand.

    Products alone: convolutions of both views and scores, each forward, and for the gradients of
    both operands; the images need none.
    """
    flops = 0
    for layer, shape in convolutions(model):
        _, *places, _ = layer.compute_output_shape(shape)
        products = 2 if layer is model.encoder.stem[0].conv else 3
        flops += products * 2 * batch * 2 * math.prod(places) * math.prod(layer.kernel.shape)
    locations = sum(m * m for _, m in model.tasks)
    return flops + 3 * 2 * 2 * batch * batch * locations * model.encoder.nrkhs


def convolutions(model):
    """All convolutions of `model`, with the shapes of their inputs."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Conv2D):
            yield layer, layer.get_build_config()["input_shape"]


def convolution_step(layer, shape, batch):
    """A function that computes a convolution of both views, and the gradients it needs, alone."""
    dtype = layer.compute_dtype
    x = tf.cast(tf.random.stateless_normal((2 * batch, *shape[1:]), (0, 1)), dtype)
    kernel = tf.cast(layer.kernel.value, dtype)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch((x, kernel))
            y = layer.convolution_op(x, kernel)
        return y, tape.gradient(y, (x, kernel) if shape[-1] > 3 else kernel, y)

    return step


def matrix_product(precision):
    """A function that computes a large product."""
    dtype = keras.dtype_policies.get(precision).compute_dtype
    square = tf.cast(tf.random.stateless_normal((PRODUCT, PRODUCT), (0, 0)), dtype)
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(square, square)))
    return lambda: float(product())


def steps(config, compiled, strategy):
    """A model, and functions of it that train a step: on one batch, and on ever new views."""
    keras.backend.clear_session()
    data = datasets.photo_patches()
    with strategy.scope():
        model = build(config, len(data.class_names), 10**6, compiled)
    model.make_train_function()

    def step(batches):
        iterator = iter(strategy.experimental_distribute_dataset(batches))
        # Once the loss is here, the step is done.
        return lambda: float(model.train_function(iterator)["loss"])

    batches = pipeline.train_batches(data, config, 0, 10**6)
    return model, step(batches.take(1).cache().repeat()), step(batches)


def step_name(config, compiled):
    return f"step, {config.precision}, XLA {'on' if compiled else 'off'}"


def step_speed(table, config, compiled, strategy, runs):
    """The training step, against the rate of a large product beside it."""
    name = step_name(config, compiled)
    model, alone, with_views = steps(config, compiled, strategy)
    product = f"{name}, product of {PRODUCT}x{PRODUCT} matrices beside it"
    functions = {name: alone, product: matrix_product(config.precision)}
    seconds, of_product = table.time(functions, runs)
    # Not in turn: the views of the next steps would be made beside other measurements.
    (whole,) = table.time({f"{name}, views included": with_views}, runs)
    table.add(f"{name}, views included, speed", seconds / whole, "parts of the step alone")
    flops, rate = step_flops(model, config.batch_size), 2 * PRODUCT**3 / of_product
    table.add(f"{name}, arithmetic", flops / 1e9, "GFLOP")
    table.add(f"{product}, rate", rate / 1e9, "GFLOP/s")
    table.add(f"{name}, of the product's rate", flops / seconds / rate, "parts")
    table.add(f"{name}, speed", config.batch_size / seconds, "pairs/s")
    if not compiled:
        one_by_one = sum(
            quartiles([convolution_step(layer, shape, config.batch_size)], runs)[0][1]
            for layer, shape in convolutions(model)
        )
        table.add(f"{name}, its convolutions one by one", one_by_one, "s")


def nce_step(batch, nrkhs, kept):
    """A function of loss and gradients of the default tasks, and the bytes of the gradients."""
    tasks = multiscale.parse_tasks("1-5,1-7,5-5")
    shapes = {1: (batch, nrkhs), 5: (batch, 5, 5, nrkhs), 7: (batch, 7, 7, nrkhs)}
    pair = [
        {n: tf.random.stateless_normal(shape, (n, seed)) for n, shape in shapes.items()}
        for seed in (1, 2)
    ]

    @tf.function
    def step(view1, view2):
        locations = {5: tf.zeros((2, batch), tf.int32)}
        with tf.GradientTape() as tape:
            tape.watch((view1, view2))
            losses, penalty, _ = multiscale.multiscale_nce(
                view1, view2, locations, tasks, score_bytes=2**62 if kept else 0
            )
            total = sum(losses.values()) + penalty
        return total, tape.gradient(total, (view1, view2))

    return lambda: float(step(*pair)[0]), sum(4 * math.prod(s) for s in shapes.values()) * 2


def nce_name(batch, kept):
    return f"NCE of batch {batch}, scores {'kept' if kept else 'in blocks'}"


def memory(table, config, strategy, measured, batches):
    """Peak memory of the `measured` steps, (precision, compiled), and of the loss by batch."""
    for precision, compiled in measured:
        config.precision = precision
        _, step, _ = steps(config, compiled, strategy)
        peak = peak_bytes(step)
        table.add(f"{step_name(config, compiled)}{MEMORY}", peak / 2**20, "MiB")
    for batch in batches:
        for kept in (True, False):
            step, gradients = nce_step(batch, config.nrkhs, kept)
            peak = peak_bytes(step) - gradients
            table.add(f"{nce_name(batch, kept)}{MEMORY}", peak / 2**20, "MiB")


def memory_in_another_process(table):
    """`memory` read off a process, whose allocator has to return what is free."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "memory.json"
        arguments = [*sys.argv[1:], "--memory_only", f"--output={output}"]
        subprocess.run(
            [sys.executable, "-m", "amdim_tf.benchmark", *arguments],
            env=os.environ | {"TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1"},
            stderr=subprocess.DEVNULL,
            check=True,
        )
        table.rows |= json.loads(output.read_text())["rows"]


def draw_nce(rows, batches, path):
    """Draws time and memory of the loss against the `batches`."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for suffix, label, panel in (
        ("", "loss and gradients, s", axes[0]),
        (MEMORY, "memory beside embeddings\nand gradients, MiB", axes[1]),
    ):
        for kept, marker in ((True, "o"), (False, "s")):
            values = [rows[nce_name(batch, kept) + suffix]["value"] for batch in batches]
            kind = "scores kept" if kept else "scores in blocks"
            panel.loglog(batches, values, marker=marker, label=kind)
        panel.set(xlabel="images in a batch", ylabel=label)
        panel.set_xticks(batches, [str(batch) for batch in batches])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def make_views(table, runs):
    """Pairs of views per second on one core: of 32 pixels, and of 128 from the bytes of JPEGs."""
    jpeg = tf.io.encode_jpeg(skimage.data.coffee()[:375, :500], quality=95)
    files = tf.data.Dataset.from_tensors((jpeg, tf.constant(0, tf.int64))).repeat(10**6)
    decode = functools.partial(tf.io.decode_jpeg, channels=3)
    photographs = datasets.Data(Split(files, 10**6, "drawn"), None, None, (), decode, (None, None))
    sources = {
        32: (datasets.photo_patches(), "patches", load_config("photo_patches"), 256),
        128: (photographs, "JPEGs of 500x375", load_config("imagenet2012"), 64),
    }
    decoded = iter(files.map(lambda record, _: tf.shape(decode(record))).batch(64))
    with one_core():
        for size, (data, source, config, batch) in sources.items():
            config.image_size, config.batch_size = size, batch
            batches = iter(pipeline.train_batches(data, config, 0, 10**4))
            name = f"views of {size} pixels from {source}, one core"
            several = functools.partial(lambda b: [next(b) for _ in range(BURST)], batches)
            (seconds,) = table.time({f"{name}, {BURST} batches of {batch}": several}, runs)
            table.add(f"{name}, speed", BURST * batch / seconds, "pairs/s")
        name = "decoding of these JPEGs, one core"
        (seconds,) = table.time({f"{name}, batch of 64": lambda: next(decoded)}, runs)
        table.add(f"{name}, speed", 64 / seconds, "JPEG/s")


def inference(table, config, batch, runs):
    """Images per second, uint8 to f1, of the exported encoder and of the same in Keras."""
    with tempfile.TemporaryDirectory() as folder:
        target = export(build(config, 0, 1), config, folder)
        served = tf.saved_model.load(str(target)).signatures["serving_default"]
        model = keras.Sequential([load_preprocess(target), load_encoder(target, "f1")])
    for count in sorted({1, batch}):
        images = tf.zeros((count, config.image_size, config.image_size, 3), tf.uint8)
        functions = {
            f"exported encoder, batch of {count}": lambda x=images: served(images=x)["f1"].numpy(),
            f"the same in Keras, batch of {count}": lambda x=images: model.predict_on_batch(x),
        }
        for name, seconds in zip(functions, table.time(functions, runs), strict=True):
            table.add(f"{name}, speed", count / seconds, "images/s")


def markdown(rows, earlier):
    """The rows as a table, with the ratio to those of an `earlier` benchmark, if there is one."""
    lines = [["", "", "quartiles", *["to the earlier one"] * bool(earlier)]]
    for name, row in rows.items():
        spread = "" if row["low"] is None else f"{row['low']:.4g} to {row['high']:.4g}"
        lines.append([name, f"{row['value']:.4g} {row['unit']}", spread])
        if earlier:
            before = earlier.get(name, {}).get("value")
            lines[-1].append(f"x {row['value'] / before:.2f}" if before else "")
    return command.markdown(lines)


def read_earlier(path):
    try:
        return json.loads(pathlib.Path(path).read_text())["rows"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"compare must name the JSON of an earlier benchmark. Received: compare={path}"
        ) from error


def main():
    config, table = command.configured(), Table()
    earlier = read_earlier(FLAGS.compare) if FLAGS.compare else {}
    if not all(batch.isdecimal() and int(batch) > 1 for batch in FLAGS.nce_batches):
        raise InputError(
            f"nce_batches must be whole numbers from 2 on. Received: {FLAGS.nce_batches}"
        )
    batches = [int(batch) for batch in FLAGS.nce_batches]
    output = pathlib.Path(FLAGS.output)
    if output.suffix != ".json" or not output.parent.is_dir():
        raise InputError(
            f"output must be a .json file in an existing folder. Received: output={output}"
        )
    check_config(config)
    if config.objective != "amdim":
        raise InputError(
            f"The benchmark is of the amdim objective. Received: objective={config.objective!r}"
        )
    strategy = choose_strategy(FLAGS.strategy)
    check_batch(config.batch_size, config.micro_batch, strategy)
    measured = [(p, xla == "on") for p in FLAGS.precisions for xla in FLAGS.xla]
    if not FLAGS.memory_only:
        for precision, compiled in measured:
            config.precision = precision
            step_speed(table, config, compiled, strategy, FLAGS.runs)
        config.precision = "float32"
        for batch in batches:
            for kept in (True, False):
                step, _ = nce_step(batch, config.nrkhs, kept)
                table.time({nce_name(batch, kept): step}, FLAGS.runs)
        make_views(table, FLAGS.runs)
        inference(table, config, FLAGS.inference_batch, FLAGS.runs)
    if FLAGS.memory_only or tf.config.list_physical_devices("GPU"):
        memory(table, config, strategy, measured, batches)
    else:
        memory_in_another_process(table)
    write_json(output, {"rows": table.rows, **environment()})
    if FLAGS.memory_only:
        return
    if batches:
        draw_nce(table.rows, batches, output.with_suffix(".png"))
    print(f"\n{markdown(table.rows, earlier)}\n\nWrote {output}.")


def choose_config(size):
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
