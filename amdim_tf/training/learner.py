"""The training step of any objective: guard, online probes, replicas and regions of XLA.

What is learned the objective says, see `objectives.objective`; how Keras's public methods behave is
in `trainer`.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from amdim_tf import distribution
from amdim_tf.encoders.batch_norm import BatchNorm
from amdim_tf.objectives.objective import Losses
from amdim_tf.objectives.probes import NAMES, Probes, image_losses, probe_losses
from amdim_tf.training.accumulation import in_parts
from amdim_tf.training.trainer import Mean, Trainer


class Learner(Trainer):
    """Trains an encoder by an objective, with linear and MLP classifiers on f1 that measure it.

    `fit` takes batches `(views, labels)`: a tuple of normalised views (B,S,S,3) float, or what
    `to_views` makes views of, and labels. Those are integers of any type, -1 where unknown, (B,) or
    (B,1), or one-hot rows (B,classes). `evaluate` takes `(images, labels)`, or a tuple of views in
    place of the images, each of which counts as an image. Calling the model on images gives the
    classifiers' logits, and so does `predict`.

    Keras's methods and callbacks work as with other models: datasets, arrays and generators,
    `train_on_batch`, `steps_per_execution`, validation, `save` and `keras.models.load_model`,
    `export`, and so on. What they do not have raises `InputError`: losses, metrics and weights of
    classes or images, since the objective is the model's own. `evaluate` has the first of
    `metrics_names`; callbacks that compare a metric need its `mode`. Where no label is known
    losses and accuracies are NaN. `to_views` is not saved.

    An update is left out if a loss or a gradient is not finite: weights, moments and running
    averages stay what they were. `skipped` is the fraction of those updates.

    Args:
        encoder: an `ImageEncoder`, or if it is `frozen` any model with `nrkhs` whose output has
            `f1` (B,nrkhs).
        classes: number of classes; 0 for none and no classifiers.
        objective: an `Objective`, for this encoder alone.
        frozen: whether the encoder stays as it is, in inference mode: what the classifiers then
            learn measures it.
        seed: of draws, which are functions of (seed, step) and an image's place in the batch.

    Attributes:
        to_views: a function to views, called before each training step.
        waited: seconds that training and evaluation have waited for batches.
        asked: whether this process was asked to stop.
        stop: whether any process was, by the end of the last step.
        bad_steps, bad_term: how many updates in a row were left out, and for which of `terms`.
    """

    def __init__(self, encoder, classes, objective, frozen=False, seed=0, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.frozen, self.seed = encoder, frozen, seed
        self.classes, self.objective, self.views = classes, objective, objective.views
        self.least_images, self.needs_labels = objective.least_images, objective.needs_labels
        # Of full precision, whatever the encoder's or Keras's own setting.
        dtype = keras.backend.result_type(encoder.variable_dtype, "float32")
        self.probes = Probes(classes, dtype=dtype, name="probes")
        # `step` counts batches. The optimiser counts updates, of which some are left out.
        self.step, self.bad_steps, self.bad_term = (
            self.add_weight(
                (),
                "zeros",
                "int64",
                trainable=False,
                aggregation="only_first_replica",
                name=name,
            )
            for name in ("step", "bad_steps", "bad_term")
        )
        self._all_finite, self._count = distribution.region(all_finite), None
        self.names = NAMES if classes else ()
        self.probe_means = means(
            *(f"{name}_{kind}" for name in self.names for kind in ("loss", "accuracy"))
        )
        self.skipped = Mean("skipped")
        self.probes.build((None, encoder.nrkhs))
        self.objective_means = means(*objective.metrics)
        if not frozen:
            for name, layer in objective.build(encoder).items():
                setattr(self, name, layer)  # which makes its variables the model's
        self.built = True

    def prepare(self, optimizer, compiled=False, micro_batch=0):
        """Compiles the model for training on the devices of the strategy that it was made under.

        Args:
            optimizer: of Keras.
            compiled: whether XLA compiles the training step, or of several replicas its regions.
            micro_batch: see `divide`.
        """
        several = distribution.replicas() > 1
        if several or micro_batch:
            self.divide(compiled and several, micro_batch)
        self.compile(optimizer=optimizer, jit_compile=compiled and not several)
        self.optimizer.build(self.trainable_variables)

    def call(self, images, training=False):
        return self.probes(self.encoder(images, training=training)["f1"], training=training)

    def features(self, images):
        """What an export offers of `images`, in inference mode: features, and the objective's."""
        features = self.encoder(images, training=False)
        return features | self.objective.features(features)

    def embed(self, images, training=False, views=1):
        """What the objective scores of V*B images: {n: tensor (V*B,...)}, view 1 first."""
        mode = {"training": training, "views": views}
        projected = self.objective.project(self.encoder.trunk(images, **mode), **mode)
        return self.objective.normalise(projected, **mode)

    # The training step

    def draw(self, batch):
        """The random numbers of a training step on `batch` images of this replica."""
        return self.objective.draw(self.seed, self.step, batch), self.dropout_draws(batch)

    def dropout_draws(self, batch):
        """[(V*batch,D), ...] in [0, 1) for each dropout of the probes, view 1 first.

        Whatever the number of replicas they are the same for an image of the global batch.
        """
        seed = tf.stack([tf.constant(self.seed, tf.int64), tf.cast(self.step.value, tf.int64)])
        first, images = distribution.first_image(batch), batch * distribution.replicas()
        drawn = []
        for number, width in enumerate(self.probes.dropped_widths):
            own = tf.random.experimental.stateless_fold_in(seed, number)
            draws = tf.random.stateless_uniform((self.views, images, width), own, alg="philox")
            drawn.append(tf.reshape(draws[:, first : first + batch], (-1, width)))
        return drawn

    def train_step(self, data):
        views, labels, of_objective, of_dropout = data
        before = self.running_averages()
        # All views run through the trunk as one batch: larger products, the same values.
        images, losses = ops.concatenate(views), Losses()
        if self.frozen:  # outside of the tape, which need not remember it
            f1 = ops.stop_gradient(self._project(images)[1])
        with tf.GradientTape() as tape:
            if not self.frozen:
                projected = self._project(images)
                embeddings = self.objective.normalise(projected, True, len(views))
                losses = self.objective.losses(embeddings, labels, of_objective)
                f1 = embeddings[1]
                if not self.objective.learns_from_probes:
                    f1 = ops.stop_gradient(f1)
            labels = ops.concatenate([labels] * len(views))
            logits = self.probes(f1, training=True, draws=of_dropout)
            of_probes = probe_losses(labels, logits)
            # One sum trains both. Replicas' gradients add up.
            total = (losses.total + sum(of_probes.values())) / distribution.replicas()
            total = self.optimizer.scale_loss(total)
        terms = losses.terms | {f"{name}_loss": loss for name, loss in of_probes.items()}
        good = self.update(tape.gradient(total, self.trainable_variables), terms, before)
        for name, mean in self.objective_means.items():
            mean.update_state(ops.where(good == 1, losses.metrics[name], 0), good)
        self.measure_probes(labels, logits, of_probes, good)
        logs = results(self.objective_means) | results(self.probe_means)
        return logs | {"skipped": self.skipped.result()}

    def _project(self, images):
        """{n: features of all views} before batch norms over the batch."""
        if self.frozen:
            return {1: self.encoder(images, training=False)["f1"]}
        mode = {"training": True, "views": self.views}
        return self.objective.project(self.encoder.trunk(images, **mode), **mode)

    def divide(self, compiled=False, micro_batch=0):
        """Divides the training step into regions, on each side of the collectives.

        A region is traced once for all replicas. With `use_bn` there are collectives inside the
        trunk, which is then left as it is.

        Args:
            compiled: whether XLA compiles each.
            micro_batch: how many images of a replica are embedded at a time; 0 for all of them.
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
            if self.frozen:  # batch norm is part of it, which is of full precision
                dtype = keras.backend.result_type(self.encoder.variable_dtype, "float32")
            project = in_parts(project, self.views * micro_batch, [dtype] * len(scales))

        def divided(images):
            values = project([tf.convert_to_tensor(v.value) for v in variables], images)
            return dict(zip(scales, values, strict=True))

        self._project = divided

    def running_averages(self):
        """Values of what batch norm updates in a step, [(variable, value)]."""
        trained = self.probes if self.frozen else self
        norms = [layer for layer in trained._flatten_layers() if isinstance(layer, BatchNorm)]
        averages = [average for norm in norms for average in norm.non_trainable_variables]
        return [(average, tf.identity(average.value)) for average in averages]

    @property
    def trainable_variables(self):
        """Keras's; a frozen encoder has none."""
        return self.probes.trainable_variables if self.frozen else super().trainable_variables

    trainable_weights = trainable_variables

    @property
    def non_trainable_variables(self):
        return self._untrained(self.variables)

    @property
    def non_trainable_weights(self):
        return self._untrained(self.weights)

    def _untrained(self, variables):
        trained = {id(variable) for variable in self.trainable_variables}
        return [variable for variable in variables if id(variable) not in trained]

    @property
    def saved_variables(self):
        """What a checkpoint holds of the model: all but the weights of a frozen encoder."""
        frozen = {id(variable) for variable in self.encoder.variables} if self.frozen else ()
        return [variable for variable in self.variables if id(variable) not in frozen]

    def update(self, gradients, losses, before):
        """The end of a step: the `trainable_variables` follow their `gradients`, if all is finite.

        Args:
            losses: {name: scalar}, of which the gradients are.
            before: the `running_averages` before the step, to which they return otherwise.

        Returns:
            1.0 if the update was made, else 0.0.
        """
        self.terms = [*losses, "gradient", "batch norm"]
        averages = [average for average, _ in before]
        finite = [ops.all(ops.isfinite(loss)) for loss in losses.values()]
        check = self._all_finite if distribution.replicas() > 1 else all_finite
        finite += [check(gradients), check([average.value for average in averages])]
        # Of all replicas: Keras asks the first alone whether an update has to be left out.
        finite = distribution.all_mean(ops.cast(ops.stack(finite), "float32")) == 1
        good = ops.all(finite)
        first, *others = gradients
        first = ops.where(good, first, float("nan"))
        self.optimizer.apply([first, *others], self.trainable_variables)
        for average, value in before:
            average.assign(ops.where(good, average, value))
        self.step.assign_add(1)
        self.bad_steps.assign(ops.where(good, 0, self.bad_steps + 1))
        self.bad_term.assign(ops.argmin(ops.cast(finite, "int32")))
        good = ops.cast(good, "float32")
        self.skipped.update_state(1 - good)
        return good

    def measure_probes(self, labels, logits, losses, good=1.0):
        """Counts the accuracy of `logits` {name: (B,classes)} on the images of known label.

        Those of a step that was not `good` do not count.
        """
        known = good * ops.cast(labels >= 0, "float32")
        for name in logits:
            correct = keras.metrics.sparse_categorical_accuracy(labels, logits[name])
            self.probe_means[f"{name}_accuracy"].update_state(correct, known)
            # Weighted, so that a smaller last batch of the test set counts by its images.
            count = ops.sum(known)
            loss = ops.where(count > 0, losses[name], 0)
            self.probe_means[f"{name}_loss"].update_state(loss, count)

    def get_config(self):
        encoder = keras.saving.serialize_keras_object(self.encoder)
        fields = ("classes", "frozen", "seed")
        own = {"encoder": encoder} | {field: getattr(self, field) for field in fields}
        return super().get_config() | own | self.objective.get_config()

    @classmethod
    def from_config(cls, config, custom_objects=None):
        encoder = keras.saving.deserialize_keras_object(config["encoder"], custom_objects)
        return cls(**config | {"encoder": encoder})

    # Measurement

    def test_step(self, data):
        images, labels = data
        logits = self(images, training=False)
        losses = probe_losses(labels, logits)
        self.measure_probes(labels, logits, losses)
        return results(self.probe_means)

    def measure(self, batches):
        """Losses and accuracies on `pipeline.test_batches`, as `evaluate` has them.

        All replicas take part, and nothing of the images is kept but counts. What is not finite is
        left out, and so is everything if no image has a label.
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

    def counts(self, places, images, labels):
        """(1,classifiers,3): of the images (B,S,S,3) with labels (B,), how many they are, the sum
        of their losses and how many are classified correctly."""
        rows, logits = [], self(images, training=False)
        known = labels >= 0
        for name in self.names:
            correct = keras.metrics.sparse_categorical_accuracy(labels, logits[name])
            loss = sum(image_losses(labels, logits[name]))
            columns = ops.ones_like(loss), loss, ops.cast(correct, loss.dtype)
            rows.append([ops.sum(ops.where(known, column, 0)) for column in columns])
        return ops.convert_to_tensor([rows])


def all_finite(tensors):
    """Whether all numbers in all of `tensors` are finite."""
    return ops.all([ops.all(ops.isfinite(x)) for x in tensors])


def means(*names):
    return {name: Mean(name) for name in names}


def results(trackers):
    return {name: tracker.result() for name, tracker in trackers.items()}
