"""Mixture features (3.7, Equations 6 and 7)."""

import numpy as np
import pytest
import tensorflow as tf
from golden_values import scored
from test_nce import embeddings

from amdim_tf.encoders.amdim import Encoder
from amdim_tf.objectives import multiscale
from amdim_tf.objectives.mixture import Mixture, expectation, posterior
from amdim_tf.objectives.nce import nce
from amdim_tf.training.model import AMDIM

GENERATOR = np.random.default_rng(0)
LOSSES = GENERATOR.gamma(2.0, size=(3, 4, 49)).astype("float32")


def value(q, losses, alpha):
    """Equation 6 for the posterior q, to maximise, in float64."""
    entropy = -np.sum(q * np.log(np.maximum(q, 1e-300)), axis=0)
    return np.mean(np.sum(-q * losses, axis=0) + alpha * entropy)


def entropy(tau):
    return float(expectation(LOSSES, tau)[1])


def test_posteriors():
    for tau in (0.1, 1.0, 7.0):
        q = posterior(LOSSES, tau).numpy()
        np.testing.assert_allclose(q.sum(0), 1, atol=1e-6)
        order = [2, 0, 1]
        np.testing.assert_allclose(posterior(LOSSES[order], tau), q[order], atol=1e-6)
    np.testing.assert_allclose(posterior(LOSSES, 1e-6), 1 / 3, atol=1e-5)
    one_hot = np.arange(3)[:, None, None] == LOSSES.argmin(0)
    assert np.abs(posterior(LOSSES, 1e5) - one_hot).max() < 1e-3
    # alpha is 1/tau.
    entropies = [entropy(1 / alpha) for alpha in (0.01, 0.1, 1, 10, 100)]
    assert (np.diff(entropies) > 0).all() and entropies[-1] <= np.log(3) + 1e-6


def test_the_posterior_is_the_best_for_alpha_1_over_tau_and_no_other():
    tau, losses = 2.5, LOSSES.astype("float64")
    q = np.float64(posterior(losses, tau))
    loss, mean = expectation(losses, tau)
    np.testing.assert_allclose(loss - mean / tau, -value(q, losses, 1 / tau), rtol=1e-6)
    steps = [GENERATOR.dirichlet(np.ones(3), (4, 49)).transpose(2, 0, 1) - q for _ in range(50)]
    for step in steps:
        for size in (1e-2, 1.0):
            assert value(q + size * step, losses, 1 / tau) < value(q, losses, 1 / tau)
    for alpha in (0.5 / tau, 2 / tau):
        other = np.float64(posterior(losses, 1 / alpha))
        assert value(other, losses, alpha) > value(q, losses, alpha)


def test_the_gradient_is_that_through_the_posterior():
    losses = tf.constant(LOSSES, "float64")
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(losses)
        loss, mean = expectation(losses, 1.7)
        held = loss - mean / 1.7
        q = posterior(losses, 1.7)
        through = tf.reduce_sum(q * losses + q * tf.math.log(q) / 1.7) / (4 * 49)
    np.testing.assert_allclose(held, through, rtol=1e-12)
    ours, expected = (tape.gradient(total, losses) for total in (held, through))
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


def test_against_the_equations():
    """Both directions, one component and one consequent at a time."""
    views, tau = [embeddings(4, 8, seed) for seed in (1, 2)], 0.8
    components = GENERATOR.normal(size=(2, 4, 3, 8)).astype("float32")
    locations = {5: GENERATOR.integers(0, 25, (2, 4))}
    tasks = multiscale.parse_tasks("1-5,1-7,5-5,1-1")
    losses, penalty, entropies = multiscale.multiscale_nce(
        *views, locations, tasks, components=list(components), tau=tau
    )
    plain, plain_penalty, none = multiscale.multiscale_nce(*views, locations, tasks)
    assert not none and set(entropies) == {"1-5", "1-7", "1-1"}
    np.testing.assert_allclose(losses["5-5"], plain["5-5"], rtol=1e-6)
    penalties = []
    for m in (1, 5, 7):
        totals = []
        for side, target in enumerate(views[::-1]):
            consequents = target[m].reshape(4, -1, 8)
            each = [
                nce(components[side][None, :, j], consequents) for j in range(3)
            ]  # one antecedent of each image
            s = np.stack([-loss[0] for loss, _ in each])
            q = np.exp(tau * s) / np.exp(tau * s).sum(0)
            totals.append([np.mean((q * -s).sum(0)), np.mean(-(q * np.log(q)).sum(0))])
            penalties.append(np.mean([penalty for _, penalty in each]))
        expected = np.mean(totals, 0)
        name = f"1-{m}"
        np.testing.assert_allclose([losses[name], entropies[name]], expected, rtol=1e-5)
    pair = multiscale.multiscale_nce(*views, locations, ((5, 5),))[1]
    np.testing.assert_allclose(penalty, np.sum(penalties) / 2 + pair, rtol=1e-5)


@pytest.mark.parametrize("components", [1, 3])
def test_components_start_apart_and_around_f1(components):
    f1 = GENERATOR.normal(size=(5, 16)).astype("float32")
    features = Mixture(components)(f1).numpy()
    assert features.shape == (5, components, 16)
    np.testing.assert_allclose(features.mean(1), f1, atol=1e-6)
    if components > 1:
        distances = np.abs(features[:, :, None] - features[:, None]).max(-1)
        assert (distances + np.eye(components) > 0.05).all()


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_one_component_starts_as_plain_amdim(dtype):
    images = GENERATOR.normal(size=(2, 6, 32, 32, 3)).astype("float32")
    plain, one, two = (
        AMDIM(Encoder(32, 4, 16, 1, dtype=dtype), 0, components=k) for k in (0, 1, 2)
    )
    for other in (one, two):
        for name in ("encoder", "phi5", "phi7"):
            getattr(other, name).set_weights(getattr(plain, name).get_weights())
    locations = plain.objective.draw(0, 0, 6)
    expected, penalty, *_ = scored(plain, *images, locations)
    losses, same, entropies, _ = scored(one, *images, locations)
    for name, loss in expected.items():
        np.testing.assert_allclose(losses[name], loss, rtol=1e-6)
    np.testing.assert_allclose(same, penalty, rtol=1e-6)
    assert max(abs(float(entropy)) for entropy in entropies.values()) < 1e-6
    mixed, *_ = scored(two, *images, locations)
    assert abs(float(mixed["1-7"] - expected["1-7"])) > 1e-4
