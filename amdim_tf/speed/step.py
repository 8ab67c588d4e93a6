"""Measures the training step: seconds, arithmetic, and its rate next to that of a large product."""

import collections
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from amdim_tf import distribution
from amdim_tf.data import photographs, pipeline
from amdim_tf.encoders.convolution import Convolution
from amdim_tf.speed.operations import outside_of_products
from amdim_tf.speed.timing import Table, quartiles
from amdim_tf.training.building import build
from amdim_tf.training.learner import Learner
from amdim_tf.typing import Config

PRODUCT = 2048


def step_flops(model: Learner, batch: int) -> int:
    """Floating-point operations in a training step on `batch` images, counted by hand.

    Only products count: the convolutions, the dense layers of the encoder, and what the objective
    counts of its own, each forward and for the gradients of both operands. The images need none.
    """
    flops = model.objective.flops(batch)
    # An encoder of patches computes its layers once for each.
    of_encoder = set(model.encoder._flatten_layers())
    patches = getattr(model.encoder, "grid", 1) ** 2
    views = model.objective.views * model.objective.copies
    # phi has no maps of small crops.
    embedded = views - getattr(model.objective, "small_crops", 0)
    others = keras.layers.DepthwiseConv2D, keras.layers.Dense
    layers = layers_with_input(model, (keras.layers.Conv2D, keras.layers.Conv2DTranspose))
    for layer, shape in (*layers, *layers_with_input(model.encoder, others)):
        products = 3 if shape[-1] > 3 else 2  # the first one's inputs are images
        images = batch * (views * patches if layer in of_encoder else embedded)
        flops += products * product_flops(layer, shape, images)
    return flops


def product_flops(layer: keras.layers.Layer, shape: tuple, images: int) -> int:
    """Floating-point operations in one of the products of a `layer` with inputs of that `shape`.

    Example:
    >>> layer = keras.layers.Conv2D(4, 1)
    >>> layer.build((None, 8, 8, 16))
    >>> product_flops(layer, (None, 8, 8, 16), images=1)  # 2 * 8 * 8 * 16 * 4
    8192
    """
    # A transposed convolution is the gradient of one whose output is its input.
    transposed = isinstance(layer, keras.layers.Conv2DTranspose)
    _, *places, _ = shape if transposed else layer.compute_output_shape(shape)
    return 2 * images * math.prod(places) * math.prod(layer.kernel.shape)


def convolutions(model: keras.Model) -> Iterator[tuple[keras.layers.Layer, tuple]]:
    """All convolutions of `model`, with the shapes of their inputs."""
    return layers_with_input(model, keras.layers.Conv2D)


def layers_with_input(model: keras.Model, kinds: Any) -> Iterator[tuple[keras.layers.Layer, tuple]]:
    """The layers of `model` of these `kinds`, with the shapes of their inputs."""
    for layer in model._flatten_layers():
        if isinstance(layer, kinds):
            yield layer, layer.get_build_config()["input_shape"]


def convolution_products(
    layer: keras.layers.Layer, shape: tuple, batch: int
) -> dict[str, Callable]:
    """The products of a single convolution of both views, {name: function}.

    Example:
    >>> layer = keras.layers.Conv2D(4, 3)
    >>> layer.build((None, 8, 8, 16))
    >>> list(convolution_products(layer, (None, 8, 8, 16), batch=2))
    ['outputs', 'gradients of kernels', 'gradients of inputs']
    """
    dtype = layer.compute_dtype
    x = tf.cast(tf.random.stateless_normal((2 * batch, *shape[1:]), (0, 1)), dtype)
    kernel = tf.cast(layer.kernel.value, dtype)
    options = {"training": True} if isinstance(layer, Convolution) else {}
    outputs = tf.function(lambda: layer.convolution_op(x, kernel, **options))
    received = outputs()

    def gradients(of):
        with tf.GradientTape() as tape:
            tape.watch(of)
            y = layer.convolution_op(x, kernel, **options)
        return tape.gradient(y, of, received)

    products = {"outputs": outputs, "gradients of kernels": tf.function(lambda: gradients(kernel))}
    if shape[-1] > 3:  # the first one's inputs are images
        products["gradients of inputs"] = tf.function(lambda: gradients(x))
    return products


def matrix_product(precision: str) -> Callable:
    """A function that computes a large product."""
    dtype = keras.dtype_policies.get(precision).compute_dtype
    square = tf.cast(tf.random.stateless_normal((PRODUCT, PRODUCT), (0, 0)), dtype)
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(square, square)))
    return lambda: float(product())


def steps(
    config: Config, compiled: bool, strategy: tf.distribute.Strategy
) -> tuple[Learner, Callable, Callable]:
    """A model, and two functions that train it by a step: on one batch, and on new views."""
    keras.backend.clear_session()
    data = photographs.photo_patches()
    with strategy.scope():
        model = build(config, len(data.class_names), 10**6, compiled)
    model.make_train_function()

    def step(batches):
        iterator = iter(strategy.experimental_distribute_dataset(batches))
        # The loss is here when the step is done.
        return lambda: float(model.train_function(iterator)["loss"])

    batches = pipeline.train_batches(data, config, 0, 10**6)
    return model, step(batches.take(1).cache().repeat()), step(batches)


def step_name(config: Config, compiled: bool) -> str:
    """The name of the row for a training step."""
    return f"step, {config.precision}, XLA {'on' if compiled else 'off'}"


def step_speed(
    table: Table, config: Config, compiled: bool, strategy: tf.distribute.Strategy, runs: int
) -> None:
    """Measures the training step, next to the rate of a large product."""
    name = step_name(config, compiled)
    model, alone, with_views = steps(config, compiled, strategy)
    product = f"{name}, product of {PRODUCT}x{PRODUCT} matrices beside it"
    functions = {name: alone, product: matrix_product(config.precision)}
    seconds, of_product = table.time(functions, runs)
    # By itself: otherwise the next views would be made while something else is measured.
    (with_input,) = table.time({f"{name}, views included": with_views}, runs)
    table.add(f"{name}, views included, speed", seconds / with_input, "parts of the step alone")
    flops, rate = step_flops(model, config.batch_size), 2 * PRODUCT**3 / of_product
    table.add(f"{name}, arithmetic", flops / 1e9, "GFLOP")
    table.add(f"{product}, rate", rate / 1e9, "GFLOP/s")
    table.add(f"{name}, of the product's rate", flops / seconds / rate, "parts")
    table.add(f"{name}, speed", config.batch_size / seconds, "pairs/s")
    if not compiled:
        one_by_one(table, name, model, config.batch_size, rate, runs)
        if strategy.num_replicas_in_sync == 1 and distribution.on_cpus():
            outside_of_products(table, name, model, config.batch_size, alone, runs)


def one_by_one(table: Table, name: str, model: Learner, batch: int, rate: float, runs: int) -> None:
    """Measures the convolutions of the step `name` one by one, next to the `rate` of a product."""
    seconds: dict[str, float] = collections.defaultdict(float)
    operations: dict[str, int] = collections.defaultdict(int)
    for layer, shape in convolutions(model):
        products = convolution_products(layer, shape, batch)
        medians = (median for _, median, _ in quartiles(products.values(), runs))
        for product, median in zip(products, medians, strict=True):
            seconds[product] += median
            operations[product] += product_flops(layer, shape, 2 * batch)
    name = f"{name}, its convolutions one by one"
    table.add(name, sum(seconds.values()), "s")
    for product, value in seconds.items():
        table.add(f"{name}, {product}", operations[product] / value / rate, "of the product's rate")
