"""Trains a small model on several replicas; run by test_distribution in its own process.

Logical devices have to be made before TensorFlow touches the processor.
"""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from amdim_tf.distribution import choose_strategy
from amdim_tf.encoders.amdim import Encoder
from amdim_tf.errors import InputError
from amdim_tf.training.averaging import Averages, values
from amdim_tf.training.model import AMDIM, Classifier
from amdim_tf.training.optimizer import AdamL2

BATCH, STEPS = 8, 10


def weights_after_training(strategy, case):
    """Logs and weights; `case` names xla (compiled regions), bn (inside, too), micro (batches),
    mixture (features); tuned and frozen (an encoder with classifiers, learning with them or not).

    And clip: another optimiser, clipped gradients, averaged weights and a small crop; nan: an image
    of the fourth batch is not a number, which the last replica sees.
    """
    classifier = "tuned" in case or "frozen" in case
    generator = np.random.default_rng(0)
    x1, x2, x3 = generator.normal(size=(3, BATCH * STEPS, 32, 32, 3))
    inputs = (x1, x2, x3) if "clip" in case else (x1, x2)
    if "nan" in case:
        x1[4 * BATCH - 1] = np.nan
    labels = np.arange(BATCH * STEPS) % 3 if classifier else np.full(BATCH * STEPS, -1)

    def batches(context):
        """Of a worker: its part of each batch."""
        parts, part = context.num_input_pipelines, context.input_pipeline_id
        mine = np.arange(BATCH * STEPS).reshape(STEPS, parts, -1)[:, part].ravel()
        own = tuple(x[mine] for x in inputs)
        data = tf.data.Dataset.from_tensor_slices((own, labels[mine]))
        return data.batch(BATCH // parts, drop_remainder=True)

    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        data = strategy.distribute_datasets_from_function(batches)
    else:
        data = batches(tf.distribute.InputContext())
    with strategy.scope():
        keras.utils.set_random_seed(0)
        # In float64 nothing but a mistake makes a difference.
        keras.config.set_dtype_policy("float64" if classifier else "float32")
        encoder = Encoder(32, ndf=4, nrkhs=16, ndepth=1, use_bn="bn" in case, dtype="float64")
        if classifier:
            model = Classifier(encoder, classes=3, frozen="frozen" in case, dtype="float64")
        else:
            crops = int("clip" in case)
            model = AMDIM(encoder, 0, components=2 * ("mixture" in case), small_crops=crops)
        optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.1)
        model.compile(optimizer=optimizer if "clip" in case else AdamL2(1e-2), jit_compile=False)
        if "clip" in case:
            model.clip_norm, model.averages = 0.5, Averages(values(model), 0.9)
        if "xla" in case or "micro" in case:
            model.divide("xla" in case, 2 * ("micro" in case))
    logs = model.fit(data, steps_per_epoch=STEPS, verbose=0, shuffle=False).history
    keras.config.set_dtype_policy("float32")  # for the other tests of this process
    if classifier:
        names, parts = ("linear_loss", "mlp_loss", "mlp_accuracy"), (model.encoder, model.probes)
        scores = uneven(model, x1, labels)
        logs, names = logs | scores, (*names, *scores)
    else:
        names = "loss", "regulariser", "nce_5-5", "bound_1-7", "skipped"
        parts = filter(None, (model.encoder, model.phi5, model.phi7, model.objective.mixture))
    found = {name: np.array(logs[name]) for name in names}
    weights = [w for part in parts for w in part.weights]
    if model.averages:
        found |= {f"average {i}": x.numpy() for i, x in enumerate(model.averages.values)}
    # Paths differ by the number that Keras gives the model.
    return found | {f"{i}/{w.path.split('/')[-1]}": w.numpy() for i, w in enumerate(weights)}


def uneven(model, images, labels):
    """Scores on batches that replicas share unequally; training refuses such batches."""
    if model.distribute_strategy.num_replicas_in_sync > 1:
        with pytest.raises(InputError, match="multiple of .* images.*shares of"):
            model.fit((images, images), labels, batch_size=BATCH + 1, verbose=0)
    scores = model.evaluate(images, labels, batch_size=7, verbose=0, return_dict=True)
    unknown = np.where(np.arange(len(labels)) < 5, -1, labels)
    known = model.evaluate(images, unknown, batch_size=7, verbose=0, return_dict=True)
    values = {f"test_{name}": value for name, value in scores.items()}
    return values | {"known_accuracy": known["linear_accuracy"]}


if __name__ == "__main__":
    path, name, *cases = sys.argv[1:]
    chosen = choose_strategy(name)
    results = {}
    for case in cases:
        trained = weights_after_training(chosen, case)
        results |= {f"{case}:{name}": value for name, value in trained.items()}
    np.savez(path, **results)
