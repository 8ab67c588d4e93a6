"""Bounds on mutual information: by hand, on Gaussians of known information, and as a command."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from every_objective import batch_of, config_of, learner
from long import most_long
from scipy.special import logsumexp

from amdim_tf import InputError
from amdim_tf.evaluation.information import estimate
from amdim_tf.objectives.bounds import BOUNDS, DonskerVaradhan, jsd_of_tasks, mean_of_others
from amdim_tf.objectives.multiscale import multiscale_nce
from amdim_tf.serving.feature_files import write_parquet

scores = np.random.default_rng(0).normal(size=(6, 6))
apart = ~np.eye(6, dtype=bool)


def test_the_bounds_by_hand():
    own, others = np.diag(scores), np.log(np.exp(scores[apart]).mean())
    assert float(mean_of_others(tf.constant(scores))) == pytest.approx(others)
    expected = {
        "nce": np.log(6) + (own - logsumexp(scores, axis=1)).mean(),
        "dv": own.mean() - others,
        "jsd": own.mean() - others,
    }
    for name, bound in BOUNDS.items():
        loss, found = bound(tf.constant(scores), 0.0)
        assert float(found) == pytest.approx(expected[name])
        softplus = np.logaddexp(0, -own).mean() + np.logaddexp(0, scores[apart]).mean()
        assert float(loss) == pytest.approx(softplus if name == "jsd" else -expected[name])


def test_the_gradient_of_mine_divides_by_the_moving_average():
    x = tf.constant(scores)

    def gradient(moving):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss, _ = BOUNDS["dv"](x, moving)
        return tape.gradient(loss, x).numpy()

    mean = float(mean_of_others(x))
    exact = -np.eye(6) / 6 + np.where(apart, np.exp(scores), 0) / np.exp(scores[apart]).sum()
    np.testing.assert_allclose(gradient(mean), exact, atol=1e-12)
    # Twice the average: half of the gradient of the pairs that do not belong together.
    np.testing.assert_allclose(gradient(mean + np.log(2))[apart], exact[apart] / 2, atol=1e-12)


def test_the_losses_of_tasks_by_hand():
    """Of two tasks: four antecedents each, with two locations of each of four images."""
    antecedents = np.random.default_rng(1).normal(size=(2, 4, 6))
    consequents = np.random.default_rng(2).normal(size=(4, 2, 6))
    raw = np.einsum("tbd,kld->tbkl", antecedents, consequents) / 6**0.5
    pairs, same = 20 * np.tanh(raw / 20), np.eye(4, dtype=bool)
    own = pairs[:, same]  # (2, 4, 2)
    others = np.moveaxis(pairs, 3, 1)[:, :, ~same]  # (2, 2, 12)
    jsd, penalties = jsd_of_tasks(tf.constant(antecedents), tf.constant(consequents))
    expected = np.logaddexp(0, -own).mean((1, 2)) + np.logaddexp(0, others).mean((1, 2))
    np.testing.assert_allclose(np.mean(jsd, axis=(1, 2)), expected)
    np.testing.assert_allclose(penalties, 5e-2 * (raw**2).mean((1, 2, 3)))

    mean = np.exp(others).mean((1, 2))
    for logs in (np.log(mean), np.log(mean) + [0.5, -1]):
        contrast = DonskerVaradhan(tf.constant(logs))
        for _ in range(2):
            dv, _ = contrast(tf.constant(antecedents), tf.constant(consequents))
        expected = mean / np.exp(logs) + logs - 1 - own.mean((1, 2))
        np.testing.assert_allclose(np.mean(dv, axis=(1, 2)), expected)
        np.testing.assert_allclose(contrast.ratios(), mean / np.exp(logs))
    # The bound is the largest where the average is the mean.
    assert (expected > np.log(mean) - own.mean((1, 2))).all()


def test_the_moving_average_of_a_skipped_step_stays():
    model = learner(config_of("dv"), "float32", classes=0)
    model.compile(optimizer="sgd", run_eagerly=True)
    views, _ = batch_of(config_of("dv"))
    model.train_on_batch(views)
    after = model.objective.moving.logs.numpy()
    assert after.all()
    model.train_on_batch(tuple(view * np.float32("nan") for view in views))
    np.testing.assert_array_equal(model.objective.moving.logs, after)
    model.train_on_batch(views)
    assert (model.objective.moving.logs.numpy() != after).all()


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"bound": "mine"}, "bound must be one of nce, jsd, dv. Received: bound='mine'"),
        ({"bound": "dv", "mixture_components": 2}, "bound must be nce with mixture_components"),
        ({"bound": "jsd", "views.small_crops": 1}, "views.small_crops=1"),
    ],
)
def test_what_has_no_other_bound_is_refused(fields, expected):
    with pytest.raises(InputError, match=expected):
        config_of("amdim", **fields)


def test_scores_in_blocks_have_no_other_bound():
    view = {1: tf.eye(4, 8), 5: tf.ones((4, 5, 5, 8))}
    with pytest.raises(InputError, match="bound must be nce where scores take more"):
        multiscale_nce(view, view, {}, ((1, 5),), score_bytes=1, contrast=jsd_of_tasks)


def gaussians(correlation, count, dimension=4):
    """Pairs of Gaussian vectors, and their information in nats."""
    x, noise = np.random.default_rng(0).normal(size=(2, count, dimension))
    y = correlation * x + (1 - correlation**2) ** 0.5 * noise
    return x, y, -dimension / 2 * np.log(1 - correlation**2)


@pytest.mark.parametrize("bound", most_long(BOUNDS, 3))
def test_gaussians_of_known_information(bound):
    x, y, known = gaussians(0.7, 6000)
    assert known == pytest.approx(1.347, abs=1e-3)
    found = estimate(x, y, bound, updates=600)
    low, high = found.interval
    assert low < found.nats < high and found.batch == 512
    assert known - 0.3 < found.nats < known + 0.1
    # Nor does a critic that learned its pairs by heart count.
    assert abs(estimate(x, y[::-1], bound, updates=600).nats) < 0.1


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("count", range(20, 25))
def test_the_fewest_pairs_have_a_batch_to_choose_by(count):
    x, y, _ = gaussians(0.9, count)
    assert np.isfinite(estimate(x, y, "nce", updates=2).nats)


def test_files_that_do_not_fit_in_memory(tmp_path):
    """Only a block of their 164 MB of rows is in memory at a time."""
    path = tmp_path / "features.npy"
    features = np.lib.format.open_memmap(path, "w+", "float32", (20000, 2048))
    features[::3] = 1
    features = np.load(path, mmap_mode="r")
    tracemalloc.start()
    estimate(features, features[:, :4], "nce", updates=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < features.nbytes


def test_what_is_no_pair_of_features_is_refused():
    x = np.zeros((30, 2))
    for first, second, bound, expected in (
        (x, x[:29], "nce", "Received: 30 and 29 rows"),
        (x[:10], x[:10], "nce", "at least 20 pairs"),
        (x, x, "mine", "must be one of nce, jsd, dv. Received: bound='mine'"),
        (x, x + np.nan, "dv", "finite"),
    ):
        with pytest.raises(InputError, match=expected):
            estimate(first, second, bound)


@pytest.mark.long
def test_the_command(tmp_path):
    x, y, _ = gaussians(0.9, 300)
    names = np.array([f"{row}.png" for row in range(300)])
    order = np.random.default_rng(1).permutation(300)[:250]
    for name, rows, values in (("a", np.arange(300), x), ("b", order, y)):
        (tmp_path / name).mkdir()
        batch = names[rows].astype("S"), values[rows].astype("float32")
        write_parquet([batch], str(tmp_path / name / "part-0.parquet"))
    (tmp_path / "c.npy").write_bytes(b"none")

    def run(second):
        command = [sys.executable, "-m", "amdim_tf.bounds", "--first=a", "--updates=200"]
        return subprocess.run(
            [*command, f"--second={second}"], cwd=tmp_path, capture_output=True, text=True
        )

    done = run("b")
    assert done.returncode == 0, done.stderr
    first, *table, last = done.stdout.splitlines()
    assert first == "250 pairs of the same name"
    assert last == "NCE is at most 3.91, the log of 50 pairs in a batch."
    assert [row.split("|")[1].strip() for row in table[2:]] == ["nce", "jsd", "dv"]
    assert 1 < float(table[2].split("|")[2]) < 3.91
    refused = run("c.npy")
    assert refused.returncode == 1 and refused.stderr.startswith("error: Features must be Parquet")
    assert len(refused.stderr.splitlines()) == 1
