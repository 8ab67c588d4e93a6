"""A training of the reference, of 780 updates, from the same initial weights."""

import json

import keras
import numpy as np
import pytest
from golden_values import ROOT
from sklearn.linear_model import LogisticRegression

from amdim_tf.config import load_config
from amdim_tf.data import pipeline, sources
from amdim_tf.evaluation.features import encode
from amdim_tf.evaluation.protocols.knn import knn
from amdim_tf.reference.conversion import named_variables, to_keras
from amdim_tf.training.building import build

TRAININGS = ROOT.parent / "shared" / "reference" / "training"
DATA = ROOT.parent / "shared" / "data" / "tfds"
STEPS, EPOCH, WINDOW = 780, 156, 50

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not TRAININGS.is_dir(), reason="the reference's trainings are not here"),
]


class Losses(keras.callbacks.Callback):
    """The total loss of each update."""

    def on_train_begin(self, logs=None):
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(float(logs["loss"]))
        self.model.reset_metrics()  # which are means of several updates


def test_losses_and_accuracies_follow_the_reference():
    seed = 0
    expected = json.loads((TRAININGS / "curves.json").read_text())[str(seed)]
    config = load_config("cifar10", "tiny")
    config.update(
        {"train_split": "train[:10000]", "steps": STEPS, "learning_rate": 2e-4, "seed": seed}
    )
    config.warmup_steps, config.decays = EPOCH, ()
    data = sources.load(config, str(DATA))
    model = build(config, len(data.class_names), STEPS)
    initial = np.load(TRAININGS / f"initial_{seed}.npz")
    variables = named_variables(model)
    for name, variable in variables.items():
        variable.assign(to_keras(initial[name]))
    assert set(initial.files) >= set(variables)

    losses = Losses()
    batches = pipeline.train_batches(data, config, 0, STEPS)
    model.fit(batches, steps_per_epoch=STEPS, shuffle=False, verbose=0, callbacks=[losses])
    # Before the end of the first epoch a loss falls by several nats in a window.
    differences = np.array(losses.values)[EPOCH:] - expected["total"][EPOCH:]
    windows = np.convolve(differences, np.full(WINDOW, 1 / WINDOW), "valid")
    assert np.abs(windows).max() <= 0.2
    assert abs(differences.mean()) <= 0.05

    known, test = (encode(model.encoder, data, split, config) for split in (data.train, data.test))
    mean, deviation = known.moments()
    classifier = LogisticRegression(C=1, max_iter=100)
    classifier.fit((known.at(slice(None)) - mean) / deviation, known.labels)
    score = classifier.score((test.at(slice(None)) - mean) / deviation, test.labels)
    theirs = expected["accuracy"]
    assert abs(score - theirs["logistic_regression_standardised_C1"]) <= 0.015
    assert abs(knn(known, test, 10).accuracy() - theirs["knn10"]) <= 0.015
