"""Trained encoders in Keras: the guide's examples, and what they rest on."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_values import ROOT
from long import most_long

from amdim_tf import InputError, Preprocess, load_encoder, load_preprocess
from amdim_tf.config import load_config
from amdim_tf.data.views import center, normalize
from amdim_tf.files import write_json
from amdim_tf.serving.saved_model import export
from amdim_tf.training.building import build
from amdim_tf.training.run_directory import RunDirectory

GENERATOR = np.random.default_rng(0)
GUIDE = ROOT / "docs" / "serving.md"


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


@pytest.fixture(params=most_long(["channels_first", "float64", "float16", "mixed_bfloat16"], 4))
def global_setting(request):
    """Keras's global settings as somebody else's code may leave them."""
    before = keras.config.dtype_policy(), keras.config.floatx()
    if request.param == "channels_first":
        keras.config.set_image_data_format(request.param)
    else:
        keras.config.set_dtype_policy(request.param)
        if not request.param.startswith("mixed"):
            keras.config.set_floatx(request.param)
    yield
    keras.config.set_dtype_policy(before[0])
    keras.config.set_floatx(before[1])
    keras.config.set_image_data_format("channels_last")


def test_keras_global_settings_do_not_matter(global_setting, saved):
    encoder, paths = saved
    images = np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype("float32")
    for path in paths:
        loaded = load_encoder(path)
        assert {weight.dtype for weight in loaded.weights} == {"float32"}
        for name, features in loaded(images).items():
            np.testing.assert_array_equal(features, encoder(images)[name])
        np.testing.assert_allclose(load_encoder(path, "f1")(images), loaded(images)["f1"])
    pixels = np.random.default_rng(1).integers(0, 256, (2, 40, 50, 3), "uint8")
    assert load_preprocess(paths[0])(pixels).shape == (2, 32, 32, 3)


def test_two_encoders_in_one_model(saved, tmp_path):
    encoder, paths = saved
    images = keras.Input((32, 32, 3))
    models = [load_encoder(paths[0], "f1"), load_encoder(paths[2], "f1", name="second")]
    both = keras.Model(images, keras.layers.Concatenate()([model(images) for model in models]))
    pixels = np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype("float32")
    expected = np.concatenate(2 * [encoder(pixels)["f1"]], axis=1)
    np.testing.assert_allclose(both(pixels), expected, atol=1e-6)
    both.save(tmp_path / "both.keras")
    again = keras.models.load_model(tmp_path / "both.keras")
    np.testing.assert_allclose(again(pixels), expected, atol=1e-6)
    assert load_encoder(paths[1], name="other").name == "other"


@pytest.mark.long
def test_an_export_on_another_file_system(saved):
    encoder, (*_, exported) = saved
    for path in pathlib.Path(exported).rglob("*"):
        place = f"ram://export/1/{path.relative_to(exported)}"
        if path.is_file():
            tf.io.gfile.makedirs(place.rpartition("/")[0])
            tf.io.write_file(place, path.read_bytes())
    images = np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype("float32")
    loaded = load_encoder("ram://export/1", "f1")
    np.testing.assert_array_equal(loaded(images), encoder(images)["f1"])
    assert load_preprocess("ram://export/1").image_size == 32


def test_what_is_no_encoder_is_refused(saved, tmp_path):
    _, (run, *_) = saved
    other = tmp_path / "other.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(other)
    damaged = tmp_path / "damaged.keras"
    damaged.write_bytes(other.read_bytes()[:100])
    for path in (tmp_path, other, tmp_path / "none.keras", damaged):
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
    with pytest.raises(InputError, match="normalised.*encoder.keras"):
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


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 1, "0..255"), (-1, 1, "0..255"), (0.5, 0.5, "0..255"), (0, np.nan, "finite numbers")],
)
def test_floats_of_another_range_are_refused(low, high, expected):
    layer = Preprocess(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    images = np.full((2, 40, 50, 3), low, "float32")
    images[1, 20, 20] = high
    for dtype in ("float32", "float16", "float64"):
        with pytest.raises(tf.errors.InvalidArgumentError, match=expected):
            layer(images.astype(dtype))
    assert np.isfinite(layer(np.zeros((2, 40, 50, 3)))).all()
    pixels = np.random.default_rng(1).integers(0, 2, (2, 40, 50, 3))  # nearly black, and right
    np.testing.assert_array_equal(layer(pixels.astype("uint8")), layer(pixels))


def test_the_examples_of_the_readme(saved):
    """A classifier on frozen features, then fine-tuning; classes differ in brightness."""
    _, (run, *_) = saved
    labels = GENERATOR.integers(0, 3, 96)
    images = GENERATOR.integers(0, 60, (96, 40, 40, 3)) + 80 * labels[:, None, None, None]
    (example,) = re.findall(
        r"```python\n(from amdim_tf import load_encoder.*?)```", GUIDE.read_text(), re.DOTALL
    )
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
