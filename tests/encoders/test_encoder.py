import keras
import numpy as np
import pytest
import tensorflow as tf

from amdim_tf.distribution import on_cpus
from amdim_tf.encoders.amdim import Encoder, ResidualLayer
from amdim_tf.encoders.batch_norm import BatchNorm
from amdim_tf.encoders.convolution import Convolution, GroupedConvolution
from amdim_tf.encoders.relu import relu
from amdim_tf.errors import InputError
from amdim_tf.objectives.phi import Phi


@pytest.mark.parametrize("size, width", [(32, 32), (64, 64), (128, 64), (256, 64)])
@pytest.mark.parametrize("use_bn", [False, True])
def test_shapes_and_reload(size, width, use_bn, tmp_path):
    encoder = Encoder(image_size=size, ndf=8, nrkhs=72, ndepth=2, use_bn=use_bn)
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype("float32")
    features = encoder(images)
    shapes = {name: tuple(value.shape) for name, value in features.items()}
    assert shapes == {"f1": (2, 72), "f5": (2, 5, 5, width), "f7": (2, 7, 7, width)}

    encoder.save(tmp_path / "encoder.keras")
    reloaded = keras.models.load_model(tmp_path / "encoder.keras")
    for name, value in reloaded(images).items():
        np.testing.assert_array_equal(value, features[name])
    assert reloaded.get_config() == encoder.get_config()


@pytest.mark.parametrize("image_size", [32, 64, 128, 256])
def test_a_location_sees_its_receptive_field_and_no_more(image_size):
    encoder = Encoder(image_size, ndf=2, nrkhs=16, ndepth=2)
    for variable in encoder.trainable_variables:
        variable.assign(tf.random.stateless_normal(variable.shape, (0, 1)))
    images = tf.Variable(tf.random.stateless_normal((1, image_size, image_size, 3), (0, 2)))
    places = [(7, 0, 0), (7, 2, 4), (7, 6, 6), (5, 1, 3)]
    with tf.GradientTape(persistent=True) as tape:
        features = encoder(images)
        values = [tf.reduce_sum(features[f"f{n}"][:, i, j]) for n, i, j in places]
    for (n, *place), value in zip(places, values, strict=True):
        seen = np.abs(tape.gradient(value, images)[0]).max(-1) > 0
        start, size, stride = encoder.receptive_field(n)
        for axis, index in enumerate(place):
            rows = np.flatnonzero(seen.any(1 - axis))
            first = start + index * stride
            low, high = max(first, 0), min(first + size, image_size)
            assert (rows[0], rows[-1] + 1) == (low, high), (n, place, axis)
    if image_size == 32:
        # conv 3/1, block 4/2, block 2/2: 3 + (4-1) + (2-1)*2 pixels, one location every 4.
        assert encoder.receptive_field(7) == (0, 8, 4)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"image_size": 48}, "32, 64, 128.*image_size=48"),
        ({"ndf": 0}, "ndf=0"),
        ({"ndepth": 0}, "ndepth=0"),
        ({"ndf": 32, "nrkhs": 100}, "at least 128.*nrkhs=100"),
    ],
)
def test_impossible_sizes_are_refused(arguments, expected):
    with pytest.raises(InputError, match=expected):
        Encoder(**arguments)


def test_phi_embeds_in_fewer_dimensions():
    """By a projection of all features, not of the first ones."""
    phi = Phi(16)
    assert phi(np.zeros((2, 5, 5, 32), "float32")).shape == (2, 5, 5, 16)
    kernel = np.abs(phi.shortcut.kernel[0, 0])
    assert kernel[16:].max() > 0.1 and kernel.max() <= 32**-0.5


@pytest.mark.parametrize(
    "side, width, stride", [(6, 1, 1), (6, 2, 2), (3, 3, 1), (6, 3, 1), (7, 2, 2)]
)
def test_windows_that_do_not_overlap_are_convolved_by_a_product(side, width, stride):
    layers = [
        kind(5, width, stride, bias_initializer="ones", dtype="float64")
        for kind in (Convolution, keras.layers.Conv2D)
    ]
    images = tf.random.stateless_normal((4, side, side, 3), (0, 0), dtype="float64")
    results = []
    for layer in layers:
        layer.build(images.shape)
        layer.kernel.assign(layers[0].kernel)
        with tf.GradientTape() as tape:
            tape.watch(images)
            y = layer(images)
        results.append([y, *tape.gradient(y, (images, layer.kernel), y)])
    for value, expected in zip(*results, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)
    graph = tf.function(layers[0]).get_concrete_function(images).graph
    whole = side % width == 0 and (stride == width or side == width)
    assert any(op.type == "Conv2D" for op in graph.get_operations()) != whole


@pytest.mark.parametrize("bias", [False, True])
def test_where_windows_overlap_a_training_has_the_gradients_of_keras(bias):
    layers = [
        kind(5, 3, use_bias=bias, bias_initializer="ones", activation="relu", dtype="float64")
        for kind in (Convolution, keras.layers.Conv2D)
    ]
    images = tf.random.stateless_normal((4, 7, 6, 2), (0, 0), dtype="float64")
    results = []
    for layer, options in zip(layers, ({"training": True}, {}), strict=True):
        layer.build(images.shape)
        layer.kernel.assign(layers[0].kernel)
        with tf.GradientTape() as tape:
            tape.watch(images)
            y = layer(images, **options)
        results.append([y, *tape.gradient(y, [images, *layer.trainable_variables], y)])
    for value, expected in zip(*results, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_the_kernels_gradient_is_by_products_in_training_alone(training):
    layer = Convolution(5, 3)
    images = tf.zeros((4, 7, 7, 2))
    layer.build(images.shape)

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            y = layer(images, training=training)
        return tape.gradient(y, layer.kernel)

    kinds = {op.type for op in gradient.get_concrete_function().graph.get_operations()}
    assert ("Conv2DBackpropFilter" in kinds) != training
    # An exported graph with an operation of a gradient of its own could not be trained further.
    assert ("IdentityN" in kinds) == training


def test_batch_norm_of_two_views_is_two_calls_of_one_view():
    values = np.random.default_rng(0).normal(2, 3, (8, 5, 5, 4)).astype("float32")
    joint, apart = BatchNorm(), BatchNorm()
    together = joint(values, training=True, views=2)
    single = [apart(half, training=True) for half in (values[:4], values[4:])]
    np.testing.assert_allclose(together, np.concatenate(single), atol=1e-6)
    for ours, theirs in zip(joint.variables, apart.variables, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)

    mean, variance = np.zeros(4), np.ones(4)
    for half in (values[:4].astype("float64"), values[4:].astype("float64")):
        mean = 0.9 * mean + 0.1 * half.mean((0, 1, 2))
        variance = 0.9 * variance + 0.1 * half.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(joint.moving_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(joint.moving_variance, variance, rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 5, 5, 4), (6, 4), (2, 4)])  # the last: single rows
def test_batch_norm_has_the_gradients_of_tensorflow(shape):
    generator = np.random.default_rng(0)
    x, weights = tf.constant(generator.normal(2, 3, shape)), generator.normal(size=shape)
    layer = BatchNorm(dtype="float64")
    layer.build(shape)
    averages = generator.uniform(1, 2, (2, 4))
    layer.set_weights([*generator.uniform(1, 2, (2, 4)), *averages])
    gamma, beta = layer.gamma.value, layer.beta.value

    def by_hand(x):
        views = []
        for view in tf.split(x, 2):
            mean, variance = tf.nn.moments(view, range(x.ndim - 1)) if shape[0] > 2 else averages
            views.append((view - mean) / tf.sqrt(variance + 1e-5) * gamma + beta)
        return tf.concat(views, 0)

    found = []
    for function in (by_hand, lambda x: layer(x, training=True, views=2)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        found.append([y, *tape.gradient(y, (x, gamma, beta), weights)])
    for expected, ours in zip(*found, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)


def test_batch_norm_statistics_are_float32_in_half_precision():
    values = np.random.default_rng(0).normal(100, 1, (256, 4))
    normalised = BatchNorm(dtype="mixed_bfloat16")(tf.cast(values, tf.bfloat16), training=True)
    assert normalised.dtype == tf.bfloat16
    rounded = np.array(tf.cast(tf.cast(values, tf.bfloat16), tf.float64))
    expected = (rounded - rounded.mean(0)) / rounded.std(0)
    np.testing.assert_allclose(tf.cast(normalised, tf.float32), expected, atol=0.02)


@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("padding, strides", [("same", 1), ("valid", 2)])
def test_groups_are_those_of_keras(groups, padding, strides):
    keras_layer = keras.layers.Conv2D(16, 3, strides, padding, groups=groups, name="conv")
    layer = GroupedConvolution.from_config(keras_layer.get_config())
    x = np.random.default_rng(0).normal(size=(2, 9, 9, 8)).astype("float32")
    expected = keras_layer(x)
    layer.build(x.shape)
    layer.set_weights(keras_layer.get_weights())
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_relu_in_training_is_that_of_inference(dtype):
    values = [*np.random.default_rng(0).normal(size=1000), 0.0, -0.0, np.inf, -np.inf, np.nan]
    # Processors make NaN with a sign.
    x = tf.cast(tf.constant([*values, -np.nan]), dtype)
    upstream = tf.cast(tf.linspace(-1.0, 1.0, len(x)), dtype)
    found = []
    for training in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.function(relu)(x, training)
        found.append([y, tape.gradient(y, x, upstream)])
    for ours, expected in zip(*found, strict=True):
        np.testing.assert_array_equal(tf.cast(ours, "float32"), tf.cast(expected, "float32"))
    assert np.isnan(tf.cast(y, "float32")).sum() == 2


@pytest.mark.parametrize("training", [False, True])
def test_only_training_is_compiled_by_xla(training):
    layer = ResidualLayer(8, 1, dtype="mixed_bfloat16")
    layer.build((None, 7, 7, 8))
    traced = tf.function(lambda x: layer(x, training=training)).get_concrete_function(
        tf.TensorSpec((4, 7, 7, 8), tf.bfloat16)
    )
    compiled = "_XlaMustCompile" in str(traced.graph.as_graph_def())
    assert compiled == (training and on_cpus())
