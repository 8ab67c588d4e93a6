import math

import numpy as np
import pytest
import tensorflow as tf
from long import most_long

from amdim_tf.errors import InputError
from amdim_tf.objectives import blockwise, multiscale
from amdim_tf.objectives.nce import contrasted, nce


def by_hand(antecedents, consequents, clip, regulariser):
    """The loss in float64, one positive at a time."""
    antecedents, consequents = antecedents.astype("float64"), consequents.astype("float64")
    batch, locations, width = consequents.shape
    scores = np.einsum("id,jld->ijl", antecedents, consequents) / math.sqrt(width)
    penalty = regulariser * np.mean(scores**2)
    if clip is not None:
        scores = clip * np.tanh(scores / clip)
    losses = []
    for i in range(batch):
        negatives = [scores[i, j, k] for j in range(batch) if j != i for k in range(locations)]
        for k in range(locations):
            candidates = np.array([scores[i, i, k], *negatives])
            top = candidates.max()
            losses.append(top + np.log(np.exp(candidates - top).sum()) - scores[i, i, k])
    return np.mean(losses), penalty


def draw(batch, locations, width, scale=1.0, seed=0):
    """Antecedents (1,B,D) and consequents (B,L,D)."""
    generator = np.random.default_rng(seed)
    antecedents = scale * generator.normal(size=(1, batch, width))
    consequents = generator.normal(size=(batch, locations, width))
    return antecedents.astype("float32"), consequents.astype("float32")


@pytest.mark.parametrize(
    "batch, locations, width", [(2, 1, 3), (3, 25, 8), (7, 4, 16), (5, 49, 64)]
)
@pytest.mark.parametrize("clip", [None, 2.0, 20.0])
def test_against_a_loop_over_positives(batch, locations, width, clip):
    antecedents, consequents = draw(batch, locations, width, scale=3.0, seed=batch)
    loss, penalty = nce(antecedents, consequents, clip, 5e-2)
    expected_loss, expected_penalty = by_hand(antecedents[0], consequents, clip, 5e-2)
    np.testing.assert_allclose(np.mean(loss), expected_loss, rtol=1e-5)
    np.testing.assert_allclose(penalty, expected_penalty, rtol=1e-5)


@pytest.mark.parametrize("clip", [None, 20.0])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gradients_are_those_of_tensorflow(clip, scale):
    """Of the second of two replicas, with two tasks."""
    (antecedents, _), (more, consequents) = (draw(6, 9, 16, scale, seed) for seed in (1, 2))
    antecedents = tf.constant(np.concatenate([antecedents, more])[:, 3:], tf.float64)
    consequents = tf.constant(consequents, tf.float64)

    def plain(antecedents, consequents):
        raw = tf.einsum("tid,jld->tijl", antecedents, consequents) / 4
        scores = raw if clip is None else clip * tf.tanh(raw / clip)
        own = tf.one_hot(tf.range(3) + 3, 6, dtype=tf.float64)[:, :, None]
        positives = tf.reduce_sum(own * scores, 2)
        others = tf.where(own > 0, tf.constant(-math.inf, tf.float64), scores)
        negatives = tf.reduce_logsumexp(others, (2, 3))[..., None]
        penalties = 5e-2 * tf.reduce_mean(raw**2, (1, 2, 3))
        losses = tf.nn.softplus(negatives - positives)
        return positives, negatives, penalties, losses, penalties

    def ours(*pairs):
        return *contrasted(*pairs, clip, 5e-2, 3), *nce(*pairs, clip, 5e-2, 3)

    found = []
    for function in (plain, ours):
        with tf.GradientTape() as tape:
            tape.watch((antecedents, consequents))
            values = function(antecedents, consequents)
            # Not the same weight for each value.
            total = sum(tf.reduce_sum(tf.sin((i + 1) * x)) for i, x in enumerate(values))
        found.append([*values, *tape.gradient(total, (antecedents, consequents))])
    for expected, value in zip(*found, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-9)


def test_a_permuted_batch_has_the_same_loss():
    antecedents, consequents = draw(6, 9, 16)
    order = np.random.default_rng(1).permutation(6)
    (losses, penalty), (again, penalty_again) = (
        nce(antecedents, consequents),
        nce(antecedents[:, order], consequents[order]),
    )
    np.testing.assert_allclose(again, losses.numpy()[:, order], rtol=1e-5)
    np.testing.assert_allclose(penalty_again, penalty, rtol=1e-6)
    mixed, _ = nce(antecedents, consequents[order])
    assert abs(np.mean(mixed) - np.mean(losses)) > 1e-3


@pytest.mark.parametrize("clip", [None, 20.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_scores_stay_finite(clip, sign):
    # Scores of +-1e4 on the positives, small ones elsewhere, and the other way round.
    for positives in (True, False):
        targets = np.full((4, 4, 5), 0.0 if positives else sign * 1e4)
        targets[np.arange(4), np.arange(4)] = sign * 1e4 if positives else 0.0
        antecedents = np.eye(4, 16, dtype="float32") * 4.0  # scores are then coordinates
        consequents = np.zeros((4, 5, 16), "float32")
        consequents[..., :4] = targets.transpose(1, 2, 0)
        a, c = tf.constant(antecedents[None]), tf.constant(consequents)
        with tf.GradientTape() as tape:
            tape.watch([a, c])
            losses, penalty = nce(a, c, clip)
            loss = tf.reduce_mean(losses)
            total = loss + penalty
        assert np.isfinite(loss) and np.isfinite(penalty)
        np.testing.assert_allclose(
            loss, by_hand(antecedents, consequents, clip, 5e-2)[0], rtol=1e-5
        )
        for gradient in tape.gradient(total, [a, c]):
            assert np.isfinite(gradient).all()


def test_one_image_is_refused():
    with pytest.raises(InputError, match="at least 2 images.*1"):
        nce(*draw(1, 5, 8))


def embeddings(batch, width, seed):
    generator = np.random.default_rng(seed)
    shapes = {1: (batch, width), 5: (batch, 5, 5, width), 7: (batch, 7, 7, width)}
    return {n: generator.normal(size=shape).astype("float32") for n, shape in shapes.items()}


def test_every_task_in_both_directions():
    view1, view2 = embeddings(4, 8, 1), embeddings(4, 8, 2)
    locations = {
        5: np.array([[0, 7, 24, 3], [1, 2, 3, 4]]),
        7: np.array([[48, 0, 6, 7], [9, 8, 7, 6]]),
    }
    tasks = tuple((n, m) for n in (1, 5, 7) for m in (1, 5, 7))
    losses, penalty, _ = multiscale.multiscale_nce(view1, view2, locations, tasks, 20.0, 5e-2)
    penalties = 0
    for n, m in tasks:
        directions = []
        for side, (source, target) in enumerate(((view1, view2), (view2, view1))):
            flat = source[n].reshape(4, -1, 8)
            chosen = flat[np.arange(4), locations[n][side] if n > 1 else 0]
            directions.append(by_hand(chosen, target[m].reshape(4, -1, 8), 20.0, 5e-2))
        np.testing.assert_allclose(
            losses[f"{n}-{m}"], np.mean([d[0] for d in directions]), rtol=1e-5
        )
        penalties += np.mean([d[1] for d in directions])
    np.testing.assert_allclose(penalty, penalties, rtol=1e-5)


@pytest.mark.parametrize("tasks", most_long(["1-5,1-7,5-5", "1-1,5-7,7-1,7-7"], 2))
@pytest.mark.parametrize("clip", most_long([20.0, None], 2))
@pytest.mark.parametrize("compiled, mixture", most_long([(True, True), (False, False)], 2))
def test_blocks_have_the_values_and_gradients_of_the_whole(
    tasks, clip, compiled, mixture, monkeypatch
):
    views = [
        {n: tf.constant(2 * x) for n, x in embeddings(12, 16, seed).items()} for seed in (1, 2)
    ]
    tasks = multiscale.parse_tasks(tasks)
    generator = np.random.default_rng(3)
    locations = {n: tf.constant(generator.integers(0, n * n, (2, 12))) for n in (5, 7)}

    def values_and_gradients(view1, view2):
        with tf.GradientTape() as tape:
            tape.watch([view1, view2])
            components = [tf.stack([view1[1], view2[1]], 1)] * 2 if mixture else None
            losses, penalty, entropies = multiscale.multiscale_nce(
                view1, view2, locations, tasks, clip, 0.5, components=components, tau=0.7
            )
            total = penalty + sum((i + 1) * loss for i, loss in enumerate(losses.values()))
        gradients = tape.gradient(total, [view1, view2], unconnected_gradients="zero")
        return tf.nest.flatten([losses, penalty, entropies, gradients])

    whole = values_and_gradients(*views)
    for block in (4,) if compiled else (1, 4, 12):
        monkeypatch.setattr(blockwise, "block_size", lambda *sizes, block=block: block)
        parts = tf.function(values_and_gradients, jit_compile=compiled)(*views)
        for ours, expected in zip(parts, whole, strict=True):
            assert np.abs(ours - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1e-6)


def test_block_sizes():
    counts = {5: 2, 7: 1}
    assert blockwise.block_size(64, 64, counts, 2**28) == 0
    assert blockwise.block_size(64, 64, counts, 4 * 64 * 64 * 2 * 25 - 1) > 0
    assert blockwise.block_size(None, None, counts, 2**28) == 0
    for images, others in ((4096, 4096), (1000, 3000)):
        block = blockwise.block_size(images, others, counts, 2**28)
        assert others % block == 0
        size = 4 * images * block * 2 * 25
        assert blockwise.BLOCK_BYTES / 4 < size <= blockwise.BLOCK_BYTES


def test_tasks_are_read_from_text():
    assert multiscale.parse_tasks("1-5,1-7,5-5") == ((1, 5), (1, 7), (5, 5))
    assert multiscale.parse_tasks(" 7-7 , 5-1") == ((7, 7), (5, 1))
    assert multiscale.antecedent_scales(((1, 5), (7, 5), (5, 5), (5, 7))) == [5, 7]


@pytest.mark.parametrize("text", ["", "1-3", "1-5,1-5", "5", "1-5;1-7", "15-5"])
def test_other_tasks_are_refused(text):
    with pytest.raises(InputError, match="such as 1-5,1-7,5-5.*scales 1, 5, 7. Received: tasks="):
        multiscale.parse_tasks(text, (1, 5, 7))


@pytest.mark.parametrize(
    "scales, tasks",
    [((1, 7, 14, 28), "1-7,1-14,7-7"), ((1, 2, 3), "1-2,1-3,2-2"), ((1, 2, 8), "1-8,8-8")],
)
def test_default_tasks(scales, tasks):
    assert multiscale.default_tasks(scales) == multiscale.parse_tasks(tasks)
    assert multiscale.default_tasks((1,)) == ((1, 1),)


def test_the_bound_of_a_useless_and_of_a_perfect_score():
    antecedents, consequents = np.zeros((1, 8, 4), "float32"), np.zeros((8, 25, 4), "float32")
    loss, _ = nce(antecedents, consequents)
    np.testing.assert_allclose(multiscale.information_bound(loss, 8, 5), 0, atol=1e-6)
    np.testing.assert_allclose(multiscale.information_bound(0.0, 8, 5), math.log(1 + 7 * 25))
