"""Every encoder, AMDIM's own and any Keras backbone, passes the same checks."""

import every_encoder
import keras
import numpy as np
import pytest
import tensorflow as tf
from every_encoder import ENCODERS, config_of
from long import most_long
from same import assert_a_step_after_a_checkpoint_is_the_same, assert_two_replicas_are_as_one
from stopping import assert_it_ends_the_same

from amdim_tf import load_encoder, load_preprocess
from amdim_tf.encoders.batch_norm import BatchNorm
from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.serving.saved_model import export
from amdim_tf.training.building import build, build_encoder, build_model

# One of each kind: a training of the others takes minutes.
TRAINED = ("amdim at 32", "hand-made")
# Their checks take minutes: before a release.
SLOW = ("convnexttiny", "efficientnetv2b0")
OTHERS = [name for name in ENCODERS if name not in SLOW]
slow = [pytest.param(name, marks=pytest.mark.release) for name in SLOW]
every = pytest.mark.parametrize("name", [*most_long(OTHERS, 5), *slow])


def every_long(names):
    return pytest.mark.parametrize("name", [*(long(name) for name in names), *slow])


def long(*case):
    return pytest.param(*case, marks=pytest.mark.long)


def images_for(encoder, count=4):
    size = encoder.image_size
    return np.random.default_rng(0).normal(size=(count, size, size, 3)).astype("float32")


@every
def test_the_contract(name, tmp_path):
    config = config_of(name)
    encoder = build_encoder(config)
    images = images_for(encoder)
    features = encoder(images)
    scales = encoder.scales
    assert isinstance(encoder, ImageEncoder) and len(scales) >= 3
    assert {f"f{n}": x for n, x in scales.items()} == {
        key: x.shape[-1] for key, x in features.items()
    }
    for n in scales:
        assert features[f"f{n}"].shape[1:-1] == ((n, n) if n > 1 else ())
    assert features["f1"].shape == (4, encoder.nrkhs)

    encoder.save(tmp_path / "encoder.keras")
    loaded = load_encoder(tmp_path / "encoder.keras")
    for key, value in loaded(images).items():
        np.testing.assert_array_equal(value, features[key])
    assert loaded.scales == scales and loaded.normalisation == encoder.normalisation


@every
def test_each_view_is_normalised_by_itself(name):
    encoder = build_encoder(config_of(name), "float64")
    norms = [layer for layer in encoder._flatten_layers() if isinstance(layer, BatchNorm)]
    assert not any(
        isinstance(layer, keras.layers.BatchNormalization | keras.layers.Dropout)
        for layer in encoder._flatten_layers()
        if layer not in norms
    )
    views = np.split(images_for(encoder, 8), 2)
    averages = [norm.moving_mean.numpy() for norm in norms]
    apart = [encoder(view, training=True) for view in views]
    after = [norm.moving_mean.numpy() for norm in norms]
    for norm, average in zip(norms, averages, strict=True):
        norm.moving_mean.assign(average)
    together = encoder(np.concatenate(views), training=True, views=2)
    for key, value in together.items():
        expected = np.concatenate([each[key] for each in apart])
        np.testing.assert_allclose(value, expected, atol=1e-9 * np.abs(expected).max())
    for norm, average in zip(norms, after, strict=True):
        np.testing.assert_allclose(norm.moving_mean, average, atol=1e-9)


@every_long(OTHERS)
def test_export_and_what_loads_it(name, tmp_path):
    """The export checks itself; what is loaded from it gives the same."""
    config = config_of(name)
    model = build_model(config, classes=3)
    folder = export(model, config, tmp_path, class_names=("a", "b", "c"))
    pixels = np.random.default_rng(1).integers(0, 256, (2, 300, 280, 3), "uint8")
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    f1 = load_encoder(folder, "f1")(load_preprocess(folder)(pixels))
    expected = served(images=tf.constant(pixels))["f1"]
    np.testing.assert_allclose(f1, expected, atol=1e-5 * np.abs(expected).max())


@every
def test_mixed_precision(name):
    config = config_of(name)
    keras.utils.set_random_seed(0)
    encoder = build_encoder(config, "mixed_bfloat16")
    images = images_for(encoder)
    weights = encoder.get_weights()
    full = build_encoder(config, "float32")
    full.set_weights(weights)
    assert {weight.dtype for weight in encoder.trainable_weights} == {"float32"}
    ours, expected = encoder(images), full(images)
    assert ours["f1"].dtype == "float32" and ours[f"f{max(encoder.scales)}"].dtype == "bfloat16"
    difference = np.linalg.norm(ours["f1"] - expected["f1"]) / np.linalg.norm(expected["f1"])
    assert 0 < difference < 0.1


@every
def test_in_a_sequential_model(name):
    """As feature extractor, frozen, and trained along with what follows it."""
    encoder = build_encoder(config_of(name))
    images, labels = images_for(encoder), np.arange(4) % 2
    pictures = keras.Input(images.shape[1:])
    f1 = keras.Model(pictures, encoder(pictures)["f1"])
    before = encoder.get_weights()
    for trainable in (False, True):
        encoder.trainable = trainable
        model = keras.Sequential([f1, keras.layers.Dense(2)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # A graph of all gradients takes up to a minute to make.
        model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
        model.fit(images, labels, batch_size=2, verbose=0)
        same = [np.array_equal(a, b) for a, b in zip(before, encoder.get_weights(), strict=True)]
        assert not all(same) if trainable else all(same)


@pytest.mark.long
@pytest.mark.parametrize("name", TRAINED)
def test_a_stopped_training_goes_on_to_the_same_end(name, tmp_path, monkeypatch):
    monkeypatch.setattr("amdim_tf.runs.finish.export", lambda *_: None)
    assert_it_ends_the_same(lambda: config_of(name), tmp_path, monkeypatch, 1)


@every_long(sorted(set(OTHERS) - set(TRAINED)))
def test_a_step_after_a_checkpoint_is_the_same(name, tmp_path):
    config = config_of(name, steps=3)
    first, second = np.random.default_rng(0).normal(size=(2, 2, 2, *[config.image_size] * 2, 3))
    batches = (tuple(first),), (tuple(second),)
    model = build(config, 0, config.steps)
    assert_a_step_after_a_checkpoint_is_the_same(model, config, *batches, tmp_path)


@pytest.mark.parametrize(
    "what, names",
    [
        long("training", TRAINED),
        long("gradients", sorted(set(OTHERS) - set(TRAINED))),
        pytest.param("gradients", SLOW, marks=pytest.mark.release),
    ],
)
def test_two_replicas_are_as_one(what, names, tmp_path):
    """By training, or where that takes minutes by the gradients and averages of a step."""
    one = tf.distribute.get_strategy()
    expected = {name: every_encoder.COMPARED[what](one, name) for name in names}
    assert_two_replicas_are_as_one(every_encoder.__file__, (what,), expected, tmp_path)
