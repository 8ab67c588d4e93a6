"""The training step of any objective: guard, online probes, replicas and XLA regions.

`objectives.objective` says what is learned; `trainer` has Keras's public methods.
"""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from amdim_tf import distribution
from amdim_tf.encoders.batch_norm import BatchNorm
from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.errors import InputError
from amdim_tf.objectives.bounds import MovingMeans
from amdim_tf.objectives.objective import Losses, Objective, find_objective
from amdim_tf.objectives.probes import NAMES, Probes, image_losses, probe_losses
from amdim_tf.precision import at_least_float32
from amdim_tf.training import health
from amdim_tf.training.accumulation import in_chunks
from amdim_tf.training.averaging import Averages
from amdim_tf.training.optimizer import clipped
from amdim_tf.training.trainer import Mean, Trainer, all_finite, means, results
from amdim_tf.typing import Tensor


@keras.saving.register_keras_serializable("amdim_tf")
class Learner(Trainer):
    """Trains an encoder by an objective, with linear and MLP classifiers on f1 that measure it.

    `fit` takes batches `(views, labels)`: a tuple of normalised views (B,S,S,3) float, or what
    `to_views` turns into views, and labels. Labels are integers of any type, -1 where unknown, (B,)
    or (B,1), or one-hot rows (B,classes). `evaluate` takes `(images, labels)`, or a tuple of views
    in place of the images; each view then counts as an image. Calling the model on images, or
    `predict`, gives the classifiers' logits.

    Keras's methods and callbacks work as with other models: datasets, arrays and generators,
    `train_on_batch`, `steps_per_execution`, validation, `save` and `keras.models.load_model`,
    `export`, and so on. Losses, metrics, and weights of classes or images raise `InputError`,
    since the objective is the model's own. `evaluate` returns the first of `metrics_names`;
    callbacks that compare a metric need its `mode`. Losses and accuracies are NaN where no label is
    known. `to_views` is not saved.

    An update is skipped if a loss or a gradient is not finite: weights, moments and running
    averages stay as they were. `skipped` is the fraction of skipped updates.

    Args:
        encoder: an `ImageEncoder`; if `frozen`, any model with `nrkhs` and an output f1 (B,nrkhs).
        classes: number of classes; 0 for no classifiers.
        objective: an `Objective`, used by this model alone.
        frozen: whether the encoder stays as it is, in inference mode; the classifiers measure it.
        seed: seed of draws, which depend on (seed, step) and an image's place in the batch.

    Attributes:
        clip_norm: the largest norm of the gradient of all weights; 0 for any.
        averages: the `Averages` that each update changes, if any.
        bad_steps, bad_term: how many updates in a row were skipped, and which of `terms` caused it.
    """

    def __init__(
        self,
        encoder: keras.Model,
        classes: int,
        objective: Objective,
        frozen: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not isinstance(encoder, ImageEncoder) and not (
            frozen and getattr(encoder, "nrkhs", None) is not None
        ):
            raise InputError(
                "encoder must be an Encoder, or Backbone(model) for a Keras model. "
                f"Received: {type(encoder).__name__}"
            )
        self.encoder, self.frozen, self.seed = encoder, frozen, seed
        self.classes, self.objective = classes, objective
        self.clip_norm = 0.0
        self.averages: Averages | None = None
        # Full precision, whatever the encoder's or Keras's own setting.
        self.probes = Probes(classes, dtype=at_least_float32(encoder.variable_dtype), name="probes")
        # `step` counts batches. The optimiser counts updates, which may be skipped.
        options = {"trainable": False, "aggregation": "only_first_replica"}
        self.step, self.bad_steps, self.bad_term = (
            self.add_weight((), "zeros", "int64", name=name, **options)
            for name in ("step", "bad_steps", "bad_term")
        )
        self._all_finite = distribution.region(all_finite)
        self._count: Callable | None = None
        self.names = NAMES if classes else ()
        self.probe_means = means(
            *(f"{name}_{kind}" for name in self.names for kind in ("loss", "accuracy"))
        )
        self.skipped = Mean("skipped")
        self.probes.build((None, encoder.nrkhs))
        if not frozen:
            for name, layer in objective.build(encoder).items():
                setattr(self, name, layer)  # which makes its variables the model's
        self.objective_means = means(*objective.metrics)
        # The last ones: a checkpoint of an earlier version has the metrics before them.
        self.health_means = means(*() if frozen else health.NAMES)
        self.built = True

    def prepare(
        self, optimizer: keras.optimizers.Optimizer, compiled: bool = False, micro_batch: int = 0
    ) -> None:
        """Compiles the model for training on the devices of the strategy that it was made under.

        Args:
            optimizer: a Keras optimiser.
            compiled: whether XLA compiles the training step; with several replicas, its regions.
            micro_batch: see `divide`.
        """
        several = distribution.replicas() > 1
        if several or micro_batch:
            self.divide(compiled and several, micro_batch)
        self.compile(optimizer=optimizer, jit_compile=compiled and not several)
        self.optimizer.build(self.trainable_variables)

    def call(self, images: Tensor, training: bool = False) -> dict[str, Tensor]:
        return self.probes(self.encoder(images, training=training)["f1"], training=training)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """What an export offers for `images`: the encoder's features and the objective's."""
        features = self.encoder(images, training=False)
        return features | self.objective.features(features)

    def embed(self, images: Tensor, training: bool = False, views: int = 1) -> dict[int, Tensor]:
        """What the objective's `normalise` returns: {n: tensor (V*B,...)}, view 1 first."""
        mode: dict[str, Any] = {"training": training, "views": views}
        projected = self.objective.project(self.encoder.trunk(images, **mode), **mode)
        return self.objective.normalise(projected, **mode)

    # The training step

    def draw(self, batch: int) -> tuple[Tensor, list[Tensor]]:
        """The random numbers of a training step on `batch` images of this replica."""
        dropped = self.probes.draw(self.seed, self.step, batch, self.objective.views)
        return self.objective.draw(self.seed, self.step, batch), dropped

    def train_step(self, data: tuple) -> dict[str, Tensor]:
        views, labels, draws, dropout_draws = data
        before = self.running_averages()
        # All views run through the trunk as one batch: larger products, same values.
        images, losses = self.objective.present(views, draws), Losses()
        if self.frozen:  # outside the tape, which need not record it
            f1 = ops.stop_gradient(self._project(images)[1])
        with tf.GradientTape() as tape:
            if not self.frozen:
                projected = self._project(images)
                embeddings = self.objective.normalise(projected, True, len(views))
                shown = {0: images} if self.objective.reconstructs else {}
                losses = self.objective.losses(embeddings | shown, labels, draws)
                f1 = self.objective.of_views(embeddings[1])
                if not self.objective.learns_from_probes:
                    f1 = ops.stop_gradient(f1)
            labels = ops.concatenate([labels] * len(views))
            logits = self.probes(f1, training=True, draws=dropout_draws)
            from_probes = probe_losses(labels, logits)
            # One sum trains both. Replicas' gradients add up.
            total = (losses.total + sum(from_probes.values())) / distribution.replicas()
            total = self.optimizer.scale_loss(total)
        terms = losses.terms | {f"{name}_loss": loss for name, loss in from_probes.items()}
        good = self.update(tape.gradient(total, self.trainable_variables), terms, before)
        for name, mean in self.objective_means.items():
            mean.update_state(ops.where(good == 1, losses.metrics[name], 0), good)
        self.measure_probes(labels, logits, from_probes, good)
        measured = {} if self.frozen else health.of_batch(f1, len(views))
        for name, value in measured.items():
            self.health_means[name].update_state(ops.where(good == 1, value, 0), good)
        logs = self.objective_means | self.probe_means | {"skipped": self.skipped}
        return results(logs | {name: self.health_means[name] for name in measured})

    def _project(self, images):
        """{n: features of all views}, before the last batch norms."""
        if self.frozen:
            return {1: self.encoder(images, training=False)["f1"]}
        mode = {"training": True, "views": self.objective.views}
        return self.objective.project(self.encoder.trunk(images, **mode), **mode)

    def divide(self, compiled: bool = False, micro_batch: int = 0) -> None:
        """Divides the training step into regions, on each side of the collectives.

        A region is traced once for all replicas. With `use_bn` the trunk has collectives inside,
        and stays as it is.

        Args:
            compiled: whether XLA compiles each region.
            micro_batch: how many images of a replica are embedded at a time; 0 for all.
        """
        self.objective.divide(compiled)
        if not self.frozen and self.encoder.use_bn:
            return
        plain, scales = self._project, (1,) if self.frozen else self.objective.scales
        layers = (self.encoder, *(() if self.frozen else self.objective.projection))
        variables = [variable for layer in layers for variable in layer.variables]

        def listed(images):
            projected = plain(images)
            return [projected[n] for n in scales]

        project = distribution.region(distribution.stateless(listed, variables), compiled)
        if micro_batch:
            dtype = self.encoder.compute_dtype
            if self.frozen:  # it ends with batch norm, which has full precision
                dtype = at_least_float32(self.encoder.variable_dtype)
            project = in_chunks(project, self.objective.views * micro_batch, [dtype] * len(scales))

        def divided(images):
            values = project([tf.convert_to_tensor(v.value) for v in variables], images)
            return dict(zip(scales, values, strict=True))

        self._project = divided  # type: ignore[method-assign]

    def running_averages(self) -> list[tuple[keras.Variable, Tensor]]:
        """The averages that a step updates, of batch norm above all: [(variable, value)]."""
        layers = (self.probes if self.frozen else self)._flatten_layers()
        layers = [layer for layer in layers if isinstance(layer, BatchNorm | MovingMeans)]
        return [(x, tf.identity(x.value)) for each in layers for x in each.non_trainable_variables]

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """As in Keras, but without those of a frozen encoder."""
        return self.probes.trainable_variables if self.frozen else super().trainable_variables

    trainable_weights = trainable_variables

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        return self._untrained(self.variables)

    @property
    def non_trainable_weights(self) -> list[keras.Variable]:
        return self._untrained(self.weights)

    def _untrained(self, variables):
        trained = {id(variable) for variable in self.trainable_variables}
        return [variable for variable in variables if id(variable) not in trained]

    @property
    def saved_variables(self) -> list[keras.Variable]:
        """The variables that a checkpoint holds: all except those of a frozen encoder."""
        frozen = {id(variable) for variable in self.encoder.variables} if self.frozen else ()
        return [variable for variable in self.variables if id(variable) not in frozen]

    def update(self, gradients: list[Tensor], losses: dict, before: list[tuple]) -> Tensor:
        """Ends a step: updates the `trainable_variables` by their `gradients`, if all is finite.

        Args:
            losses: {name: scalar}, the losses that the gradients come from.
            before: the `running_averages` before the step; a skipped update restores them.

        Returns:
            1.0 if the update was made, else 0.0.
        """
        self.terms = [*losses, "gradient", "batch norm"]
        averages = [average for average, _ in before]
        finite = [ops.all(ops.isfinite(loss)) for loss in losses.values()]
        check = self._all_finite if distribution.replicas() > 1 else all_finite
        finite += [check(gradients), check([average.value for average in averages])]
        # Over all replicas: Keras asks only the first one whether to skip an update.
        finite = distribution.all_mean(ops.cast(ops.stack(finite), "float32")) == 1
        good = ops.all(finite)
        if self.clip_norm:
            gradients = clipped(gradients, self.optimizer.scale_loss(self.clip_norm))
        gradients = [ops.where(good, gradients[0], float("nan")), *gradients[1:]]
        self.optimizer.apply(gradients, self.trainable_variables)
        for average, value in before:
            average.assign(ops.where(good, average, value))
        self.step.assign_add(1)
        self.bad_steps.assign(ops.where(good, 0, self.bad_steps + 1))
        self.bad_term.assign(ops.argmin(ops.cast(finite, "int32")))
        if self.averages:
            self.averages.update(self.optimizer.iterations, good)
        good = ops.cast(good, "float32")
        self.skipped.update_state(1 - good)
        return good

    def measure_probes(
        self, labels: Tensor, logits: dict, losses: dict, good: Tensor = 1.0
    ) -> None:
        """Updates the probes' metrics by `logits` {name: (B,classes)} and `losses` {name: scalar}.

        Images without a label do not count, nor does a step that is not `good`.
        """
        known = good * ops.cast(labels >= 0, "float32")
        for name in logits:
            correct = keras.metrics.sparse_categorical_accuracy(labels, logits[name])
            self.probe_means[f"{name}_accuracy"].update_state(correct, known)
            # Weighted: a smaller last batch of the test set counts by its images.
            count = ops.sum(known)
            loss = ops.where(count > 0, losses[name], 0)
            self.probe_means[f"{name}_loss"].update_state(loss, count)

    def get_config(self) -> dict:
        own = {field: getattr(self, field) for field in ("classes", "frozen", "seed")}
        own["encoder"] = keras.saving.serialize_keras_object(self.encoder)
        kind = type(self.objective)
        own["objective"] = [f"{kind.__module__}:{kind.__name__}", self.objective.get_config()]
        return super().get_config() | own

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "Learner":
        own = {"encoder": keras.saving.deserialize_keras_object(config["encoder"], custom_objects)}
        if "objective" in config:  # a subclass may make its own
            name, settings = config["objective"]
            own["objective"] = find_objective(name)(**settings)
        return cls(**config | own)

    # Measurement

    def test_step(self, data: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = data
        logits = self(images, training=False)
        losses = probe_losses(labels, logits)
        self.measure_probes(labels, logits, losses)
        return results(self.probe_means)

    def measure(self, batches: Iterable) -> dict[str, float]:
        """Losses and accuracies on `pipeline.test_batches`, named as in `evaluate`.

        All replicas take part, and only counts are kept. Values that are not finite are left out;
        if no image has a label, the result is empty.
        """
        if self._count is None:  # traced once for all measurements
            self._count = distribution.over_batches(self.counts, self.distribute_strategy)
        counted = [np.float64(counts).sum(0) for counts in self._count(batches)]
        if not counted or not (images := sum(counted)[0, 0]):
            return {}
        values = {}
        for name, (_, losses, correct) in zip(self.names, sum(counted), strict=True):
            if np.isfinite(losses):
                values[f"{name}_loss"] = float(losses / images)
                values[f"{name}_accuracy"] = float(correct / images)
        return values

    def counts(self, places: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """(1,classifiers,3) over labelled images: how many, sum of losses, how many correct."""
        rows, logits = [], self(images, training=False)
        known = labels >= 0
        for name in self.names:
            correct = keras.metrics.sparse_categorical_accuracy(labels, logits[name])
            loss: Tensor = sum(image_losses(labels, logits[name]))
            columns = ops.ones_like(loss), loss, ops.cast(correct, loss.dtype)
            rows.append([ops.sum(ops.where(known, column, 0)) for column in columns])
        return ops.convert_to_tensor([rows])
