"""Every method of Table 1 passes the same checks; tests of their own are in test_methods."""

import every_objective
import keras
import numpy as np
import pytest
import tensorflow as tf
from every_objective import NAMES, batch_of, config_of, learner
from long import most_long
from same import assert_a_step_after_a_checkpoint_is_the_same, assert_two_replicas_are_as_one
from stopping import assert_it_ends_the_same

from amdim_tf import load_encoder, load_preprocess
from amdim_tf.serving.saved_model import export
from amdim_tf.training.building import build, build_model

# One of each kind of encoder and objective; the others before a release.
FIRST = ("rotation", "jigsaw", "cpc_3x3", "cmc", "infomax_vae", "dv")


def named(*first):
    """All names; those other than the `first` before a release."""
    release = pytest.mark.release
    names = [name if name in first else pytest.param(name, marks=release) for name in NAMES]
    return pytest.mark.parametrize("name", names)


every = named(*FIRST)
# The loss of answers that are guessed.
CHANCE = {
    "rotation": np.log(4),
    "patch_offset": np.log(8),
    "jigsaw": np.log(100),
    "cpc_3x3": np.log(1 + 3 * 3),
}


def step(name, permuted=False):
    """The logs of a step, and the model after it."""
    config = config_of(name)
    model = learner(config, "float32", classes=3)
    model.compile(optimizer="sgd", run_eagerly=True)
    views, labels = batch_of(config)
    labels = (labels + 1) % 3 if permuted else labels
    return model.train_on_batch(views, labels, return_dict=True), model


@pytest.mark.parametrize("name", most_long(NAMES, 3))
def test_labels_do_not_reach_the_encoder_and_the_loss_starts_at_chance(name):
    (logs, model), (_, other) = step(name), step(name, permuted=True)
    apart = {id(variable) for variable in other.probes.variables}
    pairs = zip(model.trainable_variables, other.trainable_variables, strict=True)
    same = [np.array_equal(ours, theirs) for ours, theirs in pairs if id(theirs) not in apart]
    assert len(same) > 10 and all(same)
    assert not np.array_equal(*(each.probes.get_weights()[0] for each in (model, other)))
    assert np.isfinite(logs["loss"])
    if name in CHANCE:
        assert logs["loss"] == pytest.approx(CHANCE[name], rel=1e-5)


@pytest.mark.long
def test_two_replicas_are_as_one(tmp_path):
    one = tf.distribute.get_strategy()
    expected = {name: every_objective.after_training(one, name) for name in (*FIRST, "exemplar")}
    assert_two_replicas_are_as_one(every_objective.__file__, (), expected, tmp_path)


@pytest.mark.long
@named("infomax_vae")
def test_a_stopped_run_ends_the_same(name, tmp_path, monkeypatch):
    assert_it_ends_the_same(lambda: config_of(name), tmp_path, monkeypatch, last=1)


@pytest.mark.long
@every
def test_a_step_after_a_checkpoint_is_the_same(name, tmp_path):
    config = config_of(name)
    batch, model = batch_of(config), build(config, 3, config.steps)
    assert_a_step_after_a_checkpoint_is_the_same(model, config, batch, batch, tmp_path)


@pytest.mark.long
@every
def test_by_xla_and_in_mixed_precision(name):
    """The losses are those of float32 without XLA."""
    found = {}
    for precision in ("float32", "mixed_bfloat16"):
        config = config_of(name, precision=precision)
        model = learner(config, precision, classes=0)
        views, _ = batch_of(config)
        draws = model.objective.draw(0, model.step, len(views[0]))

        def losses(views, draws, model=model):
            images = model.objective.present(views, draws)
            embeddings = model.embed(images, training=True, views=model.objective.views)
            shown = {0: images} if model.objective.reconstructs else {}
            return model.objective.losses(embeddings | shown, None, draws).total

        views = [tf.constant(view) for view in views]
        found[precision] = float(losses(views, draws))
        if precision == "float32":
            compiled = float(tf.function(losses, jit_compile=True)(views, draws))
            assert compiled == pytest.approx(found[precision], rel=1e-4, abs=1e-4)
    # cmc divides by a temperature of 0.07, and the rounding with it.
    assert found["mixed_bfloat16"] == pytest.approx(found["float32"], rel=0.1, abs=0.1)


@pytest.mark.long
@every
def test_export_and_what_loads_it(name, tmp_path):
    config = config_of(name)
    model = build_model(config, classes=3)
    folder = export(model, config, tmp_path, class_names=("a", "b", "c"))
    pixels = np.random.default_rng(1).integers(0, 256, (2, 100, 90, 3), "uint8")
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    encoder = load_encoder(folder)
    f1 = encoder(load_preprocess(folder)(pixels))["f1"]
    expected = served(images=tf.constant(pixels))["f1"]
    np.testing.assert_allclose(f1, expected, atol=1e-5 * np.abs(expected).max())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
