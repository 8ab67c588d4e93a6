"""What a Keras model is as an encoder: its maps, its normalisation, its stages."""

import re

import keras
import numpy as np
import pytest
from every_encoder import HandMade, config_of
from golden_values import ROOT
from keras import layers

from amdim_tf import AMDIM, InputError
from amdim_tf.config import load_config
from amdim_tf.data.preprocess import Preprocess
from amdim_tf.encoders import applications
from amdim_tf.encoders.applications import application, names, normalisation
from amdim_tf.encoders.backbone import NORMALISATIONS, Backbone
from amdim_tf.training.building import build, build_encoder, check_config
from amdim_tf.training.model import Classifier


def stage(x, width):
    x = layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(width, 3, 2)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def inner(size=32):
    images = keras.Input((size, size, 3))
    return keras.Model(images, stage(stage(images, 8), 16))


def images(size=32):
    return np.random.default_rng(0).normal(size=(2, size, size, 3)).astype("float32")


def test_the_last_tensor_of_each_resolution_is_a_map():
    """Not what is padded or only scaled; f1 is the mean of the last one."""
    model = inner()
    x = images()
    within = keras.Model(model.input, [model.layers[4].output, model.output])
    expected = [np.array(each) for each in within(x)]
    features = Backbone(model)(x)
    assert list(features) == ["f1", "f8", "f16"]
    np.testing.assert_allclose(features["f16"], expected[0], atol=1e-6)
    np.testing.assert_allclose(features["f8"], expected[1], atol=1e-6)
    np.testing.assert_allclose(features["f1"], expected[1].mean((1, 2)), atol=1e-6)


def nested():
    return keras.Sequential([layers.Rescaling(2.0), inner(), layers.Flatten(), layers.Dense(3)])


@pytest.mark.parametrize("model", [nested, HandMade])
def test_models_of_every_kind_have_maps(model):
    features = Backbone(model(), 32)(images())
    assert {"f1", "f8", "f16"} <= set(features)


@pytest.mark.long
def test_the_guides_example():
    guide = (ROOT / "docs" / "encoders.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.S)
    names = {}
    exec(code, names)
    assert names["encoder"].scales == {1: 128, 4: 128, 8: 64, 16: 32}
    assert names["model"].objective.phis.keys() == {4, 8}


def test_a_model_says_itself_which_maps_it_has():
    model = inner()
    own = keras.Model(model.input, {"f8": model.output})
    assert Backbone(own).scales == {1: 16, 8: 16}


@pytest.mark.parametrize(
    "model, size, expected",
    [
        (lambda: keras.Sequential([keras.Input((12,)), layers.Dense(3)]), None, "take images"),
        (inner, 64, "side of the model's images, which are 32x32.*image_size=64"),
        (HandMade, None, "image_size must be given"),
        (
            lambda: keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)]),
            None,
            "must have spatial stages.*none at 8 pixels",
        ),
    ],
)
def test_models_that_are_no_backbones_are_refused(model, size, expected):
    with pytest.raises(InputError, match=expected):
        Backbone(model(), size)


def test_a_model_that_is_not_wrapped_is_refused():
    for make in (AMDIM, Classifier):
        with pytest.raises(InputError, match=r"Backbone\(model\).*Received: Functional"):
            make(inner(), classes=2)


def test_names_are_those_of_the_library():
    known = names()
    assert {"resnet50v2", "vgg16", "densenet121", "xception", "nasnetmobile"} <= set(known)
    modes = {normalisation(make) for make in known.values()}
    assert modes == set(NORMALISATIONS)


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"encoder": "resnet18"}, "nearest are .*resnet.*Received: encoder='resnet18'"),
        ({"encoder": "resnet50v2", "image_size": 16}, "cannot be made for images of 16 pixels"),
        ({"encoder": "mobilenetv3small", "tasks": "1-7"}, "scales 1, 2, 4, 8, 16.*tasks='1-7'"),
        ({"encoder": "mobilenetv3small", "freeze": 9}, "freeze must be at most 4.*freeze=9"),
        ({"freeze": 9}, "freeze must be at most 7.*freeze=9"),
        ({"encoder": "mobilenetv3small", "micro_batch": 4}, "without batch norm.*mobilenetv3small"),
        ({"encoder": "nowhere:model"}, "No module named 'nowhere'.*Received: encoder"),
        ({"encoder": "every_encoder:ENCODERS"}, "ENCODERS is no function.*Received: encoder"),
    ],
)
def test_what_an_encoder_cannot_do_is_refused(fields, expected):
    config = load_config("photo_patches")
    config.update(fields)
    with pytest.raises(InputError, match=expected) as error:
        check_config(config)
    assert "\n" not in str(error.value)


def test_the_models_own_normalisation_and_order_of_channels():
    """What reaches the model is what the library's `preprocess_input` gives."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")
    for name in ("resnet50", "mobilenetv3small"):
        encoder = application(name, 32)
        mean, std = encoder.normalisation
        seen = []
        encoder.maps = lambda x, training, seen=seen: seen.append(x)
        encoder.trunk(Preprocess(32, mean, std)(pixels))
        module = applications.sys.modules[names()[name].__module__]
        expected = module.preprocess_input(pixels.copy())
        np.testing.assert_allclose(seen[0], expected, rtol=1e-4, atol=1e-3)


def test_the_config_gets_what_the_encoder_decides():
    config = config_of("resnet50v2")
    assert (config.tasks, config.mean[0], config.std[0]) == ("1-4,1-8,4-4", 0.5, 0.5)
    assert config_of("amdim at 64").tasks == "1-5,1-7,5-5"


@pytest.mark.long
@pytest.mark.parametrize("name", ["hand-made", "amdim at 32"])
def test_frozen_stages_are_not_trained(name):
    config = config_of(name, freeze=1)
    model = build(config, classes=2, last_step=4)
    model.run_eagerly = name == "hand-made"  # a graph of its step takes a minute to make
    frozen = {weight.path for weight in model.encoder.non_trainable_variables}
    free = {weight.path for weight in build_encoder(config).trainable_variables}
    assert 0 < len(model.encoder.trainable_variables) < len(free)
    size = config.image_size
    views = np.random.default_rng(0).normal(size=(2, 8, size, size, 3)).astype("float32")
    before = {weight.path: weight.numpy() for weight in model.encoder.weights}
    model.fit(tuple(views), np.zeros(8, int), batch_size=8, verbose=0)
    for weight in model.encoder.weights:
        changed = not np.array_equal(weight.numpy(), before[weight.path])
        statistics = "moving" in weight.path
        assert statistics or changed == (weight.path not in frozen), weight.path


def test_averages_of_batch_norm_follow_a_short_training():
    """By Keras's own momentum, they would be mostly the initial ones after 100 updates."""
    norm = layers.BatchNormalization(momentum=0.999)
    sequence = [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, 2, "same"), norm]
    encoder = Backbone(keras.Sequential([*sequence, layers.Activation("tanh")]))
    images = 5 + 3 * keras.random.normal((16, 8, 8, 3), seed=0)
    for _ in range(100):
        learned = encoder(images, training=True)["f1"]
    np.testing.assert_allclose(encoder(images)["f1"], learned, atol=0.01)
