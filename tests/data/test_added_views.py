"""What views may have beyond the reference's: other crops, blur, small crops, layers."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_values import ROOT
from scipy import ndimage

from amdim_tf.config import load_config
from amdim_tf.data import pipeline, sources
from amdim_tf.data.filters import blur, by_layer, own_layer, solarize
from amdim_tf.data.policy import Policy
from amdim_tf.data.views import crop_boxes, crop_one, draw, reframe, two_views
from amdim_tf.encoders.amdim import Encoder
from amdim_tf.errors import InputError
from amdim_tf.objectives.amdim import Amdim
from amdim_tf.training.building import check_config

GENERATOR = np.random.default_rng(0)
PLAIN = {"flip_probability": 0.0, "jitter_probability": 0.0, "gray_probability": 0.0}
IMAGES = GENERATOR.integers(0, 256, (6, 40, 48, 3)).astype("float32")


def test_blur_is_gaussian():
    images = GENERATOR.uniform(0, 255, (2, 3, 24, 24, 3)).astype("float32")
    sigma = np.float32([[0.4, 1, 2], [0.7, 1.5, 0.9]])
    found = blur(images, sigma).numpy()
    for v, b in np.ndindex(2, 3):
        # What is outside does not count: the weights of what is inside add up to one.
        weights = [
            ndimage.gaussian_filter(x, (sigma[v, b],) * 2 + (0,), mode="constant", truncate=12)
            for x in (images[v, b], np.ones_like(images[v, b]))
        ]
        np.testing.assert_allclose(found[v, b], weights[0] / weights[1], atol=2e-2)


def test_solarize_inverts_the_bright_half():
    images = np.arange(256, dtype="float32").reshape(1, 1, 16, 16, 1)
    expected = np.where(images >= 128, 255 - images, images)
    np.testing.assert_array_equal(solarize(tf.constant([[True]]), images), expected)
    np.testing.assert_array_equal(solarize(tf.constant([[False]]), images), images)


@pytest.mark.parametrize("name", ["blur", "solarize"])
def test_probabilities_of_each_view(name):
    images = np.tile(IMAGES[:1, :32, :32], (2000, 1, 1, 1))
    policy = Policy("none", **PLAIN | {f"{name}_probability": 0.3}, blur_sigma=(3, 4))
    pair = two_views(images, 32, policy, draw((0, 1), 2000)).numpy()
    changed = np.abs(pair - images).max((2, 3, 4)) > 1e-2
    assert changed.mean(1) == pytest.approx([0.3, 0.3], abs=0.04)
    assert abs(np.corrcoef(changed)[0, 1]) < 0.09


def test_the_area_and_the_ratio_of_crops():
    policy = Policy("crop", crop_area=(0.1, 0.2), crop_ratio=(2.0, 3.0))
    boxes_of = tf.function(lambda draws: crop_boxes(draws, 300, 400, policy)[1])
    boxes = np.concatenate([boxes_of(draw((0, step), 1)) for step in range(200)])
    area, ratio = boxes[:, 2] * boxes[:, 3] / (300 * 400), boxes[:, 3] / boxes[:, 2]
    assert 0.099 < area.min() < 0.11 and 0.19 < area.max() < 0.201
    assert 1.95 < ratio.min() < 2.1 and 2.9 < ratio.max() < 3.06


@pytest.mark.parametrize("geometry", ["crop", "translate", "none"])
def test_small_crops_come_after_the_two_views(geometry):
    """The first two are what they would be without, by the same draws; others are small crops."""
    policy = Policy(geometry, **PLAIN, small_crops=2, small_area=(0.05, 0.06))
    draws = draw((0, 2), 6, policy.views)
    found = reframe(IMAGES, 32, policy, draws)
    assert found.shape == (4, 6, 32, 32, 3)
    two = reframe(IMAGES, 32, Policy(geometry, **PLAIN), draws[:, :2])
    np.testing.assert_array_equal(found[:2], two)
    small = Policy("crop", **PLAIN, crop_area=(0.05, 0.06))
    np.testing.assert_array_equal(found[2:], reframe(IMAGES, 32, small, draws[:, 2:]))


def test_small_crops_of_large_images():
    policy = Policy("crop", small_crops=1)
    pixels = GENERATOR.uniform(0, 255, (300, 400, 3)).astype("float32")
    for step in range(3):
        draws = draw((0, step), 1, policy.views)
        (top, left, height, width), boxes = crop_boxes(draws, 300, 400, policy)
        assert boxes.shape == (3, 4)
        area = boxes[:, 2] * boxes[:, 3] / (300 * 400)
        assert area[2] <= 0.301 and min(area[:2]) >= 0.299
        window = pixels[top : top + height, left : left + width]
        ours = crop_one(window, boxes, 64, policy, draws)
        np.testing.assert_allclose(ours, reframe(pixels[None], 64, policy, draws)[:, 0], atol=0.6)


def random_layer():
    return keras.Sequential(
        [keras.layers.RandomBrightness(0.5, (0, 255)), keras.layers.RandomRotation(0.2)]
    )


def halves():
    return keras.layers.Cropping2D(8)


def data_and_config(**fields):
    config = load_config("photo_patches")
    config.batch_size = 8
    config.update_from_flattened_dict(fields)
    check_config(config)
    return sources.load(config), config


@pytest.mark.long
def test_ones_own_layer_depends_on_the_draws_alone():
    """On one device or on two, and again after a restart."""
    data, config = data_and_config(**{"views.layer": "test_added_views:random_layer"})
    ((x1, x2), _), *_ = pipeline.train_batches(data, config, 3, 4)
    plain = data_and_config()
    ((y1, y2), _), *_ = pipeline.train_batches(*plain, 3, 4)
    for ours, without in ((x1, y1), (x2, y2)):
        assert np.abs(ours - without).mean((1, 2, 3)).min() > 0.01  # each image is changed
    assert np.abs((x1 - y1) - (x2 - y2)).mean() > 0.01
    to_views = pipeline.views_of(data, config)
    images = tf.random.uniform((8, *data.image_shape, 3), 0, 255)
    draws = tf.transpose(draw((0, 3), 8), (2, 0, 1))
    together = to_views(images, draws)
    for ours, part in zip(together, to_views(images[4:], draws[4:]), strict=True):
        np.testing.assert_allclose(ours[4:], part, atol=1e-4)


def test_the_guides_layer(tmp_path, monkeypatch):
    guide = (ROOT / "docs" / "training.md").read_text()
    (code,) = re.findall(r"```python\n(\"\"\"my_views.*?)```", guide, re.DOTALL)
    (tmp_path / "my_views.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    layer = own_layer("my_views:erase", (32, 32, 3))
    images = tf.fill((2, 3, 32, 32, 3), 100.0)
    changed = by_layer(layer, images, draw((0, 1), 3)[:2])
    assert 0 < np.mean(changed != images) < 1


@pytest.mark.parametrize(
    "name, message",
    [
        ("nothing", "MODULE:NAME of a Keras layer"),
        ("no_such_module:layer", "No module named"),
        ("test_added_views:IMAGES", "not callable"),
        ("test_added_views:halves", "must keep the shape .32, 32, 3.*.16, 16, 3."),
    ],
)
def test_what_is_no_layer_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        own_layer(name, (32, 32, 3))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"views.crop_area": (0.5, 0.2)}, "crop_area must be the least and the largest"),
        ({"views.crop_area": (0.5,)}, "crop_area must be the least and the largest"),
        ({"views.crop_area": (0.5, 2.0)}, "positive numbers up to 1"),
        ({"views.crop_ratio": (0.0, 1.0)}, "crop_ratio must be"),
        ({"views.blur_sigma": (-1.0, 1.0)}, "blur_sigma must be"),
        ({"views.blur_probability": 1.5}, "blur_probability must lie in 0..1"),
        ({"views.layer": "no_such:layer"}, "No module named"),
        ({"views.small_crops": -1}, "small_crops must be at least 0"),
        ({"views.small_crops": 1, "tasks": "5-5"}, "small_crops must be 0 unless"),
        ({"views.small_crops": 1, "mixture_components": 2}, "small_crops must be 0 unless"),
        ({"views.small_crops": 1, "micro_batch": 2}, "small_crops must be 0 unless"),
        ({"views.small_crops": 1, "objective": "supervised"}, "unless the objective is amdim"),
    ],
)
def test_refused_in_words(fields, message):
    config = load_config("photo_patches")
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError, match=message):
        check_config(config)


def test_small_crops_are_scored_against_both_views():
    """Their loss is that of the tasks from f1, where they take the place of the views' f1."""
    embeddings = {
        1: GENERATOR.normal(size=(4 * 3, 16)).astype("float32"),
        5: GENERATOR.normal(size=(2 * 3, 5, 5, 16)).astype("float32"),
        7: GENERATOR.normal(size=(2 * 3, 7, 7, 16)).astype("float32"),
    }
    encoder = Encoder(32, ndf=4, nrkhs=16, ndepth=1)
    objective, plain, from_f1 = Amdim(small_crops=2), Amdim(), Amdim("1-5,1-7")
    for each in (objective, plain, from_f1):
        each.build(encoder)
    assert (objective.views, plain.views) == (4, 2)
    locations = plain.draw(0, 0, 3)
    both = {n: x[:6] if n == 1 else x for n, x in embeddings.items()}
    expected = plain.losses(both, None, locations)
    small = []
    for place in (2, 3):
        f1 = embeddings[1][3 * place : 3 * place + 3]
        replaced = both | {1: np.concatenate([f1, f1])}
        small.append(float(from_f1.losses(replaced, None, {}).total))
    found = objective.losses(embeddings, None, locations)
    assert float(found.terms["small_crops"]) == pytest.approx(np.mean(small), rel=1e-5)
    assert float(found.total) == pytest.approx(float(expected.total) + np.mean(small), rel=1e-5)
    assert float(found.terms["nce_1-5"]) == pytest.approx(float(expected.terms["nce_1-5"]))
    assert set(found.metrics) == set(objective.metrics)


@pytest.mark.long
def test_views_are_as_many_as_the_objective_wants():
    data, config = data_and_config(**{"views.small_crops": 1, "views.blur_probability": 0.5})
    (found, labels), *_ = pipeline.train_batches(data, config, 0, 1)
    assert [x.shape for x in found] == [(8, 32, 32, 3)] * 3 and labels.shape == (8,)
