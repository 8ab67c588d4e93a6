"""Initial parameters and losses against the reference's, over 10 seeds."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_values import GOLDEN, scored

from amdim_tf.config import load_config
from amdim_tf.data.views import normalize
from amdim_tf.encoders.amdim import Encoder
from amdim_tf.reference.conversion import named_variables
from amdim_tf.training.model import AMDIM
from amdim_tf.training.optimizer import AdamL2

SEEDS = range(10)


@pytest.fixture(scope="module")
def expected():
    return json.loads((GOLDEN / "initialisation.json").read_text())


@pytest.fixture(scope="module")
def models():
    models = []
    for seed in SEEDS:
        keras.utils.set_random_seed(seed)
        model = AMDIM(Encoder(image_size=32, ndf=32, nrkhs=256, ndepth=2), classes=10, seed=seed)
        model.compile(optimizer=AdamL2())
        models.append(model)
    return models


def test_parameters(expected, models):
    drawn = [named_variables(model) for model in models]
    for name, statistics in expected["parameters"].items():
        values = np.stack([variables[name] for variables in drawn])
        low, high = statistics["min"], statistics["max"]
        if low == high:
            assert (values == low).all(), name
        elif values[0].size >= 256:
            np.testing.assert_allclose(values.std(), statistics["std"], rtol=0.05, err_msg=name)
            np.testing.assert_allclose(values.min(), low, rtol=0.05, err_msg=name)
            np.testing.assert_allclose(values.max(), high, rtol=0.05, err_msg=name)
        else:
            # 10 to 32 biases: too few for their extremes to come within 5 % of each other.
            assert values.min() <= low and values.max() >= high, name
            np.testing.assert_allclose(values.std(), statistics["std"], rtol=0.1, err_msg=name)


def test_layers_of_one_shape_differ_and_a_seed_repeats(models):
    keras.utils.set_random_seed(3)
    again = Encoder(image_size=32, ndf=32, nrkhs=256, ndepth=2)
    for ours, theirs in zip(again.weights, models[3].encoder.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kernels = [block.residual[0].conv1.kernel for block in (again.to_5x5, again.to_3x3)]
    assert (np.array(kernels[0]) != np.array(kernels[1])).any()


def test_losses(expected, models):
    config = load_config("cifar10")
    images = np.load(GOLDEN / "initialisation_images.npz")["images"]
    x1 = normalize(images, config.mean, config.std)
    x2 = tf.reverse(x1, axis=[2])
    ours = []
    for model in models:
        losses, penalty, *_ = scored(
            model, x1, x2, model.objective.draw(model.seed, model.step, len(x1))
        )
        values = {name: float(loss) for name, loss in losses.items()} | {
            "regulariser": float(penalty)
        }
        ours.append(values | {"total": sum(values.values())})
    for name, statistics in expected["losses"].items():
        # Of the difference of two means over 10 seeds.
        deviation = statistics["sd"] * np.sqrt(2 / len(SEEDS))
        mean = np.mean([values[name] for values in ours])
        assert abs(mean - statistics["mean"]) <= 3 * deviation, name
