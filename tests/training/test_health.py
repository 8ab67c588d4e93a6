"""Measures of f1 without labels, against NumPy and by what they are to tell apart."""

import dataclasses

import numpy as np
import pytest

from amdim_tf.config import load_config
from amdim_tf.data import pipeline, sources
from amdim_tf.data.splits import in_memory
from amdim_tf.distribution import choose_devices
from amdim_tf.errors import InputError
from amdim_tf.evaluation.online import F1, Online
from amdim_tf.training.building import build_model, check_config
from amdim_tf.training.health import effective_rank, of_batch, of_features

GENERATOR = np.random.default_rng(0)


def test_against_loops():
    f1 = GENERATOR.normal(size=(10, 6)).astype("float32") + 0.5
    unit = f1 / np.linalg.norm(f1, axis=1, keepdims=True)
    x1, x2 = unit[:5], unit[5:]
    apart = [np.sum((x1[i] - x1[j]) ** 2) for i in range(5) for j in range(5) if i != j]
    expected = {
        "f1_std": 6**0.5 * x1.std(0).mean(),
        "f1_alignment": np.mean([np.sum((a - b) ** 2) for a, b in zip(x1, x2, strict=True)]),
        "f1_uniformity": np.log(np.mean(np.exp(-2 * np.array(apart)))),
    }
    found = of_batch(f1, views=2)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-4), name
    assert "f1_alignment" not in of_batch(f1, views=1)  # there is nothing to compare with
    assert of_features(f1[:5])["f1_uniformity"] == pytest.approx(
        expected["f1_uniformity"], rel=1e-4
    )


def test_a_sphere_a_plane_and_a_point():
    sphere = GENERATOR.normal(size=(500, 64))
    plane = sphere[:, :2] @ GENERATOR.normal(size=(2, 64))
    point = np.ones((500, 64)) + 1e-4 * sphere
    ranks = [effective_rank(each) for each in (sphere, plane, point)]
    assert 55 < ranks[0] <= 64 and 1.8 < ranks[1] <= 2 and 1 <= ranks[2] < 1.1
    found = [of_features(np.float32(each)) for each in (sphere, plane, point)]
    deviations = [each["f1_std"] for each in found]
    assert deviations[0] == pytest.approx(1, abs=0.02) and deviations[2] < 0.01
    assert found[0]["f1_uniformity"] < found[1]["f1_uniformity"] < found[2]["f1_uniformity"] < 1e-3


@pytest.mark.parametrize("labelled", [True, False])
def test_after_an_epoch(labelled):
    """With labels and without: neighbours only with them, and the rank of the same f1."""
    config = load_config("photo_patches")
    config.update({"ndf": 4, "nrkhs": 16, "ndepth": 1, "probe_images": 200})
    check_config(config)
    data, devices = sources.load(config), choose_devices()
    if not labelled:
        images = np.stack([image for image, _ in data.train.examples.take(300)])
        train = in_memory(images, np.full(300, -1))
        data = dataclasses.replace(data, train=train, probe=None, test=None, class_names=())
    model = build_model(config, 0)
    online = Online(data, config, devices)
    found = online(model)
    f1_of = F1(model.encoder, data)
    f1 = f1_of(pipeline.test_batches(data, online.known, config)).values
    assert len(f1) == 200
    assert found["f1_effective_rank"] == pytest.approx(effective_rank(f1))
    assert ("test_knn_accuracy" in found) == labelled
    if labelled:
        assert 1 / 14 < found["test_knn_accuracy"] <= 1
    model.encoder.set_weights([0 * x for x in model.encoder.get_weights()])
    assert online(model)["f1_effective_rank"] == pytest.approx(1)  # f1 is the same for all images
    model.encoder.set_weights([np.nan * x for x in model.encoder.get_weights()])
    assert not np.isfinite(online(model)["f1_effective_rank"]) and len(online(model)) == 1
    with pytest.raises(InputError, match="f1 must be of finite numbers"):
        of_features(np.full((3, 4), np.nan))
