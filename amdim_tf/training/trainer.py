"""Keras's public methods for a model with its own objective: what they do and what they refuse."""

import reprlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from amdim_tf import distribution
from amdim_tf.errors import InputError
from amdim_tf.objectives.objective import Objective
from amdim_tf.training.labels import as_classes, fault
from amdim_tf.training.optimizer import guarded
from amdim_tf.typing import Tensor


class Trainer(keras.Model):
    """A Keras model that learns from views of images, by its own objective.

    `Learner` documents what users pass to its methods, and adds what they need: `encoder`,
    `classes`, `objective`, `draw`, `train_step` and `test_step`.

    Attributes:
        to_views: called on a batch's inputs before each training step; returns the views.
        waited: seconds that training and evaluation have waited for batches.
        asked: whether this process was asked to stop.
        stop: whether any process had been asked by the end of the last step.
    """

    classes: int
    objective: Objective
    train_function: Callable | None
    test_function: Callable | None

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.to_views: Callable = lambda *views: views
        self.waited = 0.0
        self.asked = self.stop = False

    def compile(
        self,
        optimizer: str | dict | keras.optimizers.Optimizer = "rmsprop",
        loss: None = None,
        loss_weights: None = None,
        metrics: None = None,
        weighted_metrics: None = None,
        **options: Any,
    ) -> None:
        """As `keras.Model.compile`, but without losses and metrics."""
        refuse(
            loss=loss, loss_weights=loss_weights, metrics=metrics, weighted_metrics=weighted_metrics
        )
        if optimizer is None:
            raise InputError("compile must have an optimizer. Received: optimizer=None")
        optimizer = keras.optimizers.get(optimizer)
        if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = guarded(optimizer)
        super().compile(optimizer=optimizer, **options)

    def compile_from_config(self, config: dict) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def add_loss(self, loss: Tensor) -> None:
        refuse(add_loss=loss)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """As in Keras, but without the mean of the loss that `compile` takes."""
        return [metric for metric in super().metrics if metric is not self._loss_tracker]

    @property
    def metrics_variables(self) -> list[keras.Variable]:
        # Checkpoints hold all of them, with that mean first.
        return [variable for metric in super().metrics for variable in metric.variables]

    def fit(
        self, x: Any = None, y: Any = None, *args: Any, **options: Any
    ) -> keras.callbacks.History:
        """As in Keras, but without weights of classes."""
        refuse(class_weight=options.get("class_weight"))
        if options.get("validation_data") is not None or options.get("validation_split"):
            self._check_classes("validation")
        self._check_labels(y, "fit")
        return super().fit(x, y, *args, **options)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **options: Any) -> Any:
        """As in Keras."""
        self._check_labels(y, "evaluate")
        return super().evaluate(x, y, *args, **options)

    def train_on_batch(self, *args: Any, **options: Any) -> Any:
        """As in Keras, but without weights of classes."""
        refuse(class_weight=options.get("class_weight"))
        return super().train_on_batch(*args, **options)

    def export(self, filepath: str, *args: Any, **options: Any) -> None:
        """As in Keras; the input is by default a batch of images."""
        self._check_classes("export")
        if len(args) < 3 and "input_signature" not in options and self._image_shape:
            images = keras.InputSpec("float32", self._image_shape)
            options["input_signature"] = [images]
        return super().export(filepath, *args, **options)

    def make_train_function(self, force: bool = False) -> None:
        """As in Keras, but each batch is checked, and the wait for it is timed."""
        if self.objective.needs_labels:
            self._check_classes("fit")
        if self.train_function and not force:
            return
        if not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        train_step = self._compiled(self.train_step)

        def from_batch(inputs, labels):
            views = self._tensors(self.to_views(*inputs), "fit")
            labels = as_classes(labels, ops.shape(views[0])[0])
            # Not compiled: XLA would give draws other values (TensorFlow issue 117644).
            draws = self.draw(ops.shape(labels)[0])
            return train_step((views, labels, *draws))

        self.train_function = self._function(from_batch, "fit")

    def make_test_function(self, force: bool = False) -> None:
        self._check_classes("evaluate")
        if self.test_function and not force:
            return
        test_step = self._compiled(self.test_step)

        def from_batch(inputs, labels):
            images = self._tensors(inputs, "evaluate")
            labels = [as_classes(labels, ops.shape(images[0])[0])] * len(images)
            return test_step((ops.concatenate(images), ops.concatenate(labels)))

        self.test_function = self._function(from_batch, "evaluate")

    def make_predict_function(self, force: bool = False) -> None:
        self._check_classes("predict")
        super().make_predict_function(force)

    def predict_step(self, data: Tensor) -> dict[str, Tensor]:
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        (images,) = self._tensors((images,), "predict")
        return self(images, training=False)

    def _compiled(self, step):
        return distribution.compiled(step) if self.jit_compile else step

    def _function(self, from_batch, method):
        """The function that Keras calls with an iterator of batches, to run the next few.

        Args:
            from_batch: takes a replica's inputs and labels, updates the metrics, and returns a
                dictionary with their names.
        """
        strategy, names = self.distribute_strategy, []

        def counted(stop, *batch):
            names[:] = from_batch(*batch)
            means = {metric.name: metric for metric in self.metrics}
            counts = [x.value for name in names for x in means[name].variables]  # total, count
            return ops.stack([stop, *counts])  # replicas exchange one tensor, not a dozen

        def step(*batch):
            counts = strategy.reduce("SUM", strategy.run(counted, batch), axis=None)
            stop, *counts = ops.unstack(counts, 1 + 2 * len(names))
            means = [a / b for a, b in zip(counts[::2], counts[1::2], strict=True)]
            return stop, dict(zip(names, means, strict=True))

        if not self.run_eagerly:
            step = tf.function(step, autograph=False)
        alone = distribution.worker(strategy).alone

        def function(iterator):
            logs = None
            for _ in range(self.steps_per_execution):
                started = time.perf_counter()
                data = next(iterator, None)
                self.waited += time.perf_counter() - started
                if data is None:
                    break
                batch = self._checked(data, method)
                stop, logs = step(tf.constant(float(self.asked)), *batch)
                self.stop = self.asked if alone else float(stop) > 0
            if logs is None:
                raise StopIteration
            return logs

        return function

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Does nothing: all is built, and Keras's fails on the batches of several workers."""

    def _checked(self, data, method):
        """Inputs (a tuple) and labels of a batch as Keras passes it; None for no labels.

        Raises:
            InputError: a value, or the number of images, is not valid.
        """
        inputs, *others = keras.utils.unpack_x_y_sample_weight(data)
        # None in a generator's batch becomes an Optional here.
        labels, weights = (None if isinstance(x, tf.experimental.Optional) else x for x in others)
        refuse(sample_weight=weights)
        inputs = tuple(inputs) if isinstance(inputs, (list, tuple)) else (inputs,)
        local = self.distribute_strategy.experimental_local_results
        images = [(*getattr(x, "shape", ()), 0)[0] for x in local(tf.nest.flatten(inputs)[0])]
        if method == "fit":
            self._check_images(images)
        if not self.classes:
            return inputs, None
        if labels is None:
            if self.objective.needs_labels or method != "fit":
                raise self._wrong_batch(method, "no labels")
            return inputs, None
        for each, count in zip(local(labels), images, strict=True):
            self._check_labels(each, method, count)
        return inputs, labels

    def _check_labels(self, labels, method, images=None):
        """Raises `InputError` unless `labels`, if any, are valid for so many `images`."""
        if self.classes and labels is not None and (wrong := fault(labels, images, self.classes)):
            raise self._wrong_batch(method, wrong)

    def _check_images(self, images):
        """Raises `InputError` unless a step can learn from so many `images` of each replica."""
        worker = distribution.worker(self.distribute_strategy)
        if len(images) != worker.local or len(set(images)) > 1:
            raise InputError(
                f"A batch of fit must be a multiple of {worker.replicas} images, so that replicas "
                f"have equal shares (drop_remainder=True). Received: shares of {images}"
            )
        if images[0] * worker.replicas < self.objective.least_images:
            raise InputError(
                f"A batch of fit must have at least {self.objective.least_images} images; choose a "
                "batch_size that leaves no fewer, or drop_remainder=True. "
                f"Received: {images[0] * worker.replicas}"
            )

    def _tensors(self, views, method):
        """`views`, images (B,S,S,3) each, as tensors.

        Raises:
            InputError: their number, type or shape is not valid.
        """
        try:
            tensors = [tf.convert_to_tensor(view) for view in views]
        except (TypeError, ValueError):
            types = ", ".join(type(view).__name__ for view in views)
            raise self._wrong_batch(method, f"images of type {types}") from None
        shape = tf.TensorShape(self._image_shape)
        if (method == "fit" and len(tensors) != self.objective.views) or not all(
            x.dtype.is_floating
            and x.shape.is_compatible_with(shape)
            and x.shape[0] == tensors[0].shape[0]
            for x in tensors
        ):
            shapes = ", ".join(f"{x.dtype.name} {tuple(x.shape)}" for x in tensors)
            raise self._wrong_batch(method, shapes)
        return tensors

    @property
    def _image_shape(self):
        """The shape of a batch of images, if the encoder says it."""
        size = getattr(self.encoder, "image_size", None)
        return size and (None, size, size, getattr(self.encoder, "channels", 3))

    def _wrong_batch(self, method, received):
        shape = self._image_shape and f"(B,{','.join(map(str, self._image_shape[1:]))}) "
        form = f"images {shape or ''}of normalised floats"
        if method != "predict":
            views = ", ".join(f"x{i + 1}" for i in range(self.objective.views))
            views = f"({views})" if self.objective.views > 1 else views
            given = f"({views}, labels)" if method == "fit" else "(images, labels)"
            given += f" or ({views},)" * (method == "fit" and not self.objective.needs_labels)
            form = f"{given}, with {form}"
        if self.classes and method != "predict":
            form += (
                f" and labels (B,) or (B,1) from 0 to {self.classes - 1} or -1 where unknown, or "
                f"one-hot (B,{self.classes})"
            )
        return InputError(f"A batch of {method} must be {form}. Received: {received}")

    def _check_classes(self, what):
        if not self.classes:
            raise InputError(
                f"{what} is for the classifiers, and a model without classes has none; its encoder "
                "has predict and export, too. Received: classes=0"
            )


class Mean(keras.metrics.Mean):
    """As in Keras, but NaN, rather than 0, if nothing was counted."""

    def result(self) -> Tensor:
        return self.total / self.count


def means(*names: str) -> dict[str, Mean]:
    """A `Mean` for each name."""
    return {name: Mean(name) for name in names}


def results(trackers: dict[str, Mean]) -> dict[str, Tensor]:
    """The present values of `trackers`."""
    return {name: tracker.result() for name, tracker in trackers.items()}


def refuse(**given: Any) -> None:
    """Raises `InputError` if any argument in `given`, which Keras would accept, is not None."""
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"{name} cannot be given, since the objective and the metrics are the model's own. "
                f"Received: {name}={reprlib.repr(value)}"
            )


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether all numbers in all `tensors` are finite."""
    return ops.all([ops.all(ops.isfinite(x)) for x in tensors])
