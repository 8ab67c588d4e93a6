"""What an encoder is worth after each epoch: neighbours and effective rank of f1."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from amdim_tf.data import pipeline
from amdim_tf.data.data import Data
from amdim_tf.data.splits import Split
from amdim_tf.distribution import Devices, over_batches
from amdim_tf.errors import InputError
from amdim_tf.evaluation.features import Features
from amdim_tf.evaluation.protocols.knn import knn
from amdim_tf.training.health import effective_rank
from amdim_tf.training.learner import Learner
from amdim_tf.typing import Config, Tensor

# Images to learn from: so many, or this fraction of them if that is more.
KNOWN, KNOWN_FRACTION = 1000, 0.01
TEST = 500


class F1:
    """f1 of an encoder, as it is when it is called, for the images of a split, in memory.

    Unlike `features.encode` it takes images without labels, and is traced once for all calls.

    Args:
        encoder: an encoder.
        data, config: those of its training.
        devices: `Devices`, by default one; all replicas share the work.
    """

    def __init__(
        self, encoder: keras.Model, data: Data, config: Config, devices: Devices | None = None
    ):
        self.data, self.config = data, config
        self.devices = devices or Devices(tf.distribute.get_strategy())

        def function(places: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            return places, tf.cast(encoder(images, training=False)["f1"], tf.float32), labels

        self.outputs = over_batches(function, self.devices.strategy)

    def __call__(self, split: Split) -> Features:
        """The `Features` of a split; `values` (N,D) has those of images without a label, too."""
        batches = pipeline.test_batches(self.data, split, self.config, self.devices.worker)
        places, f1, labels = map(np.concatenate, zip(*self.outputs(batches), strict=True))
        if not (places >= 0).any():
            self.data.failures.check()
            raise InputError(f"None of {split.size} images can be used")
        return Features(f1[places >= 0], labels[places >= 0])


class Online:
    """Measures a model by f1 of training images, and of test images if there are classes.

    It learns from so few images that it takes some hundredths of an epoch.

    Args:
        data, config, devices: see `F1`.
    """

    def __init__(self, data: Data, config: Config, devices: Devices):
        self.data, self.config, self.devices = data, config, devices
        known = data.probe if data.test and data.probe else data.train
        most = max(KNOWN, int(KNOWN_FRACTION * known.size))
        self.known = known.sample(min(most, config.probe_images, known.size))
        self.test = data.test and data.test.sample(min(TEST, data.test.size))
        self.f1: F1 | None = None

    def __call__(self, model: Learner) -> dict[str, float]:
        """{"f1_effective_rank", "test_knn_accuracy"}, the second one if there are classes.

        What cannot be measured, since images are bad or f1 is not finite, is left out; it never
        ends a training.
        """
        self.f1 = self.f1 or F1(model.encoder, self.data, self.config, self.devices)
        found = {}
        with contextlib.suppress(InputError):
            known = self.f1(self.known)
            found["f1_effective_rank"] = effective_rank(known.values[:KNOWN])
            if self.test and np.isfinite(known.values).all():
                votes = knn(known, self.f1(self.test), len(self.data.class_names))
                found["test_knn_accuracy"] = votes.accuracy()
        return found
