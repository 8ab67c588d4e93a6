"""An encoder with classifiers on f1, and the machinery by which models of this package train.

It measures a frozen encoder, fine-tunes one, or trains one with labels (the paper's yardstick).
"""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from amdim_tf import distribution
from amdim_tf.encoders.batch_norm import BatchNorm
from amdim_tf.objectives.probes import NAMES, Probes, image_losses, probe_losses
from amdim_tf.training.accumulation import in_parts
from amdim_tf.training.trainer import Mean, Trainer


@keras.saving.register_keras_serializable("amdim_tf")
class Classifier(Trainer):
    """An encoder with linear and MLP classifiers on its f1, trained with labels.

    `fit` takes batches `(views, labels)`: a tuple of normalised views (B,S,S,3) float, or what
    `to_views` makes views of, and labels. Those are whole numbers of any type, -1 where unknown,
    (B,) or (B,1), or one-hot rows (B,classes). `evaluate` takes `(images, labels)`, or a tuple of
    views in place of the images, each of which counts as an image. Calling the model on images
    gives the classifiers' logits, and so does `predict`.

    Keras's methods and callbacks work as with other models: datasets, arrays and generators,
    `train_on_batch`, `steps_per_execution`, validation, `save` and `keras.models.load_model`,
    `export`, and so on. What they do not have raises `InputError`: losses, metrics and weights of
    classes or images, since the objective is the model's own. `evaluate` has the first of
    `metrics_names`; callbacks that compare a metric need its `mode`. Where no label is known
    losses and accuracies are NaN. `to_views` is not saved.

    An update of which a loss or a gradient is not finite is left out: weights, moments and running
    averages stay what they were. `skipped` is the fraction of those updates.

    Args:
        encoder: an `Encoder`, or if it is `frozen` any model whose output has `f1` (B,nrkhs).
        classes: number of classes; 0 for none and no classifiers.
        frozen: whether the encoder stays as it is, in inference mode: what the classifiers then
            learn measures it. Otherwise it is trained with them.
        views: how many views of an image there are in a training step.
        seed: of dropout, which is a function of (seed, step) and the image's place in the batch.

    Attributes:
        to_views: a function to views, called before each training step.
        waited: seconds that training and evaluation have waited for batches.
        asked: whether this process was asked to stop.
        stop: whether any process was, by the end of the last step.
        bad_steps, bad_term: how many updates in a row were left out, and for which of `terms`.

    Example:
    >>> images, labels = keras.random.normal((16, 32, 32, 3)), keras.ops.arange(16) % 10
    >>> model = Classifier(Encoder(32, ndf=4, nrkhs=16, ndepth=1), classes=10, views=1)
    >>> model.compile(optimizer="adam")
    >>> history = model.fit(images, labels, batch_size=8, verbose=0)
    >>> scores = model.evaluate(images, labels, verbose=0, return_dict=True)
    >>> sorted(scores)
    ['linear_accuracy', 'linear_loss', 'mlp_accuracy', 'mlp_loss']
    """

    def __init__(self, encoder, classes, frozen=False, views=2, seed=0, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.frozen, self.views, self.seed = encoder, frozen, views, seed
        self.classes = classes
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
        self._all_finite = distribution.region(all_finite)
        self.names = NAMES if classes else ()
        self.probe_means = means(
            *(f"{name}_{kind}" for name in self.names for kind in ("loss", "accuracy"))
        )
        self.skipped = Mean("skipped")
        self.probes.build((None, encoder.nrkhs))
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
        """What an export offers of `images`, in inference mode: f1, f5 and f7."""
        return self.encoder(images, training=False)

    # The training step

    def draw(self, batch):
        """The random numbers of a training step on `batch` images of this replica."""
        return (self.dropout_draws(batch),)

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
        views, labels, draws = data
        before = self.running_averages()
        images, labels = ops.concatenate(views), ops.concatenate([labels] * len(views))
        if self.frozen:  # outside of the tape, which need not remember it
            f1 = ops.stop_gradient(self._project(images, True)[1])
        with tf.GradientTape() as tape:
            if not self.frozen:
                f1 = self.normalise(self._project(images, True), True, len(views))[1]
            logits = self.probes(f1, training=True, draws=draws)
            losses = probe_losses(labels, logits)
            total = sum(losses.values()) / distribution.replicas()
            total = self.optimizer.scale_loss(total)
        good = self.update(tape.gradient(total, self.trainable_variables), losses, before)
        self.measure_probes(labels, logits, losses, good)
        return results(self.probe_means) | {"skipped": self.skipped.result()}

    def project(self, images, training=False, views=1):
        """{n: features} as they are before `normalise`; unless `use_bn`, images see no others."""
        return {1: self.encoder.trunk(images, training=training, views=views)["f1"]}

    def normalise(self, projected, training=False, views=1):
        """`projected` after the batch norms at its end, whose statistics are of all replicas."""
        return {1: self.encoder.head(projected[1], training=training, views=views)}

    def _project(self, images, training):
        if self.frozen:
            return {1: self.encoder(images, training=False)["f1"]}
        return self.project(images, training, self.views)

    @property
    def projecting(self):
        """The scales that `project` gives, and what it consists of."""
        return (1,), (self.encoder,)

    def divide(self, compiled=False, micro_batch=0):
        """Divides the training step into regions, on each side of the collectives.

        A region is traced once for all replicas. With `use_bn` there are collectives inside the
        trunk, which is then left as it is.

        Args:
            compiled: whether XLA compiles each.
            micro_batch: how many images of a replica are embedded at a time; 0 for all of them.
        """
        if not self.frozen and self.encoder.use_bn:
            return
        plain, (scales, parts) = self._project, self.projecting
        variables = [variable for part in parts for variable in part.variables]

        def listed(images):
            projected = plain(images, True)
            return [projected[n] for n in scales]

        project = distribution.region(distribution.stateless(listed, variables), compiled)
        if micro_batch:
            dtype = self.encoder.compute_dtype
            if self.frozen:  # batch norm is part of it, which is of full precision
                dtype = keras.backend.result_type(self.encoder.variable_dtype, "float32")
            project = in_parts(project, self.views * micro_batch, [dtype] * len(scales))

        def divided(images, training):
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
        fields = ("classes", "frozen", "views", "seed")
        own = {"encoder": encoder} | {field: getattr(self, field) for field in fields}
        return super().get_config() | own

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
        if not hasattr(self, "_count"):  # traced once for all measurements
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
