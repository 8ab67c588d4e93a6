"""`AMDIM` and `Classifier` under Keras's public methods: what they do, and what they refuse."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from long import most_long

from amdim_tf import Encoder, InputError
from amdim_tf.encoders import batch_norm
from amdim_tf.training.labels import as_classes, fault
from amdim_tf.training.model import AMDIM, Classifier
from amdim_tf.training.optimizer import AdamL2, WarmupStepDecay

GENERATOR = np.random.default_rng(0)
COUNT, CLASSES = 10, 3
VIEWS = tuple(GENERATOR.normal(size=(2, COUNT, 32, 32, 3)).astype("float32"))
IMAGES, LABELS = VIEWS[0], np.arange(COUNT) % CLASSES
QUIET = {"verbose": 0, "shuffle": False}
EAGER = {"run_eagerly": True}  # a few steps take less time than a graph of them


def tiny(kind=AMDIM, classes=CLASSES, compiled=EAGER, **options):
    keras.utils.set_random_seed(0)
    model = kind(Encoder(32, ndf=4, nrkhs=16, ndepth=1), classes, **options)
    model.compile(AdamL2(1e-3), **compiled)
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture
def amdim():
    return tiny()


@pytest.fixture(scope="module")
def untouched():
    """For tests that change nothing of it."""
    return tiny()


def state(model):
    return [variable.numpy() for variable in (*model.weights, *model.optimizer.variables)]


def assert_same(ours, theirs):
    """Of models, or of what `state` gives of them."""
    ours, theirs = (x if isinstance(x, list) else state(x) for x in (ours, theirs))
    for x, y in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(x, y)


def dataset(*arrays, batch=4):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, i):
        return VIEWS, LABELS


def one_hot(dtype):
    return np.eye(CLASSES, dtype=dtype)[LABELS]


GOOD = {
    "int32": LABELS.astype("int32"),
    "uint8": LABELS.astype("uint8"),
    "uint64": LABELS.astype("uint64"),
    "float16": LABELS.astype("float16"),
    "column": LABELS[:, None],
    "float column": LABELS[:, None].astype("float32"),
    "one-hot": one_hot("float32"),
    "one-hot, int": one_hot("int64"),
    "one-hot, bool": one_hot("bool"),
}
BAD = {
    "too large": LABELS + 1,
    "too small": LABELS - 2,
    "half": LABELS + 0.5,
    "nan": np.where(LABELS == 1, np.nan, LABELS),
    "infinite": np.where(LABELS == 1, np.inf, LABELS),
    "unsigned": np.where(LABELS == 1, 2**64 - 1, LABELS).astype("uint64"),
    "text": LABELS.astype(str),
    "two columns": np.stack([LABELS, LABELS], 1),
    "smoothed": 0.9 * one_hot("float32") + 0.1 / CLASSES,
    "two classes": np.ones((COUNT, CLASSES)),
    "no class": np.zeros((COUNT, CLASSES)),
    "images": IMAGES,
}


@pytest.mark.parametrize("name", GOOD)
def test_labels_of_every_form_are_the_same_labels(name):
    assert fault(GOOD[name], COUNT, CLASSES) is None
    found = as_classes(tf.constant(GOOD[name]), COUNT)
    assert found.dtype == tf.int64
    np.testing.assert_array_equal(found, LABELS)


@pytest.mark.long
def test_labels_in_a_column_train_and_measure_as_flat_ones(amdim):
    """As `keras.datasets.cifar10` has them; those of no known class do not count."""
    unknown = np.where(LABELS == 0, -1, LABELS)
    column = unknown[:, None].astype("float32")
    expected = amdim.evaluate(IMAGES, unknown, verbose=0)
    for labels in (column, column.astype("int8")):
        assert amdim.evaluate(IMAGES, labels, verbose=0) == expected
        assert amdim.evaluate(dataset(IMAGES, labels, batch=COUNT), verbose=0) == expected
        assert amdim.test_on_batch(IMAGES, labels) == expected
    for model, labels in ((flat := tiny(), unknown), (other := tiny(), column)):
        model.fit(VIEWS, labels, batch_size=5, **QUIET)
    assert_same(flat, other)
    # True and False are the classes 1 and 0.
    found = amdim.evaluate(IMAGES, LABELS == 1, verbose=0)
    assert found == amdim.evaluate(IMAGES, (LABELS == 1).astype(int), verbose=0)


@pytest.mark.parametrize("name", BAD)
def test_other_labels_are_refused_and_change_nothing(untouched, name):
    amdim, labels, before = untouched, BAD[name], state(untouched)
    calls = [
        lambda: amdim.fit(VIEWS, labels, **QUIET),
        lambda: amdim.fit(dataset(VIEWS, labels, batch=COUNT), **QUIET),
        lambda: amdim.train_on_batch(VIEWS, labels),
        lambda: amdim.evaluate(IMAGES, labels, verbose=0),
        lambda: amdim.evaluate(dataset(IMAGES, labels, batch=COUNT), verbose=0),
        lambda: amdim.test_on_batch(IMAGES, labels),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"labels \(B,\) or \(B,1\) from 0 to 2 .*Received: "):
            call()
    assert_same(amdim, before)


@pytest.mark.long
def test_labels_of_a_model_without_classes_are_not_looked_at():
    model, other = tiny(classes=0), tiny(classes=0)
    model.fit(VIEWS, batch_size=5, **QUIET)
    other.fit(VIEWS, BAD["text"].astype("S").astype("float32") + 0.5, batch_size=5, **QUIET)
    assert_same(model, other)
    for method in ("evaluate", "test_on_batch", "predict", "predict_on_batch"):
        with pytest.raises(InputError, match="without classes has none.*Received: classes=0"):
            getattr(model, method)(IMAGES)
    with pytest.raises(InputError, match="validation is for the classifiers"):
        model.fit(VIEWS, LABELS, validation_data=(IMAGES, LABELS), **QUIET)
    with pytest.raises(InputError, match="export is for the classifiers"):
        model.export("nowhere")
    with pytest.raises(InputError, match="fit is for the classifiers"):
        tiny(Classifier, classes=0).fit(VIEWS, LABELS, **QUIET)


@pytest.mark.long
def test_views_in_every_form():
    """Arrays, datasets and generators, with labels or without."""

    def generator(labels):
        yield VIEWS, labels

    def fitted(*data, **options):
        return tiny().fit(*data, **options, **QUIET).history

    expected = fitted(VIEWS, LABELS)
    assert not np.isnan([*expected.values()]).any()
    batches = dataset(VIEWS, LABELS, batch=COUNT)
    for data in (batches, Batches(), Batches(workers=2), generator(LABELS)):
        assert fitted(data) == expected
    assert fitted(list(VIEWS), LABELS) == expected
    alone = tf.data.Dataset.from_tensors((VIEWS,))
    for data in (VIEWS, alone, generator(labels=None)):
        found = fitted(data)
        assert found["loss"] == expected["loss"]
        assert np.isnan(found["linear_accuracy"][0])  # rather than 0


def test_what_are_no_views_is_refused(amdim):
    one_view = tiny(Classifier, views=1)
    assert "skipped" in one_view.fit(IMAGES, LABELS, batch_size=5, **QUIET).history
    pairs = tf.data.Dataset.from_tensor_slices(VIEWS).batch(5)  # (images, labels) to Keras
    calls = [
        (r"\(\(x1, x2\),\).*Received: labels of shape", lambda: amdim.fit(pairs, **QUIET)),
        (r"Received: float32 \(10, 32", lambda: amdim.train_on_batch(IMAGES, LABELS)),
        ("Received: float32 .*, float32", lambda: one_view.train_on_batch(VIEWS, LABELS)),
        ("Received: images of type dict", lambda: amdim.train_on_batch({"x": IMAGES}, LABELS)),
        (r"\(8, .*\(10, ", lambda: amdim.train_on_batch((IMAGES[:8], IMAGES), LABELS[:8])),
        ("normalised floats", lambda: amdim.test_on_batch(IMAGES.astype("uint8"), LABELS)),
        ("normalised floats", lambda: amdim.predict(IMAGES.astype("uint8"), verbose=0)),
        ("of predict must be images", lambda: amdim.predict_on_batch(IMAGES[:, :30])),
        ("must be .*Received: no labels", lambda: amdim.evaluate(IMAGES, verbose=0)),
        ("must be .*Received: no labels", lambda: one_view.fit(IMAGES, **QUIET)),
    ]
    for message, call in calls:
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.long
@pytest.mark.parametrize("steps", [2, 3, 7])
def test_several_steps_per_execution_see_every_batch(steps):
    models = tiny(), tiny(compiled=EAGER | {"steps_per_execution": steps})
    batches, executions = dataset(VIEWS, LABELS, batch=2), []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: executions.append(batch)
    )
    expected, found = (m.fit(batches, callbacks=[count], **QUIET).history for m in models)
    assert found == expected and len(executions) == 5 + -(-5 // steps)
    assert int(models[1].step) == 5
    assert_same(*models)
    expected, found = (m.evaluate(IMAGES, LABELS, batch_size=2, verbose=0) for m in models)
    assert found == expected
    assert len(models[1].train_on_batch(VIEWS, LABELS)) == len(models[1].metrics_names)
    assert models[1].predict(IMAGES, batch_size=2, verbose=0)["mlp"].shape == (COUNT, CLASSES)


def test_numbers_are_returned_under_their_names(amdim):
    for model in (amdim, tiny(Classifier)):
        logs = model.evaluate(IMAGES, LABELS, return_dict=True, verbose=0)
        values = model.evaluate(IMAGES, LABELS, verbose=0)
        assert dict(zip(model.metrics_names, values, strict=False)) == logs
        assert model.test_on_batch(IMAGES, LABELS, return_dict=True) == logs
        logits = model.predict(IMAGES, verbose=0)["linear"]
        correct = np.mean(logits.argmax(1) == LABELS)
        assert float(logs["linear_accuracy"]) == pytest.approx(correct)
        # Each view counts as an image.
        logs = model.evaluate(VIEWS, LABELS, return_dict=True, verbose=0)
        logits = model.predict_on_batch(np.concatenate(VIEWS))["linear"]
        right = np.mean(logits.argmax(1) == np.tile(LABELS, 2))
        assert float(logs["linear_accuracy"]) == pytest.approx(right)
    copy = tiny()
    logs = copy.train_on_batch(VIEWS, LABELS, return_dict=True)
    copy = tiny()
    values = copy.train_on_batch(VIEWS, LABELS)
    assert dict(zip(copy.metrics_names, values, strict=True)) == logs
    # The metrics in checkpoints, from the first version on.
    names = [re.sub(".*/", "", v.path) for v in copy.metrics_variables]
    assert names == ["total", "count"] * (len(copy.metrics) + 1)


def test_the_objective_is_the_models_own(amdim):
    weights = np.ones(COUNT)
    calls = {
        "loss": lambda: amdim.compile("adam", "mse"),
        "metrics": lambda: amdim.compile("adam", metrics=["accuracy"]),
        "weighted_metrics": lambda: amdim.compile(weighted_metrics=["accuracy"]),
        "loss_weights": lambda: amdim.compile(loss_weights=[1.0]),
        "optimizer": lambda: amdim.compile(None),
        "add_loss": lambda: amdim.add_loss(tf.ones(())),
        "class_weight": lambda: amdim.fit(VIEWS, class_weight={0: 2.0}, **QUIET),
        "class_weight=": lambda: amdim.train_on_batch(VIEWS, LABELS, class_weight={0: 2.0}),
        "sample_weight": lambda: amdim.fit(VIEWS, LABELS, sample_weight=weights, **QUIET),
        "sample_weight=": lambda: amdim.fit(dataset(VIEWS, LABELS, weights), **QUIET),
        "sample_weight=<": lambda: amdim.evaluate(IMAGES, LABELS, sample_weight=weights),
        "sample_weight=a": lambda: amdim.train_on_batch(VIEWS, LABELS, sample_weight=weights),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=f"Received: {name}") as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.long
def test_eager_and_compiled_steps_are_those_of_the_graph():
    expected = None
    for options in (EAGER, {}, {"jit_compile": True}):
        model = tiny(compiled=options)
        values = model.test_on_batch(IMAGES, LABELS) + model.train_on_batch(VIEWS, one_hot("int8"))
        expected = expected or values
        assert values == pytest.approx(expected, rel=1e-4, abs=1e-4)
        before = state(model)
        with pytest.raises(InputError, match="Received: the label 3"):
            model.test_on_batch(IMAGES, LABELS + 1)
        with pytest.raises(InputError, match="Received: float32"):
            model.train_on_batch(IMAGES, LABELS)
        assert_same(model, before)


@pytest.mark.long
def test_fit_with_validation_and_callbacks(amdim, tmp_path):
    callbacks = keras.callbacks
    options = {"monitor": "val_linear_loss", "mode": "min"}
    best = tmp_path / "best.keras"

    def all_callbacks():
        return [
            callbacks.ModelCheckpoint(best, save_best_only=True, **options),
            callbacks.EarlyStopping(patience=3, restore_best_weights=True, **options),
            callbacks.ReduceLROnPlateau(patience=3, **options),
            callbacks.LearningRateScheduler(lambda epoch, rate: 1e-2 / (1 + epoch)),
            callbacks.TensorBoard(tmp_path / "tensorboard"),
            callbacks.CSVLogger(tmp_path / "log.csv"),
            callbacks.BackupAndRestore(tmp_path / "backup"),
            callbacks.TerminateOnNaN(),
        ]

    fitted = amdim.fit(
        VIEWS,
        LABELS,
        batch_size=5,
        epochs=4,
        initial_epoch=1,
        validation_data=(IMAGES, LABELS),
        validation_freq=[2, 3, 4],
        callbacks=all_callbacks(),
        **QUIET,
    )
    assert fitted.epoch == [1, 2, 3]
    np.testing.assert_allclose(fitted.history["learning_rate"], [1e-2 / 2, 1e-2 / 3, 1e-2 / 4])
    found = keras.models.load_model(best).evaluate(IMAGES, LABELS, verbose=0)
    assert float(found[0]) == pytest.approx(min(fitted.history["val_linear_loss"]), rel=1e-5)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"best.keras", "tensorboard", "log.csv"} <= names
    # The last of the images, both views of each.
    split = amdim.fit(VIEWS, LABELS, batch_size=4, validation_split=0.2, **QUIET).history
    expected = amdim.evaluate(tuple(x[8:] for x in VIEWS), LABELS[8:], verbose=0)
    assert split["val_linear_loss"] == pytest.approx(expected[:1])
    # Numbers that are none are never a loss of 0.
    bad = amdim.fit((VIEWS[0] * np.nan, VIEWS[1]), callbacks=[callbacks.TerminateOnNaN()], **QUIET)
    assert np.isnan(bad.history["loss"][0]) and bad.history["skipped"] == [1.0]


def test_a_frozen_encoder_is_not_among_what_is_trained():
    model = tiny(Classifier, frozen=True)
    model.compile(keras.optimizers.Adam(use_ema=True), **EAGER)  # Keras averages what is trainable
    before = [weight.numpy() for weight in model.encoder.weights]
    model.fit(VIEWS, LABELS, batch_size=5, **QUIET)
    for ours, theirs in zip(model.encoder.weights, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    trainable, others = model.trainable_weights, model.non_trainable_weights
    assert [w.path for w in trainable] == [w.path for w in model.probes.trainable_weights]
    assert len(trainable) + len(others) == len(model.weights)
    assert len(model.non_trainable_variables) == len(model.variables) - len(trainable)


MODELS = {
    "amdim": lambda: tiny(),
    "classifier": lambda: tiny(Classifier, views=1, seed=3),
    "frozen": lambda: tiny(Classifier, frozen=True),
    "options": lambda: with_options(),
}


def with_options():
    """One with no argument at its default."""
    keras.utils.set_random_seed(0)
    encoder = Encoder(64, ndf=2, nrkhs=16, ndepth=2, use_bn=True)
    model = AMDIM(encoder, 4, "1-7,7-7", None, 1e-2, 5, 2**20, 2, 0.5, name="mine")
    schedule = WarmupStepDecay(1e-3, 2, (4, 6))
    model.compile(AdamL2(schedule, l2=1e-3), steps_per_execution=2, **EAGER)
    return model


@pytest.mark.parametrize("name", most_long(MODELS, 4))
def test_saved_models_train_on_as_if_they_had_not_been_saved(name, tmp_path):
    model = MODELS[name]()
    size = model.encoder.image_size
    views = tuple(GENERATOR.normal(size=(2, 4, size, size, 3)).astype("float32"))
    several = model.objective.views
    data = dataset(views[:several] if several > 1 else views[0], LABELS[:4], batch=2)
    model.fit(data, **QUIET)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model) and loaded.get_config() == model.get_config()
    assert_same(loaded, model)
    assert loaded.fit(data, **QUIET).history == model.fit(data, **QUIET).history
    assert_same(loaded, model)
    assert loaded.steps_per_execution == model.steps_per_execution
    assert loaded.run_eagerly == model.run_eagerly


@pytest.mark.long
def test_weights_copies_and_exports(amdim, tmp_path):
    amdim.save_weights(tmp_path / "model.weights.h5")
    copy, clone = tiny(), keras.models.clone_model(amdim)
    copy.load_weights(tmp_path / "model.weights.h5")
    assert_same(copy, amdim)
    clone.set_weights(amdim.get_weights())
    expected = amdim.predict(IMAGES, verbose=0)
    of_json = keras.models.model_from_json(amdim.to_json())
    assert clone.count_params() == of_json.count_params() == amdim.count_params()
    amdim.export(tmp_path / "export", verbose=False)
    served = tf.saved_model.load(tmp_path / "export")
    for name, logits in expected.items():
        np.testing.assert_array_equal(clone.predict(IMAGES, verbose=0)[name], logits)
        np.testing.assert_allclose(served.serve(IMAGES)[name], logits, atol=1e-5)
    lines = []
    amdim.summary(print_fn=lambda line, **_: lines.append(line))
    trained = sum(weight.numpy().size for weight in amdim.trainable_weights)
    assert f"Trainable params: {trained:,}" in "\n".join(lines)


@pytest.mark.long
def test_one_image_alone_leaves_no_nan(amdim):
    """A last batch of one image, and batches of one, see the running averages of batch norm."""
    for batch_size in (3, 1):  # of ten images
        for model in (tiny(Classifier), tiny(Classifier, frozen=True, views=1)):
            views = VIEWS[: model.objective.views] if model.objective.views > 1 else IMAGES
            logs = model.fit(views, LABELS, batch_size=batch_size, **QUIET).history
            assert logs["skipped"] == [0.0]
            assert all(np.isfinite(values).all() for values in (*state(model), *logs.values()))
    before = state(amdim)
    with pytest.raises(InputError, match="at least 2 images.*Received: 1$"):
        amdim.fit(VIEWS, LABELS, batch_size=1, **QUIET)
    assert_same(amdim, before)
    # The encoder in a model of the user's.
    encoder = Encoder(32, ndf=4, nrkhs=16, ndepth=1)
    images = keras.Input((32, 32, 3))
    model = keras.Model(images, keras.layers.Dense(CLASSES)(encoder(images)["f1"]))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(IMAGES, LABELS, batch_size=9, **QUIET)
    assert np.isfinite(model.predict(IMAGES, verbose=0)).all()


def test_batch_norm_of_one_row_is_that_of_inference():
    layer = batch_norm.BatchNorm()
    layer.build((None, 4))
    layer(GENERATOR.normal(2, 3, (8, 4)), training=True)
    row, averages = GENERATOR.normal(size=(1, 4)), [w.numpy() for w in layer.non_trainable_weights]
    expected = layer(row)
    np.testing.assert_allclose(layer(row, training=True), expected, rtol=1e-6)
    for ours, theirs in zip(layer.non_trainable_weights, averages, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
