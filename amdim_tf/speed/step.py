"""The training step: its seconds, its arithmetic, and the rate of a large product beside it."""

import math

import keras
import tensorflow as tf

from amdim_tf.data import photographs, pipeline
from amdim_tf.speed.timing import quartiles
from amdim_tf.training.building import build

PRODUCT = 2048


def step_flops(model, batch):
    """Floating-point operations of a training step on `batch` images, by hand.

    Products alone: convolutions of both views and scores, each forward, and for the gradients of
    both operands; the images need none.
    """
    flops = model.objective.flops(batch)
    for layer, shape in convolutions(model):
        _, *places, _ = layer.compute_output_shape(shape)
        products = 3 if shape[-1] > 3 else 2  # the first one's input are the images
        images = model.views * batch
        flops += products * 2 * images * math.prod(places) * math.prod(layer.kernel.shape)
    return flops


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
    data = photographs.photo_patches()
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
