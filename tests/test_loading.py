"""Trained encoders in Keras: the README's examples, and what they rest on."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from amdim_tf import InputError, Preprocess, load_encoder, load_preprocess
from amdim_tf.config import load_config
from amdim_tf.export import export
from amdim_tf.files import write_json
from amdim_tf.run_directory import RunDirectory
from amdim_tf.train import build
from amdim_tf.views import center, normalize

GENERATOR = np.random.default_rng(0)
README = pathlib.Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An encoder, and where it lies: run directory, .keras file, export."""
    run = tmp_path_factory.mktemp("runs") / "run"
    config = load_config("photo_patches")
    config.update({"ndf": 8, "nrkhs": 32, "ndepth": 1})
    model = build(config, 3, 1)
    for variable in model.encoder.variables:  # none is left as it was drawn
        noise = GENERATOR.uniform(0, 0.01, variable.shape).astype("float32")
        variable.assign(variable + noise)
    RunDirectory(run, config).save(model, 1)
    write_json(run / "classes.json", ["a", "b", "c"])
    model.encoder.save(run / "encoder.keras")
    return model.encoder, [run, run / "encoder.keras", export(model, config, run / "export")]


def test_every_place_gives_the_same_encoder(saved):
    encoder, paths = saved
    images = GENERATOR.normal(size=(3, 32, 32, 3)).astype("float32")
    expected = encoder(images)
    for path in paths:
        loaded = load_encoder(str(path))
        for name, features in loaded(images).items():
            np.testing.assert_array_equal(features, expected[name])
        assert loaded.trainable and len(loaded.trainable_weights) == len(encoder.trainable_weights)
    f7 = load_encoder(paths[0], "f7")
    assert f7.output_shape == (None, 7, 7, 32)
    np.testing.assert_array_equal(f7(images), expected["f7"])
    (mapped,) = tf.data.Dataset.from_tensors(images).map(f7)
    np.testing.assert_allclose(mapped, expected["f7"], atol=1e-5)


def test_what_is_no_encoder_is_refused(saved, tmp_path):
    _, (run, *_) = saved
    other = tmp_path / "other.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(other)
    for path in (tmp_path, other, tmp_path / "none.keras"):
        with pytest.raises(InputError, match="Received: .*" + path.name):
            load_encoder(path)
    with pytest.raises(InputError, match="feature must be one of f1, f5, f7, or none"):
        load_encoder(run, "f3")


def test_preprocess_is_the_test_time_transform(saved, tmp_path):
    _, (run, keras_file, exported) = saved
    images = GENERATOR.integers(0, 256, (2, 40, 50, 3), "uint8")
    config = load_config("photo_patches")
    expected = normalize(center(images, 32), config.mean, config.std)
    for path in (run, exported):
        np.testing.assert_array_equal(load_preprocess(path)(images), expected)
    with pytest.raises(InputError, match="encoder.keras"):
        load_preprocess(keras_file)
    # Saved with a model, for images of any size, and inside of a dataset.
    layer = Preprocess(64, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    model = keras.Sequential([keras.Input((None, None, 3)), layer])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    mapped = tf.data.Dataset.from_tensors(images).map(layer)
    for output in (again(images), again.predict(images, verbose=0), *mapped):
        np.testing.assert_allclose(output, layer(images), atol=1e-5)
    for shape in ((0, 8, 8, 3), (2, 0, 8, 3), (2, 8, 8, 1), (8, 8, 3)):
        with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
            layer(np.zeros(shape, "uint8"))


def test_the_examples_of_the_readme(saved):
    """A classifier on frozen features, then fine-tuning; classes differ in brightness."""
    _, (run, *_) = saved
    labels = GENERATOR.integers(0, 3, 96)
    images = GENERATOR.integers(0, 60, (96, 40, 40, 3)) + 80 * labels[:, None, None, None]
    (example,) = re.findall(r"```python\n(import keras\n.*?)```", README.read_text(), re.DOTALL)
    frozen, tuned = example.split("\n# Fine-tuning")
    space = {"run": str(run), "images": images.astype("uint8"), "labels": labels}
    exec(frozen.replace('run = "', 'other = "'), space)
    encoder, classifier = space["encoder"], space["classifier"]
    before = [weight.numpy() for weight in encoder.weights]

    def accuracy():
        return classifier.evaluate(space["images"], labels, verbose=0)[1]

    assert accuracy() > 0.6
    loaded = load_encoder(run, "f1")
    for weights, ours, original in zip(before, encoder.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(weights, original)
        np.testing.assert_array_equal(ours, original)
    exec("# Fine-tuning" + tuned, space)
    pairs = zip(encoder.weights, before, strict=True)
    moved = [np.abs(ours - theirs).max() > 0 for ours, theirs in pairs]
    # Running averages of the batch norm as well as kernels.
    assert all(moved) and accuracy() > 0.6
