import keras
import numpy as np
import pytest
import tensorflow as tf

from amdim_tf import distribution
from amdim_tf.training.optimizer import AdamL2, WarmupStepDecay


@pytest.mark.parametrize("backend", ["tensorflow", "another"])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("float64", 1e-7)])
def test_updates_are_those_of_adam_with_coupled_l2(backend, dtype, tolerance, monkeypatch):
    if backend == "another":
        monkeypatch.setattr(distribution, "tf", None)
    generator = np.random.default_rng(0)
    weights = start = generator.normal(size=8).astype("float32")
    variable = keras.Variable(weights, dtype=dtype)
    optimizer = AdamL2(learning_rate=0.01, l2=0.1)
    m, v = np.zeros(8), np.zeros(8)
    for step in range(1, 30):
        # Tiny gradients, at which the place of epsilon shows.
        gradient = generator.normal(size=8) * 1e-7
        optimizer.apply([tf.constant(gradient, dtype)], [variable])
        gradient = gradient + 0.1 * weights
        m, v = 0.8 * m + 0.2 * gradient, 0.999 * v + 0.001 * gradient**2
        weights = weights - 0.01 * (m / (1 - 0.8**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(variable - start, weights - start, rtol=tolerance)


def test_variables_of_a_type_share_the_corrections():
    def variables():
        return [keras.Variable([1.0, 2.0], dtype=each) for each in ("float32", "float64") * 2]

    def apply(optimizer, chosen):
        return optimizer.apply([tf.ones(2, each.dtype) for each in chosen], chosen)

    together, alone = variables(), variables()
    optimizer = AdamL2(learning_rate=0.1)
    optimizer.build(together)
    step = tf.function(lambda: apply(optimizer, together), autograph=False)
    for _ in range(3):
        step()
    for each in alone:
        own = AdamL2(learning_rate=0.1)
        for _ in range(3):
            apply(own, [each])
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    operations = [each.type for each in step.get_concrete_function().graph.get_operations()]
    assert operations.count("ResourceApplyAdam") == 4 and operations.count("Expm1") == 4


@pytest.mark.parametrize(
    "step, expected",
    [
        (0, 0.002),
        (49, 0.1),
        (50, 0.1),
        (99, 0.1),
        (100, 0.02),
        (149, 0.02),
        (150, 0.004),
        (999, 0.004),
    ],
)
def test_schedule(step, expected):
    schedule = WarmupStepDecay(0.1, warmup=50, decays=(100, 150), rate=0.2)
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)
    reloaded = WarmupStepDecay.from_config(schedule.get_config())
    np.testing.assert_allclose(reloaded(tf.constant(step)), expected, rtol=1e-5)


def test_no_warmup_and_no_decay():
    np.testing.assert_allclose(WarmupStepDecay(0.1, warmup=0)(0), 0.1)
