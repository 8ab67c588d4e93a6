"""How a representation is measured: classifiers and nearest neighbours on frozen features (4)."""

import dataclasses

import keras
import numpy as np
from scipy import stats
from sklearn import metrics
from sklearn.neighbors import KNeighborsClassifier

from amdim_tf import pipeline
from amdim_tf.callbacks import Progress
from amdim_tf.errors import InputError
from amdim_tf.model import Classifier
from amdim_tf.optimizer import AdamL2, WarmupStepDecay
from amdim_tf.probes import NAMES, Probes, probe_loss

NEIGHBOURS = 10
PROBE_EPOCHS = 25
PROBE_BATCH = 256
PROBE_LEARNING_RATE = 1e-2
RESAMPLES = 1000
# What the accuracies of a training are of, and by which classifiers.
COLUMNS = ("linear", "mlp", "knn")
ROWS = {
    "beside": "encoder, probes trained beside it",
    "frozen": "encoder, frozen",
    "untrained": "untrained encoder, frozen",
    "raw_pixels": "raw pixels",
}


def encode(encoder, batches):
    """Features f1 (N,nrkhs) float32 in inference mode, and labels (N,), of all images."""
    features, labels = zip(
        *((encoder.predict_on_batch(images)["f1"], label) for images, label in batches), strict=True
    )
    return np.concatenate(features), np.concatenate(labels)


def raw_pixels(batches):
    """Normalised pixels (N,S*S*3) and labels (N,) of all images: the features of no encoder."""
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    images = np.concatenate(images)
    return images.reshape(len(images), -1), np.concatenate(labels)


# Each of these fits on the features or images of one split and scores those of another: scores
# (N,classes), of which the largest is the prediction.


def fit_probes(train, test, classes, seed):
    """Classifiers from scratch on features computed once, {"linear": scores, "mlp": scores}.

    Args:
        train, test: (features (N,D), labels (N,)).
        classes: their number.
        seed: of the classifiers' weights and of the order of the images.
    """
    keras.utils.set_random_seed(seed)
    features, labels = train
    mean, std = features.mean(0), features.std(0) + 1e-6
    steps = PROBE_EPOCHS * -(-len(features) // PROBE_BATCH)
    model = keras.Sequential([keras.Input(features.shape[1:]), Probes(classes)])
    model.compile(
        optimizer=AdamL2(WarmupStepDecay(PROBE_LEARNING_RATE, 0, (0.6 * steps, 0.85 * steps))),
        loss=dict.fromkeys(NAMES, probe_loss),
        jit_compile=False,
    )
    targets = dict.fromkeys(NAMES, labels)
    standard = (features - mean) / std
    model.fit(standard, targets, batch_size=PROBE_BATCH, epochs=PROBE_EPOCHS, verbose=0)
    return model.predict((test[0] - mean) / std, verbose=0)


def fit_on_views(encoder, data, config, frozen):
    """Classifiers from scratch on augmented images: {"linear": scores, "mlp": scores}, and labels.

    The reference's schedule for classifiers on a `frozen` encoder; else the encoder is fine-tuned
    with them, and changed.

    Args:
        encoder: an `Encoder`.
        data: a `datasets.Data`; its `probe` is fitted and its `test` scored.
        config: a config; its `probe_epochs`, `probe_decays` and `probe_learning_rate` count.
        frozen: whether the encoder stays as it is, in inference mode.
    """
    keras.utils.set_random_seed(config.seed)
    model = Classifier(encoder, len(data.class_names), frozen)
    data = dataclasses.replace(data, train=data.probe)
    config = config.copy_and_resolve_references()
    config.batch_size = min(config.batch_size, data.train.size)
    steps = config.probe_epochs * pipeline.steps_per_epoch(data, config)
    decays = [part * steps for part in config.probe_decays]
    schedule = WarmupStepDecay(config.probe_learning_rate, 0, decays, config.decay_rate)
    model.compile(optimizer=AdamL2(schedule, config.l2), jit_compile=False)
    batches = pipeline.train_batches(data, config, 0, steps)
    model.fit(batches, shuffle=False, verbose=0, callbacks=[Progress(config.batch_size, 0, steps)])
    test = pipeline.test_batches(data, data.test, config)
    scores, labels = zip(*((model.predict_on_batch(images), y) for images, y in test), strict=True)
    scores = {name: np.concatenate([each[name] for each in scores]) for name in NAMES}
    return scores, np.concatenate(labels)


def knn(train, test, classes):
    """The votes of the 10 nearest training images by cosine: scores."""
    index = KNeighborsClassifier(min(NEIGHBOURS, len(train[1])), metric="cosine").fit(*train)
    scores = np.zeros((len(test[1]), classes))
    scores[:, index.classes_] = index.predict_proba(test[0])
    return scores


def measure(train, test, classes, seed):
    """Test accuracy {"linear", "mlp", "knn"} on features computed once; see `fit_probes`."""
    scores = fit_probes(train, test, classes, seed) | {"knn": knn(train, test, classes)}
    return {name: top(values, test[1]) for name, values in scores.items()}


def top(scores, labels, k=1):
    """The part of the images whose label is among the `k` largest of their `scores`."""
    return float(np.mean(hits(scores, labels, k)))


def hits(scores, labels, k=1):
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return (best == labels[:, None]).any(1)


def report(scores, labels, class_names):
    """Accuracies of `scores` (N,classes) against `labels` (N,), as JSON has them.

    Returns:
        (report, confusion): {"top1", "top5", "interval", "per_class"}, the 95 % interval of top1 by
        bootstrap over images; and counts (classes,classes) by true and predicted class.
    """
    right = hits(scores, labels)
    confusion = metrics.confusion_matrix(
        labels, scores.argmax(1), labels=np.arange(len(class_names))
    )
    parts = np.diag(confusion) / np.maximum(confusion.sum(1), 1)
    return {
        "top1": float(right.mean()),
        "interval": interval(right),
        "top5": top(scores, labels, min(5, len(class_names))),
        "per_class": dict(zip(class_names, parts.round(4).tolist(), strict=True)),
    }, confusion


def interval(values):
    """The 95 % interval of the mean of `values` (N,), by bootstrap, as [low, high]."""
    sample = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=50,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return [float(limit) for limit in sample.confidence_interval]


def balanced_subset(split, fraction, classes):
    """A fixed part of a `datasets.Split` with the same number of images of each class.

    Raises:
        InputError: a fraction that leaves a class empty.
    """
    labels = split.labels()
    count = int(fraction * len(labels) / classes)
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = np.zeros(len(labels), bool)
    for label in range(classes):
        mine = order[labels[order] == label][:count]
        if not len(mine):
            least = classes / len(labels)
            raise InputError(
                f"label_fraction must leave an image of each of the {classes} classes, at least "
                f"{least:.2g} of {len(labels)} images. Received: label_fraction={fraction:g}, "
                f"which leaves class {label} empty"
            )
        chosen[mine] = True
    return split.subset(chosen)
