"""Fast AutoAugment against PIL's operations, and the statistics of its draws."""

import numpy as np
import pytest
import tensorflow as tf
from golden_values import GOLDEN

from amdim_tf.data import autoaugment
from amdim_tf.data.autoaugment import OPERATIONS, POLICIES, RANGES, operate, strengthen
from amdim_tf.data.views import Policy, draw, recolor

IN_GOLDEN = [name for name in OPERATIONS if name != "Cutout"]


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "autoaugment.npz"))


def apply(name, value, images, place=0.5):
    count = len(images)
    arguments = (tf.fill([count], np.float32(number)) for number in (value, place, place))
    index = tf.fill([count], OPERATIONS.index(name))
    return operate(tf.cast(images, tf.float32), index, *arguments).numpy()


@pytest.mark.parametrize("name", IN_GOLDEN)
def test_operations(golden, name):
    low, high = RANGES[name]
    for level, expected in zip(golden["levels"], golden[name], strict=True):
        ours = apply(name, low + level * (high - low), golden["images"])
        difference = np.abs(ours - expected)
        assert difference.mean() <= 1 and np.percentile(difference, 99) <= 3


def test_cutout(golden):
    images = golden["images"]
    ours = apply("Cutout", 0.2, images, place=0.25)
    hidden = (ours == autoaugment.CUTOUT_COLOR).all(-1)
    # A fifth of 96 pixels around 24: from 14.4, so 14, to 33.2.
    assert hidden[:, 14:34, 14:34].all() and hidden.sum() < 1.05 * 2 * 20 * 20
    np.testing.assert_array_equal(ours[~hidden], images[~hidden])
    np.testing.assert_array_equal(apply("Cutout", 0.0, images), images)


def test_each_image_gets_its_own_operation(golden):
    """What a batch of all operations gives is what each gives alone, compiled or not."""
    images = tf.cast(np.repeat(golden["images"][:1, :32, :32], 16, 0), tf.float32)
    index = tf.range(-1, 15)
    value = tf.constant([0.0] + [low + 0.8 * (high - low) for low, high in RANGES.values()])
    half = tf.fill([16], 0.5)
    together = operate(images, index, value, half, half).numpy()
    np.testing.assert_array_equal(together[0], images[0])
    for i, name in enumerate(OPERATIONS):
        np.testing.assert_array_equal(together[i + 1], apply(name, value[i + 1], images[:1])[0])
    compiled = tf.function(operate, jit_compile=True)(images, index, value, half, half)
    difference = np.abs(compiled - together)
    assert difference.mean() < 0.05 and np.percentile(difference, 99) <= 1


def test_equalize_of_one_colour_changes_nothing():
    images = np.full((1, 32, 32, 3), 77, np.uint8)
    for name in ("Equalize", "AutoContrast"):
        np.testing.assert_array_equal(apply(name, 0.0, images), images)


@pytest.mark.parametrize("policy", POLICIES)
def test_statistics_of_the_draws(policy, monkeypatch):
    """Sub-policies are equally likely, operations as likely as they say, and signs even."""
    applied = []

    def record(images, index, value, x, y):
        applied.append((np.array(index), np.array(value)))
        return images

    monkeypatch.setattr(autoaugment, "operate", record)
    count = 50_000
    draws = draw((0, 1), count)[33:, 0]
    strengthen(tf.zeros((count, 1, 1, 3)), policy, draws)
    for turn, (index, value) in enumerate(applied):
        for i, (name, (low, high)) in enumerate(RANGES.items()):
            chances = [sub[turn][1] for sub in POLICIES[policy] if sub[turn][0] == name]
            expected = sum(chances) / len(POLICIES[policy])
            share = np.mean(index == i)
            assert abs(share - expected) < 5 * np.sqrt(expected / count) + 1e-9
            values = value[index == i]
            assert (values >= min(low, -high) - 1e-6).all() and (values <= high + 1e-6).all()
            if name in autoaugment.SIGNED and len(values) > 100:
                levels = np.array([s[turn][2] for s in POLICIES[policy] if s[turn][0] == name])
                assert abs(np.mean(values)) < 5 * np.std(values) / np.sqrt(len(values))
                assert np.abs(values).max() <= np.abs(low + levels * (high - low)).max() + 1e-6


def test_views_are_strengthened_only_where_asked(golden):
    views = tf.cast(np.stack([golden["images"]] * 2)[:, :, :64, :64], tf.float32)
    draws = draw((0, 2), 2)
    plain = Policy(jitter_probability=0.0, gray_probability=0.0)
    strong = Policy(jitter_probability=0.0, gray_probability=0.0, autoaugment="imagenet")
    np.testing.assert_array_equal(recolor(views, plain, draws), views)
    changed = recolor(views, strong, draws)
    assert (np.abs(changed - views).mean((2, 3, 4)) > 1).sum() >= 2
    np.testing.assert_array_equal(changed, recolor(views, strong, draws))
