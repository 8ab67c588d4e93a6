"""How a representation is measured: classifiers and nearest neighbours on frozen features (4).

Each protocol learns from the images of one split and ranks the classes for those of another. Of
equal scores the class of the smaller number comes first, here and wherever classes are ranked.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from scipy import stats
from sklearn import metrics

from amdim_tf import distribution
from amdim_tf.data import pipeline
from amdim_tf.data.splits import fold, permutation
from amdim_tf.errors import InputError
from amdim_tf.evaluation.neighbours import QUERIES, nearest
from amdim_tf.objectives.probes import NAMES
from amdim_tf.training.classifier import Classifier
from amdim_tf.training.fitting import Course, fit
from amdim_tf.training.optimizer import AdamL2, WarmupStepDecay, guarded

NEIGHBOURS = 10
PROBE_EPOCHS = 25
PROBE_BATCH = 256
PROBE_LEARNING_RATE = 1e-2
RESAMPLES = 1000
# Classes that are ranked of each image.
RANKED = 5
# What the accuracies of a training are of, and by which classifiers.
COLUMNS = ("linear", "mlp", "knn")
ROWS = {
    "beside": "encoder, probes trained beside it",
    "frozen": "encoder, frozen",
    "untrained": "untrained encoder, frozen",
    "raw_pixels": "raw pixels",
}


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The classes of N images: `labels` (N,), and `ranked` (N,k), the likeliest first.

    k is at most `RANKED`; where fewer classes are likely at all, -1 follows them.
    """

    labels: np.ndarray
    ranked: np.ndarray

    def correct(self, count=1):
        """Whether the label of each image (N,) is among the `count` first."""
        return (self.ranked[:, :count] == self.labels[:, None]).any(1)

    def accuracy(self, count=1):
        """The fraction of the images of which it is."""
        return float(self.correct(count).mean())


def rank(scores):
    """The best classes (N,k) int32 by `scores` (N,classes), a tensor."""
    return tf.math.top_k(scores, min(RANKED, scores.shape[1])).indices


def knn(train, test, classes):
    """`Predictions` for the `Features` `test` by the votes of the 10 nearest of `train` by cosine.

    Classes without a vote are not ranked.
    """
    _check(train)
    places, _ = nearest(train, test, min(NEIGHBOURS, len(train)))
    ranked = []
    for start in range(0, len(test), QUERIES):
        voters = train.labels[places[start : start + QUERIES]]
        votes = np.zeros((len(voters), classes), "float32")
        np.add.at(votes, (np.arange(len(voters))[:, None], voters), 1)
        best = rank(tf.constant(votes)).numpy()
        ranked.append(np.where(np.take_along_axis(votes, best, 1) > 0, best, -1))
    return Predictions(test.labels, np.concatenate(ranked))


class Standardised(keras.Model):
    """Features (B,D) to {"f1": (B,D)} of mean 0 and deviation 1 among those of `moments`."""

    def __init__(self, mean, deviation, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.mean, self.deviation, self.nrkhs = mean, deviation + 1e-6, len(mean)

    def call(self, features, training=False):
        return {"f1": (tf.cast(features, tf.float32) - self.mean) / self.deviation}


def fit_on_features(train, test, classes, config, run=None):
    """Classifiers from scratch on `Features` that are computed once, on one device.

    Args:
        train, test: what they learn from, and what they then classify.
        classes: their number.
        config: a config; its `seed` is that of the weights and of the order of the images.
        run: the `RunDirectory` from which the training goes on after a stop, if any.

    Returns:
        {"linear": Predictions, "mlp": Predictions}.
    """
    _check(train)
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
    return classify(model, test)


def classify(model, features):
    """{"linear": Predictions, "mlp": Predictions} of `Features` by a model or `Probes` of them."""
    each = distribution.over_batches(_ranking(model), tf.distribute.get_strategy())
    blocks = range(0, len(features), QUERIES)
    return predictions(
        each(
            (np.zeros(0), features.block(i, i + QUERIES), features.labels[i : i + QUERIES])
            for i in blocks
        )
    )


def measure(train, test, classes, config):
    """Test accuracy {"linear", "mlp", "knn"} on `Features`; see `fit_on_features` and `knn`."""
    found = fit_on_features(train, test, classes, config) | {"knn": knn(train, test, classes)}
    return {name: found[name].accuracy() for name in COLUMNS}


def feature_batches(features, batch, seed, first_step, last_step):
    """Batches `((f1,), labels)` of `Features`, of the steps `first_step` to `last_step` - 1.

    Epochs are shuffled by (seed, epoch); what is left of one is not in its batches.
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


def fit_on_views(model, data, config, devices, run):
    """The classifiers of `model`, trained from scratch on augmented images of `data.probe`.

    The reference's schedule for classifiers on a frozen encoder; of one that is not, the encoder is
    fine-tuned with them, and changed.

    Args:
        model: a `Classifier`, made under `devices.strategy`; see `build_classifier`.
        data: a `Data`; its `probe` is fitted and its `test` scored.
        config: a config whose `batch_size` is at most the number of images.
        devices: `distribution.Devices`.
        run: the `RunDirectory` from which the training goes on after a stop.

    Returns:
        {"linear": Predictions, "mlp": Predictions}.
    """
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
    return predictions(each(pipeline.test_batches(data, data.test, config, devices.worker)))


def build_classifier(encoder, config, data, devices, frozen):
    """The `Classifier` for `fit_on_views`, to be called under the scope of `devices.strategy`."""
    keras.utils.set_random_seed(config.seed)
    model = Classifier(encoder, len(data.class_names), frozen, seed=config.seed)
    steps = config.probe_epochs * (data.probe.size // config.batch_size)
    decays = [part * steps for part in config.probe_decays]
    schedule = WarmupStepDecay(config.probe_learning_rate, 0, decays, config.decay_rate)
    optimizer = AdamL2(schedule, config.l2)
    if config.precision == "mixed_float16" and not frozen:
        optimizer = guarded(optimizer, scale=2.0**15, growth_steps=2000)
    model.prepare(optimizer, devices.compiled, config.micro_batch)
    return model


def _ranking(model):
    """The function of `pipeline.test_batches` that `predictions` takes the results of."""

    def function(places, images, labels):
        logits = model(images, training=False)
        finite = [tf.reduce_all(tf.math.is_finite(logits[name]), axis=-1) for name in NAMES]
        # Of several replicas no bool can be gathered.
        finite = tf.cast(tf.stack(finite, 1), tf.int32)
        return labels, {name: rank(logits[name]) for name in NAMES}, finite

    return function


def predictions(rounds):
    """{"linear": Predictions, "mlp": Predictions} of the images that have labels.

    Raises:
        InputError: there are none, or logits that are not finite.
    """
    labels, ranked, finite = [], {name: [] for name in NAMES}, []
    for known, best, good in rounds:
        counted = known >= 0
        labels.append(known[counted])
        finite.append(good[counted] > 0)
        for name in NAMES:
            ranked[name].append(best[name][counted])
    labels = np.concatenate(labels)
    if not len(labels):
        raise InputError("There must be test images to measure by. Received: none that is good")
    for name, good in zip(NAMES, np.concatenate(finite).T, strict=True):
        if not good.all():
            raise InputError(
                f"The classifier {name} must give finite numbers; try a smaller learning rate. "
                f"Received: others for {(~good).sum()} of {len(good)} test images"
            )
    return {name: Predictions(labels, np.concatenate(ranked[name])) for name in NAMES}


def _check(train):
    if len(train) < 2:
        raise InputError(
            "Classifiers and neighbours need two or more labelled images to learn from. "
            f"Received: {len(train)}"
        )


def report(predictions, class_names):
    """Accuracies of `Predictions`, as JSON has them.

    Returns:
        (report, confusion): {"top1", "top5", "interval", "per_class"}, the 95 % interval of top1 by
        bootstrap over images, no accuracy of a class without images; and counts (classes,classes)
        by true and predicted class.
    """
    confusion = metrics.confusion_matrix(
        predictions.labels, predictions.ranked[:, 0], labels=np.arange(len(class_names))
    )
    counts = zip(class_names, np.diag(confusion), confusion.sum(1), strict=True)
    return {
        "top1": predictions.accuracy(),
        "interval": interval(predictions.correct()),
        "top5": predictions.accuracy(RANKED),
        "per_class": {name: round(n / of, 4) if of else None for name, n, of in counts},
    }, confusion


def interval(values):
    """The 95 % interval of the mean of `values` (N,), by bootstrap, as [low, high]."""
    if len(values) < 2:  # which have no spread to be drawn from
        return [float(np.mean(values))] * 2
    sample = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=50,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return [float(limit) for limit in sample.confidence_interval]


def balanced_places(labels, fraction, classes):
    """Places of a fixed fraction of the images with `labels` (N,), as many of each class.

    Of a class with fewer images than that all are taken, and more of the others.

    Raises:
        InputError: a fraction that leaves a class empty.
    """
    sizes, wanted = np.bincount(labels[labels >= 0], minlength=classes), fraction * len(labels)
    levels = np.arange(sizes.max() + 1)
    # How many images there are if each class gives at most so many.
    totals = np.cumsum([0, *(len(sizes) - np.searchsorted(np.sort(sizes), levels[1:]))])
    count = np.searchsorted(totals, wanted * (1 + 1e-9), side="right") - 1
    order = np.random.default_rng(0).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    limits = np.searchsorted(labels[by_class], np.arange(classes + 1))
    chosen = [by_class[a:b][:count] for a, b in zip(limits[:-1], limits[1:], strict=True)]
    for label, places in enumerate(chosen):
        if not len(places):
            least = classes / len(labels)
            raise InputError(
                f"label_fraction must leave an image of each of the {classes} classes, at least "
                f"{least:.2g} of {len(labels)} images. Received: label_fraction={fraction:g}, "
                f"which leaves class {label} empty"
            )
    return np.sort(np.concatenate(chosen))
