"""Optimisers by name, clipped gradients and averaged weights."""

import keras
import numpy as np
import pytest
from long import most_long

from amdim_tf.config import load_config
from amdim_tf.errors import InputError
from amdim_tf.files import write_json
from amdim_tf.training.averaging import values
from amdim_tf.training.building import build, check_config
from amdim_tf.training.named_optimizer import description, named_optimizer, names
from amdim_tf.training.optimizer import AdamL2, guarded
from amdim_tf.training.run_directory import RunDirectory, load_model

VIEWS = np.random.default_rng(0).normal(size=(4, 2, 8, 32, 32, 3)).astype("float32")


def config_of(**fields):
    config = load_config("photo_patches")
    config.update({"ndf": 4, "nrkhs": 16, "ndepth": 1, "batch_size": 8, "warmup_steps": 0} | fields)
    check_config(config)
    return config


def model_of(config):
    model = build(config, 0, last_step=4)
    model.run_eagerly = True  # to trace takes longer than these steps
    return model


def step(model, number):
    model.train_on_batch(tuple(VIEWS[number]))


def state(model):
    return [np.array(x) for x in (*values(model), *values(model.optimizer), *model.averages.values)]


@pytest.mark.parametrize("name", most_long(["adamw", *sorted(names())], 99))
def test_every_optimiser_goes_on_from_a_checkpoint(name, tmp_path):
    """With all that goes with it, bit for bit; and it changes the weights."""
    config = config_of(optimizer=name, clip_norm=1.0, weight_averaging=0.9, schedule="cosine")
    run, trained, restored = RunDirectory(tmp_path, config), model_of(config), model_of(config)
    first = trained.encoder.get_weights()
    step(trained, 0)
    run.save(trained, 1)
    assert run.restore(restored) == 1
    for model in (trained, restored):
        step(model, 1)
    assert int(trained.optimizer.iterations) == 2
    for ours, expected in zip(state(restored), state(trained), strict=True):
        np.testing.assert_array_equal(ours, expected)
        assert np.isfinite(ours).all()
    assert not np.array_equal(first[0], trained.encoder.get_weights()[0])


def test_the_reference_is_the_default():
    optimizer = named_optimizer(config_of(optimizer_arguments="beta_1=0.9"), 10)
    assert type(optimizer) is AdamL2 and optimizer.beta_1 == 0.9 and optimizer.l2 == 1e-5
    assert named_optimizer(config_of(), 10).beta_1 == 0.8


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_an_update_has_at_most_the_norm(precision):
    config = config_of(optimizer="SGD", learning_rate=1.0, clip_norm=0.01, precision=precision)
    model = model_of(config)
    before = [np.array(x) for x in model.trainable_variables]
    while not int(model.optimizer.iterations):  # float16 looks for a scale of the loss first
        step(model, 0)
    after = [np.array(x) for x in model.trainable_variables]
    squares = sum(np.sum((a - b) ** 2) for a, b in zip(after, before, strict=True))
    assert squares**0.5 == pytest.approx(0.01, rel=1e-3)


def test_averages(tmp_path):
    """As their formula has it; an update that is skipped does not count; what is measured."""
    config = config_of(weight_averaging=0.5, learning_rate=1e-2)
    model = model_of(config)
    expected = [np.array(x) for x in values(model)]
    assert any("moving_mean" in variable.path for variable in model.variables)
    for t in (1, 2, 3):
        step(model, t)
        momentum = min(0.5, (1 + t) / (10 + t))
        expected = [
            x + momentum * (e - x) if x.dtype.kind == "f" else x
            for x, e in zip(map(np.array, values(model)), map(np.array, expected), strict=True)
        ]
    averages = [np.array(x) for x in model.averages.values]
    for average, each in zip(averages, expected, strict=True):
        np.testing.assert_allclose(average, each, rtol=1e-5, atol=1e-7)

    model.train_on_batch(tuple(np.nan * VIEWS[0]))
    for average, before in zip(model.averages.values, averages, strict=True):
        if before.dtype.kind == "f":
            np.testing.assert_array_equal(average, before)

    for kind, found in (("averaged", averages), ("trained", values(model))):
        config.measured_weights = kind
        run = RunDirectory(tmp_path / kind, config)
        write_json(run.path / "classes.json", [])
        run.save(model, 3)
        loaded, _ = load_model(run.path)
        for ours, each in zip(values(loaded), found, strict=True):
            if ours.dtype.is_floating:
                np.testing.assert_array_equal(ours, each)


def test_the_plan_says_what_is_done():
    config = config_of(
        optimizer="adamw",
        optimizer_arguments="weight_decay=0.05",
        warmup_steps=500,
        schedule="cosine",
        clip_norm=1.0,
        weight_averaging=0.999,
    )
    said = description(config, 780)
    for words in (
        "adamw(weight_decay=0.05)",
        "by cosine after 156 updates of warm-up, a fifth of all, since warmup_steps=500 are more",
        "norm 1;",
        "averaged by 0.999, the averages measured and exported",
    ):
        assert words in said
    assert "fifth" not in description(config, 2500)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"optimizer": "adamx"}, "nearest are adamax, adam"),
        ({"optimizer": "optimizer"}, "optimizer must be one of reference"),
        ({"optimizer": "lossscaleoptimizer"}, "optimizer must be one of reference"),
        ({"optimizer": "multioptimizer"}, "optimizer must be one of reference"),
        ({"optimizer": "sgd", "l2": 1e-3}, "l2 is the reference's"),
        ({"optimizer_arguments": "0.9"}, "no list such as"),
        ({"optimizer_arguments": "beta_1=x"}, "no list such as"),
        ({"optimizer_arguments": "beta_1=0.9)"}, "no list such as"),
        ({"optimizer_arguments": "momentum=0.9"}, "those of reference are beta_1, beta_2, eps"),
        ({"optimizer": "sgd", "optimizer_arguments": "clipnorm=1"}, "clip_norm is a field"),
        ({"optimizer": "sgd", "optimizer_arguments": "use_ema=True"}, "weight_averaging is a f"),
        ({"optimizer": "sgd", "optimizer_arguments": "momentum=5"}, "momentum. must be"),
        ({"schedule": "linear"}, "schedule must be one of steps, cosine"),
        ({"clip_norm": -1.0}, "clip_norm must be at least 0"),
        ({"weight_averaging": 1.0}, "less than 1"),
        ({"measured_weights": "both"}, "measured_weights must be one of averaged, trained"),
    ],
)
def test_refused_in_words(fields, message):
    with pytest.raises(InputError, match=message):
        config_of(**fields)


def test_an_object_of_ones_own():
    """In Python the model takes any optimiser of Keras."""
    model = model_of(config_of())
    model.compile(keras.optimizers.Muon(1e-3), run_eagerly=True)
    step(model, 0)
    assert isinstance(model.optimizer, type(guarded(keras.optimizers.SGD())))
    assert int(model.optimizer.iterations) == 1
