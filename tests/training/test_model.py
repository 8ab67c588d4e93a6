import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_values import scored
from long import most_long

from amdim_tf.encoders.amdim import Encoder
from amdim_tf.objectives.probes import probe_loss
from amdim_tf.training.model import AMDIM, Classifier
from amdim_tf.training.optimizer import AdamL2


def tiny(seed=0, **arguments):
    tf.keras.utils.set_random_seed(seed)
    encoder = Encoder(image_size=32, ndf=8, nrkhs=32, ndepth=1)
    model = AMDIM(encoder, classes=5, seed=seed, **arguments)
    model.compile(optimizer=AdamL2(1e-3), jit_compile=False)
    return model


def batch(size=8, seed=0):
    generator = np.random.default_rng(seed)
    x1, x2 = generator.normal(size=(2, size, 32, 32, 3)).astype("float32")
    return (x1, x2), generator.integers(0, 5, size)


def train(model, views, labels):
    return model.train_step((views, labels, *model.draw(len(labels))))


def trained_weights(model, labels):
    (x1, x2), _ = batch()
    train(model, (tf.constant(x1), tf.constant(x2)), tf.constant(labels))
    shaping = [model.encoder, model.phi5, model.phi7]
    return [weight.numpy() for part in shaping for weight in part.weights]


def test_labels_do_not_reach_the_representation():
    """Permuted labels change the probes, and nothing else by one bit."""
    _, labels = batch()
    permuted = np.random.default_rng(1).permutation(labels)
    assert (labels != permuted).any()
    models = tiny(), tiny()
    # The first update's size hides the gradients' in Adam, so they are compared by a plain one.
    for model in models:
        model.compile(optimizer=tf.keras.optimizers.SGD(1.0), jit_compile=False)
    results = [trained_weights(m, y) for m, y in zip(models, (labels, permuted), strict=True)]
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    probes = [model.probes.linear.kernel.numpy() for model in models]
    assert (probes[0] != probes[1]).any()


@pytest.mark.parametrize("frozen", most_long([True, False], 2))
def test_a_classifier_learns_labels_with_or_without_its_encoder(frozen):
    model = tiny()
    before = [weight.numpy() for weight in model.encoder.weights]
    classifier = Classifier(model.encoder, classes=5, frozen=frozen)
    classifier.compile(optimizer=AdamL2(3e-2 if frozen else 1e-3), jit_compile=False)
    (x1, x2), labels = batch()
    bright = 3 * labels[:, None, None, None].astype("float32")
    data = tf.data.Dataset.from_tensors(((x1 + bright, x2 + bright), labels)).repeat(40)
    classifier.fit(data, epochs=4, verbose=0, shuffle=False)
    seen = tf.data.Dataset.from_tensors((x1 + bright, labels))
    logs = classifier.evaluate(seen, return_dict=True, verbose=0)
    for name in ("linear", "mlp"):
        assert logs[f"{name}_loss"] < np.log(5) - 0.4, name  # log 5: guessing

    pairs = zip(before, classifier.encoder.weights, strict=True)
    unchanged = [np.array_equal(ours, theirs) for ours, theirs in pairs]
    # Batch norm's running averages included.
    assert all(unchanged) if frozen else not any(unchanged)


def test_images_of_no_known_class_do_not_count():
    (x1, _), labels = batch()
    model = tiny()
    known = model.evaluate(tf.data.Dataset.from_tensors((x1[:5], labels[:5])), return_dict=True)
    labels[5:] = -1
    logits = model(x1)["linear"][:5]
    logs = model.evaluate(tf.data.Dataset.from_tensors((x1, labels)), return_dict=True)
    accuracy = {name: float(value) for name, value in logs.items()}  # tensors in Keras 3.12
    assert accuracy["linear_accuracy"] == pytest.approx(float(known["linear_accuracy"]))
    penalty = 1e-3 * (np.square(model(x1)["linear"]).mean() - np.square(logits).mean())
    expected = float(known["linear_loss"] + penalty)
    assert accuracy["linear_loss"] == pytest.approx(expected, abs=1e-5)
    assert float(probe_loss(tf.fill([8], -1), tf.zeros((8, 5)))) == 0


@pytest.mark.long
def test_training_without_classes():
    encoder = Encoder(image_size=32, ndf=8, nrkhs=32, ndepth=1)
    model = AMDIM(encoder, classes=0)
    model.compile(optimizer=AdamL2(1e-3), jit_compile=False)
    (x1, x2), labels = batch()
    data = tf.data.Dataset.from_tensors(((x1, x2), np.full_like(labels, -1)))
    logs = model.fit(data, verbose=0, shuffle=False).history
    assert np.isfinite(logs["loss"][0]) and not any("linear" in name for name in logs)


def test_a_phi_that_no_task_scores_is_not_trained():
    model = tiny(tasks="1-7")
    names = {weight.path.split("/")[0] for weight in model.trainable_variables}
    assert "phi7" in names and "phi5" not in names


def test_probe_loss_by_hand():
    logits, labels = np.array([[3.0, -40.0, 0.5], [0.0, 1.0, 2.0]]), np.array([1, 2])
    clipped = 10 * np.tanh(logits / 10)
    likelihood = np.exp(clipped) / np.exp(clipped).sum(1, keepdims=True)
    expected = -np.log(likelihood[[0, 1], labels]).mean() + 1e-3 * (logits**2).mean()
    np.testing.assert_allclose(probe_loss(labels, logits.astype("float32")), expected, rtol=1e-5)


def test_antecedent_locations_are_uniform_and_a_function_of_seed_and_step():
    model = tiny(seed=3, tasks="5-5,7-1,1-7")
    locations = model.objective.draw(model.seed, model.step, 5000)
    assert list(locations) == [5, 7]
    for n, drawn in locations.items():
        assert drawn.shape == (2, 5000)
        for view in np.array(drawn):
            counts = np.bincount(view, minlength=n * n)
            assert len(counts) == n * n
            expected = 5000 / (n * n)
            assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
        assert abs(np.corrcoef(drawn)[0, 1]) < 4 / np.sqrt(5000)
    np.testing.assert_array_equal(locations[5], tiny(tasks="5-5").objective.draw(3, 0, 5000)[5])
    model.step.assign(1)
    assert (
        np.array(model.objective.draw(model.seed, model.step, 5000)[5]) != np.array(locations[5])
    ).any()


def test_fit_reports_every_task_and_learns():
    model = tiny(tasks="1-5, 5-7")
    (x1, x2), labels = batch(16)
    data = tf.data.Dataset.from_tensors(((x1, x1 + 0.1 * x2), labels)).repeat(40)
    history = [
        model.evaluate(tf.data.Dataset.from_tensors((x1, labels)), return_dict=True, verbose=0)
    ]
    first = model.fit(data.take(1), verbose=0, shuffle=False).history
    last = model.fit(data, verbose=0, shuffle=False).history
    for task, candidates in (("1-5", 1 + 15 * 25), ("5-7", 1 + 15 * 49)):
        assert last[f"nce_{task}"][-1] < first[f"nce_{task}"][-1] - 0.2
        bound = np.log(candidates) - last[f"nce_{task}"][-1]
        assert last[f"bound_{task}"][-1] == pytest.approx(bound, abs=1e-4)
    total = last["nce_1-5"][-1] + last["nce_5-7"][-1] + last["regulariser"][-1]
    assert last["loss"][-1] == pytest.approx(total, abs=1e-4)
    assert set(history[0]) == {"linear_loss", "linear_accuracy", "mlp_loss", "mlp_accuracy"}


@pytest.mark.long
def test_the_compiled_step_is_the_plain_one():
    (x1, x2), labels = batch()
    weights = []
    for compiled in (False, True):
        model = tiny()
        drawn = model.draw(8)
        step = tf.function(lambda *data, model=model: model.train_step(data), jit_compile=compiled)
        for _ in range(3):
            logs = step((x1, x2), labels, *drawn)
        weights.append([float(logs["loss"]), *(w.numpy() for w in model.encoder.weights)])
    np.testing.assert_allclose(weights[0][0], weights[1][0], rtol=1e-4)
    for ours, theirs in zip(*(w[1:] for w in weights), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


@pytest.mark.long
def test_micro_batches_have_the_gradients_of_the_whole():
    (x1, x2), _ = batch()
    x1, x2 = (tf.constant(x, tf.float64) for x in (x1, x2))
    model = AMDIM(Encoder(32, ndf=4, nrkhs=16, ndepth=1, dtype="float64"), classes=0)
    trained = model.trainable_variables
    locations = model.objective.draw(model.seed, model.step, len(x1))

    def losses_and_gradients():
        with tf.GradientTape() as tape:
            losses, penalty, _, f1 = scored(model, x1, x2, locations)
            total = penalty + sum(losses.values())
        return tf.nest.flatten([losses, penalty, f1, tape.gradient(total, trained)])

    whole = tf.function(losses_and_gradients)()
    model.divide(micro_batch=2)
    for ours, expected in zip(tf.function(losses_and_gradients)(), whole, strict=True):
        assert np.abs(ours - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1e-9)


def test_a_float16_step_that_overflows_is_skipped_and_counted():
    encoder = Encoder(32, ndf=4, nrkhs=16, ndepth=1, dtype="mixed_float16")
    model = AMDIM(encoder, classes=0)
    optimizer = keras.optimizers.LossScaleOptimizer(AdamL2(1e-3))
    model.compile(optimizer=optimizer, jit_compile=False)
    optimizer.build(model.trainable_variables)
    before = [w.numpy() for w in model.trainable_variables]
    for scale, updates in ((1e30, 0), (1024.0, 1)):
        optimizer.dynamic_scale.assign(scale)
        train(model, *batch())
        assert int(optimizer.iterations) == updates
        same = [
            np.array_equal(a, w) for a, w in zip(before, model.trainable_variables, strict=True)
        ]
        assert all(same) if updates == 0 else not any(same)
    assert int(model.step) == 2
