"""What an encoder is worth while it trains: neighbours and effective rank of f1."""

import contextlib
from collections.abc import Iterable

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
    """f1 of an encoder, as it is when it is called, for the images of batches, in memory.

    Unlike `features.encode` it takes images without labels, and is traced once for all calls.

    Args:
        encoder: an encoder.
        data: what the batches are of.
        devices: `Devices`, by default one; all replicas share the work.
    """

    def __init__(self, encoder: keras.Model, data: Data, devices: Devices | None = None):
        self.data = data
        devices = devices or Devices(tf.distribute.get_strategy())

        def function(places: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            return places, tf.cast(encoder(images, training=False)["f1"], tf.float32), labels

        self.outputs = over_batches(function, devices.strategy)

    def __call__(self, batches: Iterable) -> Features:
        """The `Features` of batches; `values` (N,D) has those of images without a label, too."""
        places, f1, labels = map(np.concatenate, zip(*self.outputs(batches), strict=True))
        if not (places >= 0).any():
            self.data.failures.check()
            raise InputError("No image can be used")
        return Features(f1[places >= 0], labels[places >= 0])


class Online:
    """Measures a model by f1 of training images, and of test images if there are classes.

    Args:
        data, config, devices: those of the training.

    Attributes:
        images: the number of images that a measurement encodes.
    """

    def __init__(self, data: Data, config: Config, devices: Devices):
        self.data, self.config, self.devices = data, config, devices
        known = data.probe if data.test and data.probe else data.train
        most = max(KNOWN, int(KNOWN_FRACTION * known.size))
        self.known = known.sample(min(most, config.probe_images, known.size))
        self.test = data.test and data.test.sample(min(TEST, data.test.size))
        self.images = self.known.size + (self.test.size if self.test else 0)
        self.f1: F1 | None = None

    def __call__(self, model: Learner) -> dict[str, float]:
        """{"f1_effective_rank", "test_knn_accuracy"}, the second one if there are classes.

        What cannot be measured, since images are bad or f1 is not finite, is left out; it never
        ends a training.
        """
        if not self.f1:
            self.f1 = F1(model.encoder, self.data, self.devices)
            self.known_batches = self._rounds(self.known)
            self.test_batches = self.test and self._rounds(self.test)
        found = {}
        with contextlib.suppress(InputError):
            known = self.f1(self.known_batches)
            found["f1_effective_rank"] = effective_rank(known.values[:KNOWN])
            if self.test_batches and np.isfinite(known.values).all():
                votes = knn(known, self.f1(self.test_batches), len(self.data.class_names))
                found["test_knn_accuracy"] = votes.accuracy()
        return found

    def _rounds(self, split: Split) -> pipeline.Rounds:
        return pipeline.Rounds(
            pipeline.test_batches(self.data, split, self.config, self.devices.worker)
        )
