"""How a representation is measured: classifiers and nearest neighbours on frozen features (4)."""

import keras
import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from amdim_tf.optimizer import AdamL2, WarmupStepDecay
from amdim_tf.probes import NAMES, Probes, probe_loss

NEIGHBOURS = 10
PROBE_EPOCHS = 25
PROBE_BATCH = 256
PROBE_LEARNING_RATE = 1e-2


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


def measure(train, test, classes, seed):
    """Test accuracy of classifiers from scratch on frozen features.

    Args:
        train, test: (features (N,D), labels (N,)).
        classes: their number.
        seed: of the classifiers' weights and of the order of the images.

    Returns:
        {"linear": ..., "mlp": ..., "knn": ...}, parts of the whole test set.
    """
    mean, std = train[0].mean(0), train[0].std(0) + 1e-6
    standard = [((features - mean) / std, labels) for features, labels in (train, test)]
    return fit_probes(*standard, classes, seed) | {"knn": knn(train, test)}


def fit_probes(train, test, classes, seed):
    """Trains linear and MLP classifiers on (features, labels) and scores them on `test`."""
    keras.utils.set_random_seed(seed)
    features, labels = train
    steps = PROBE_EPOCHS * -(-len(features) // PROBE_BATCH)
    model = keras.Sequential([keras.Input(features.shape[1:]), Probes(classes)])
    model.compile(
        optimizer=AdamL2(WarmupStepDecay(PROBE_LEARNING_RATE, 0, (0.6 * steps, 0.85 * steps))),
        loss=dict.fromkeys(NAMES, probe_loss),
        jit_compile=False,
    )
    targets = dict.fromkeys(NAMES, labels)
    model.fit(features, targets, batch_size=PROBE_BATCH, epochs=PROBE_EPOCHS, verbose=0)
    logits = model.predict(test[0], verbose=0)
    return {name: float(np.mean(logits[name].argmax(1) == test[1])) for name in NAMES}


def knn(train, test):
    """Test accuracy of the 10 nearest training images by cosine."""
    index = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(*train)
    return float(index.score(*test))
