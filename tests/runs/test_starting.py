"""Training starts from weights that are there already."""

import json
import shutil

import keras
import numpy as np
import pytest
from every_encoder import config_of

from amdim_tf import InputError
from amdim_tf.config import fields, load_config
from amdim_tf.runs.starting import first_weights
from amdim_tf.runs.training import train
from amdim_tf.training.building import build_encoder
from amdim_tf.training.run_directory import load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the hand-made encoder."""
    run = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amdim_tf.runs.training.wanted", lambda *_: ())
        train(config_of("hand-made"), run)
    return run


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.long
def test_weights_of_a_run_and_of_files(run, tmp_path):
    encoder = load_model(run)[0].encoder
    encoder.save_weights(tmp_path / "own.weights.h5")
    for source in (run, run / "encoder.keras", tmp_path / "own.weights.h5"):
        found = first_weights(config_of("hand-made", weights=str(source)))
        same(found, encoder.get_weights())
    assert first_weights(config_of("hand-made")) is None


@pytest.mark.long
def test_weights_of_a_model_of_keras_applications(tmp_path):
    model = keras.applications.MobileNetV3Small(
        weights=None, include_top=False, input_shape=(32, 32, 3)
    )
    model.save_weights(tmp_path / "model.weights.h5")
    path = str(tmp_path / "model.weights.h5")
    same(first_weights(config_of("mobilenetv3small", weights=path)), model.get_weights())


@pytest.mark.long
def test_a_run_goes_on_from_them(run, tmp_path, monkeypatch):
    """Its first step starts from them, and a start in the middle does not need them."""
    monkeypatch.setattr("amdim_tf.runs.training.wanted", lambda *_: ())
    config = config_of("hand-made", weights=str(run), steps=1, learning_rate=1e-12, l2=0.0)
    train(config, tmp_path / "next")
    before, after = (load_model(path)[0].encoder for path in (run, tmp_path / "next"))
    for ours, theirs in zip(before.trainable_weights, after.trainable_weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)
    drawn = build_encoder(config).trainable_weights[0]
    assert not np.allclose(drawn, after.trainable_weights[0], atol=1e-3)
    config.weights = "gone"
    (tmp_path / "next" / "config.json").write_text(json.dumps(fields(config)))
    train(config, tmp_path / "next")
    shutil.rmtree(tmp_path / "next" / "checkpoints")
    (tmp_path / "next" / "result.json").unlink()
    with pytest.raises(InputError, match="gone"):
        train(config, tmp_path / "next")


@pytest.mark.parametrize(
    "name, weights, expected",
    [
        ("amdim at 32", "imagenet", "for the models of keras.applications.*encoder='amdim'"),
        ("amdim at 32", "nowhere", "loaded from a run directory.*nowhere"),
        ("amdim at 32", "nowhere.weights.h5", "weights='nowhere.weights.h5'"),
        ("mobilenetv3small", "nowhere.weights.h5", "nowhere.weights.h5"),
    ],
)
def test_other_weights_are_refused(name, weights, expected):
    config = config_of(name, weights=weights)
    with pytest.raises(InputError, match=expected) as error:
        first_weights(config)
    assert "\n" not in str(error.value)


def test_weights_of_another_shape_are_refused(tmp_path):
    build_encoder(config_of("amdim at 32", ndf=5)).save(tmp_path / "encoder.keras")
    config = config_of("amdim at 32", weights=str(tmp_path / "encoder.keras"))
    with pytest.raises(InputError, match="same encoder .* has the shape .* there and .* here"):
        first_weights(config)


def test_without_network_imagenets_weights_are_refused(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise Exception("URL fetch failure on https://storage:\n [Errno -3] no name")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", unreachable)
    config = load_config("photo_patches")
    config.update({"encoder": "mobilenetv3small", "weights": "imagenet", "batch_size": 8})
    with pytest.raises(InputError, match="weights imagenet: URL fetch failure"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
