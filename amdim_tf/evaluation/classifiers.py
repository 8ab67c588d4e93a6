"""Linear and MLP classifiers from scratch, on features or on augmented images (4)."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from amdim_tf import distribution
from amdim_tf.data import pipeline
from amdim_tf.data.data import Data
from amdim_tf.data.splits import fold, permutation
from amdim_tf.distribution import Devices
from amdim_tf.errors import InputError
from amdim_tf.evaluation.features import Features
from amdim_tf.evaluation.neighbours import QUERIES
from amdim_tf.evaluation.predictions import Predictions, rank
from amdim_tf.objectives.probes import NAMES
from amdim_tf.training.fitting import Course, fit
from amdim_tf.training.model import Classifier
from amdim_tf.training.optimizer import AdamL2, WarmupStepDecay, guarded
from amdim_tf.training.run_directory import RunDirectory
from amdim_tf.typing import Config, Tensor

PROBE_EPOCHS = 25
PROBE_BATCH = 256
PROBE_LEARNING_RATE = 1e-2


class Standardised(keras.Model):
    """Standardises features (B,D) to {"f1": (B,D)}, in float32.

    Args:
        mean, deviation: (D,), see `Features.moments`.
    """

    def __init__(self, mean: np.ndarray, deviation: np.ndarray, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.mean, self.deviation, self.nrkhs = mean, deviation + 1e-6, len(mean)

    def call(self, features: Tensor, training: bool = False) -> dict[str, Tensor]:
        return {"f1": (tf.cast(features, tf.float32) - self.mean) / self.deviation}


def fit_on_features(
    train: Features,
    test: Features,
    classes: int,
    config: Config,
    run: RunDirectory | None = None,
) -> dict[str, Predictions]:
    """{"linear": Predictions, "mlp": Predictions} for `test`, by `trained_on_features`."""
    return classify(trained_on_features(train, classes, config, run), test)


def trained_on_features(
    train: Features, classes: int, config: Config, run: RunDirectory | None = None
) -> Classifier:
    """Trains classifiers from scratch on `Features` that are computed once, on one device.

    Args:
        train: the features to learn from.
        classes: number of classes.
        config: a config; its `seed` draws the weights and the order of the images.
        run: the `RunDirectory` that keeps the training, so that it can go on after a stop.

    Returns:
        A model of features (B,D).
    """
    check_enough(train)
    batch = min(PROBE_BATCH, len(train))
    epoch_steps = len(train) // batch
    steps = PROBE_EPOCHS * epoch_steps
    keras.utils.set_random_seed(config.seed)
    standardised = Standardised(*train.moments())
    model = Classifier(standardised, classes, frozen=True, views=1, seed=config.seed)
    decays = (0.6 * steps, 0.85 * steps)
    model.compile(AdamL2(WarmupStepDecay(PROBE_LEARNING_RATE, 0, decays)), jit_compile=False)

    def batches(first, worker=None):
        return feature_batches(train, batch, config.seed, first, steps)

    fit(model, Course(batches, batch, epoch_steps, steps), run, config)
    return model


def classify(model: keras.Model | keras.layers.Layer, features: Features) -> dict[str, Predictions]:
    """{"linear": Predictions, "mlp": Predictions} for `Features`.

    Args:
        model: maps features (B,D) to logits of both classifiers, such as `Probes`.
    """
    each = distribution.over_batches(_ranking(model), tf.distribute.get_strategy())
    blocks = range(0, len(features), QUERIES)
    return predictions(
        each(
            (np.zeros(0), features.block(i, i + QUERIES), features.labels[i : i + QUERIES])
            for i in blocks
        )
    )


def feature_batches(
    features: Features, batch: int, seed: int, first_step: int, last_step: int
) -> tf.data.Dataset:
    """Batches `((f1,), labels)` of `Features`, for the steps `first_step` to `last_step` - 1.

    Epochs are shuffled by (seed, epoch), and leave out the images that do not fill a batch.
    """
    epoch_steps = len(features) // batch

    def epoch(number):
        first = tf.maximum(first_step - number * epoch_steps, 0) * batch
        places = permutation(len(features), fold((seed, number), 0))
        return tf.data.Dataset.from_tensor_slices(places[first : epoch_steps * batch])

    def gather(places):
        f1, labels = tf.numpy_function(
            lambda places: (features.at(places), features.labels[places]),
            [places],
            (tf.float32, tf.int64),
        )
        f1 = tf.ensure_shape(f1, (batch, features.width))
        return (f1,), tf.ensure_shape(labels, (batch,))

    epochs = tf.data.Dataset.range(first_step // epoch_steps, -(-last_step // epoch_steps))
    batches = epochs.flat_map(epoch).batch(batch, drop_remainder=True)
    return batches.map(gather).take(last_step - first_step).prefetch(tf.data.AUTOTUNE)


def fit_on_views(
    model: Classifier, data: Data, config: Config, devices: Devices, run: RunDirectory
) -> dict[str, Predictions]:
    """Trains the classifiers of `model` from scratch on augmented images of `data.probe`.

    It uses the reference's schedule for classifiers on a frozen encoder. An encoder that is not
    frozen is fine-tuned with them, and changed.

    Args:
        model: a `Classifier`, made under `devices.strategy`; see `build_classifier`.
        data: a `Data`; its `probe` is learned from and its `test` scored.
        config: a config; its `batch_size` must be at most the number of images.
        devices: `distribution.Devices`.
        run: the `RunDirectory` that keeps the training, so that it can go on after a stop.

    Returns:
        {"linear": Predictions, "mlp": Predictions}.
    """
    assert data.probe and data.test, "data with classes has both"
    test = data.test
    data = dataclasses.replace(data, train=data.probe)
    epoch_steps = pipeline.steps_per_epoch(data, config)
    steps = config.probe_epochs * epoch_steps
    course = Course(
        lambda first, worker: pipeline.train_batches(data, config, first, steps, worker=worker),
        config.batch_size,
        epoch_steps,
        steps,
        failures=data.failures,
    )
    fit(model, course, run, config, devices)
    each = distribution.over_batches(_ranking(model), devices.strategy)
    return predictions(each(pipeline.test_batches(data, test, config, devices.worker)))


def build_classifier(
    encoder: keras.Model, config: Config, data: Data, devices: Devices, frozen: bool
) -> Classifier:
    """Makes the `Classifier` for `fit_on_views`; call it in the scope of `devices.strategy`."""
    assert data.probe, "data with classes has it"
    keras.utils.set_random_seed(config.seed)
    model = Classifier(encoder, len(data.class_names), frozen, seed=config.seed)
    steps = config.probe_epochs * (data.probe.size // config.batch_size)
    decays = [fraction * steps for fraction in config.probe_decays]
    schedule = WarmupStepDecay(config.probe_learning_rate, 0, decays, config.decay_rate)
    optimizer = AdamL2(schedule, config.l2)
    if config.precision == "mixed_float16" and not frozen:
        optimizer = guarded(optimizer, scale=2.0**15, growth_steps=2000)
    model.prepare(optimizer, devices.compiled, config.micro_batch)
    return model


def _ranking(model):
    """A function that maps batches of `pipeline.test_batches` to what `predictions` takes."""

    def function(places, images, labels):
        logits = model(images, training=False)
        finite = [tf.reduce_all(tf.math.is_finite(logits[name]), axis=-1) for name in NAMES]
        # Several replicas cannot gather bools.
        finite = tf.cast(tf.stack(finite, 1), tf.int32)
        return labels, {name: rank(logits[name]) for name in NAMES}, finite

    return function


def predictions(rounds: Iterable) -> dict[str, Predictions]:
    """{"linear": Predictions, "mlp": Predictions} for the images that have labels.

    Args:
        rounds: yields labels (B,), the ranked classes {name: (B,k)}, and whether each classifier's
            logits are finite (B,2).

    Raises:
        InputError: no image has a label, or some logits are not finite.
    """
    found, finite = [], []
    ranked: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    for known, best, good in rounds:
        counted = known >= 0
        found.append(known[counted])
        finite.append(good[counted] > 0)
        for name in NAMES:
            ranked[name].append(best[name][counted])
    labels = np.concatenate(found)
    if not len(labels):
        raise InputError("There must be test images to measure by. Received: none that can be used")
    for name, good in zip(NAMES, np.concatenate(finite).T, strict=True):
        if not good.all():
            raise InputError(
                f"The classifier {name} must give finite numbers; try a smaller learning rate. "
                f"Received: others for {(~good).sum()} of {len(good)} test images"
            )
    return {name: Predictions(labels, np.concatenate(ranked[name])) for name in NAMES}


def check_enough(train: Features) -> None:
    """Checks that there are enough `Features` to learn from.

    Raises:
        InputError: there are not.
    """
    if len(train) < 2:
        raise InputError(
            "Classifiers and neighbours need two or more labelled images to learn from. "
            f"Received: {len(train)}"
        )
