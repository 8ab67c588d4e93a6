"""AMDIM: encoder, embeddings and probes with the training step that joins them (Equation 5).

And its yardstick, the same encoder and probes trained with labels.
"""

import time

import keras
import tensorflow as tf
from keras import ops

from amdim_tf import distribution, multiscale
from amdim_tf.accumulation import in_parts
from amdim_tf.batch_norm import BatchNorm
from amdim_tf.embeddings import Phi
from amdim_tf.encoder import Encoder
from amdim_tf.mixture import Mixture
from amdim_tf.optimizer import guarded
from amdim_tf.probes import NAMES, Probes, probe_losses


class Classifier(keras.Model):
    """An encoder with linear and MLP classifiers on its f1, trained with labels.

    `fit` takes batches `((x1, x2), labels)`: two normalised views (B,S,S,3) float, or what
    `to_views` makes views of, and labels (B,) int, -1 where unknown. `evaluate` takes
    `(images, labels)`. Calling the model on images gives the classifiers' logits.

    Args:
        encoder: an `Encoder`.
        classes: number of classes; 0 for none and no classifiers.
        frozen: whether the encoder stays as it is, in inference mode: what the classifiers then
            learn measures it. Otherwise it is trained with them.

    An update of which a loss or a gradient is not finite is left out: weights, moments and running
    averages stay what they were.

    Attributes:
        to_views: a function to views (x1, x2), called before each training step.
        waited: seconds that training has waited for batches.
        asked: whether this process was asked to stop.
        stop: whether any process was, by the end of the last step.
        bad_steps, bad_term: how many updates in a row were left out, and for which of `terms`.
    """

    def __init__(self, encoder, classes, frozen=False, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.frozen = encoder, frozen
        self.to_views, self.waited = lambda x1, x2: (x1, x2), 0.0
        self.probes = Probes(classes, name="probes")
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
        self.asked = self.stop = False
        names = NAMES if classes else ()
        self.probe_means = means(*(f"{n}_{kind}" for n in names for kind in ("loss", "accuracy")))
        self.skipped = keras.metrics.Mean("skipped")
        self.probes.build((None, encoder.nrkhs))
        self.built = True

    def compile(self, optimizer="rmsprop", **kwargs):
        if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = guarded(keras.optimizers.get(optimizer))
        super().compile(optimizer=optimizer, **kwargs)

    def call(self, images, training=False):
        return self.probes(self.encoder(images, training=training)["f1"], training=training)

    def features(self, images):
        """What an export offers of `images`, in inference mode: f1, f5 and f7."""
        return self.encoder(images, training=False)

    def make_train_function(self, force=False):
        """Keras's, but that batches are fetched between the steps, and the time of it is taken."""
        if self.train_function and not force:
            return
        strategy = self.distribute_strategy
        if not self.optimizer.built:
            with strategy.scope():
                self.optimizer.build(self.trained_variables)
        train_step = self.train_step
        if self.jit_compile:
            train_step = distribution.compiled(train_step)

        names = []

        def from_batch(inputs, labels, stop):
            # Not compiled: XLA would give draws other values (TensorFlow issue 117644).
            draws = self.draw(ops.shape(labels)[0])
            logs = train_step((self.to_views(*inputs), labels, *draws)) | {"stop": stop}
            names[:] = logs
            return ops.stack(list(logs.values()))  # replicas exchange one tensor, not a dozen

        @tf.function(autograph=False)
        def step(data, stop):
            logs = strategy.reduce("MEAN", strategy.run(from_batch, (*data, stop)), axis=None)
            return dict(zip(names, ops.unstack(logs, len(names)), strict=True))

        alone = distribution.worker(strategy).alone

        def train_function(iterator):
            started = time.perf_counter()
            data = next(iterator)
            self.waited += time.perf_counter() - started
            logs = step(data, tf.constant(float(self.asked)))
            stop = logs.pop("stop")
            self.stop = self.asked if alone else float(stop) > 0
            return logs

        self.train_function = train_function

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Nothing, since all is built; Keras's fails on the batches of several workers."""

    def draw(self, batch):
        """The random numbers of a training step on `batch` images, for its data; none here."""
        return ()

    def train_step(self, data):
        (x1, x2), labels = data
        before = self.running_averages()
        images, labels = ops.concatenate([x1, x2]), ops.concatenate([labels, labels])
        with tf.GradientTape() as tape:
            f1 = self.encoder(images, training=not self.frozen, views=2)["f1"]
            logits = self.probes(f1, training=True)
            losses = probe_losses(labels, logits)
            total = sum(losses.values()) / distribution.replicas()
            total = self.optimizer.scale_loss(total)
        good = self.update(tape.gradient(total, self.trained_variables), losses, before)
        self.measure_probes(labels, logits, losses, good)
        return results(self.probe_means) | {"skipped": self.skipped.result()}

    def test_step(self, data):
        images, labels = data
        logits = self(images, training=False)
        losses = probe_losses(labels, logits)
        self.measure_probes(labels, logits, losses)
        return results(self.probe_means)

    def running_averages(self):
        """Values of what batch norm updates, [(variable, value)]."""
        norms = [layer for layer in self._flatten_layers() if isinstance(layer, BatchNorm)]
        averages = [average for norm in norms for average in norm.non_trainable_variables]
        return [(average, tf.identity(average.value)) for average in averages]

    def measure(self, batches):
        """Losses and accuracies on `batches` (images, labels), as `evaluate` has them.

        On one device of this process, whatever the strategy, and without waiting for others.
        """
        scored = [(self.infer(images), labels) for images, labels in batches]
        labels = ops.concatenate([labels for _, labels in scored])
        logits = {name: ops.concatenate([logits[name] for logits, _ in scored]) for name in NAMES}
        values = {}
        for name, loss in probe_losses(labels, logits).items():
            hits = keras.metrics.sparse_categorical_accuracy(labels, logits[name])
            values[f"{name}_loss"] = float(loss)
            values[f"{name}_accuracy"] = float(ops.mean(hits))
        return values

    @tf.function(autograph=False, reduce_retracing=True)
    def infer(self, images):
        """The logits of `images`, by a function that is traced once for all measurements."""
        return self(images, training=False)

    @property
    def trained_variables(self):
        """What a training step changes by gradients."""
        return (self.probes if self.frozen else self).trainable_variables

    def update(self, gradients, losses, before):
        """The end of a step: the `trained_variables` follow their `gradients`, if all is finite.

        Args:
            losses: {name: scalar}, of which the gradients are.
            before: the `running_averages` before the step, to which they return otherwise.

        Returns:
            1.0 if the update was made, else 0.0.
        """
        self.terms = [*losses, "gradient", "batch norm"]
        averages = [average for average, _ in before]
        finite = [ops.all(ops.isfinite(loss)) for loss in losses.values()]
        for part in (gradients, averages):
            finite.append(ops.all([ops.all(ops.isfinite(x)) for x in part]))
        # Of all replicas: Keras asks the first alone whether an update has to be left out.
        finite = distribution.all_mean(ops.cast(ops.stack(finite), "float32")) == 1
        good = ops.all(finite)
        first, *others = gradients
        first = ops.where(good, first, float("nan"))
        self.optimizer.apply([first, *others], self.trained_variables)
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
            hits = keras.metrics.sparse_categorical_accuracy(labels, logits[name])
            self.probe_means[f"{name}_accuracy"].update_state(hits, known)
            # Weighted, so that a smaller last batch of the test set counts by its images.
            loss = ops.where(good == 1, losses[name], 0)
            self.probe_means[f"{name}_loss"].update_state(loss, ops.sum(known))


class AMDIM(Classifier):
    """Trains an encoder by the multiscale objective, with probes beside it that measure f1.

    `fit`, `evaluate` and calls are as those of `Classifier`; only the probes see the labels, and
    their gradient does not reach the encoder.

    Args:
        encoder: an `Encoder`.
        classes: number of classes, for the probes; 0 for none.
        tasks: n-to-m tasks, see `multiscale.parse_tasks`.
        clip, regulariser: see `nce.nce`.
        seed: of the antecedent locations, which are a function of (seed, step).
        score_bytes: see `multiscale.multiscale_nce`.
        components, tau: k mixture features in place of f1 as antecedents, and the inverse
            temperature of their posterior, see `mixture`; 0 for f1 itself.

    Example:
    >>> model = AMDIM(Encoder(image_size=32, ndf=16, nrkhs=64, ndepth=2), classes=10)
    >>> model.compile(optimizer=AdamL2(2e-4))
    >>> model.fit(dataset)
    """

    def __init__(
        self,
        encoder,
        classes,
        tasks="1-5,1-7,5-5",
        clip=20.0,
        regulariser=5e-2,
        seed=0,
        score_bytes=2**28,
        components=0,
        tau=1.0,
        **kwargs,
    ):
        super().__init__(encoder, classes, **kwargs)
        self.seed, self.tasks = seed, multiscale.parse_tasks(tasks)
        self.clip, self.regulariser, self.score_bytes = clip, regulariser, score_bytes
        names = [f"{n}-{m}" for n, m in self.tasks]
        mixed = [f"entropy_{n}-{m}" for n, m in self.tasks if components and n == 1]
        self.objective_means = means(
            "loss",
            "regulariser",
            *(f"{kind}_{name}" for kind in ("nce", "bound") for name in names),
            *mixed,
        )
        self.phi5, self.phi7 = (
            Phi(encoder.nrkhs, encoder.use_bn, dtype=encoder.dtype_policy, name=f"phi{n}")
            for n in (5, 7)
        )
        images = keras.KerasTensor((None, encoder.image_size, encoder.image_size, 3))
        features = encoder.compute_output_spec(images)
        self.phi5.build(features["f5"].shape)
        self.phi7.build(features["f7"].shape)
        self.tau = tau
        self.mixture = None
        if components:
            self.mixture = Mixture(components, dtype=encoder.dtype_policy, name="mixture")
            self.mixture.build((None, encoder.nrkhs))
        # A phi that no task scores would get no gradient.
        self.phi5.trainable, self.phi7.trainable = (
            any(n in task for task in self.tasks) for n in (5, 7)
        )

    def project(self, images, training=False, views=1):
        """What `normalise` makes embeddings of; unless `use_bn`, images do not see each other."""
        mode = {"training": training, "views": views}
        features = self.encoder.trunk(images, **mode)
        return {
            1: features["f1"],
            5: self.phi5.project(features["f5"], **mode),
            7: self.phi7.project(features["f7"], **mode),
        }

    def normalise(self, projected, training=False, views=1):
        """Embeddings {1: (V*B,nrkhs), 5: (V*B,5,5,nrkhs), 7: (V*B,7,7,nrkhs)} of V views.

        Here are the batch norms, whose statistics are those of all replicas.
        """
        norms = {1: self.encoder.bn1, 5: self.phi5.bn, 7: self.phi7.bn}
        embeddings = {n: norms[n](projected[n], training=training, views=views) for n in norms}
        return embeddings | {1: ops.squeeze(embeddings[1], axis=(1, 2))}

    def embed(self, images, training=False, views=1):
        """`project` and `normalise`."""
        return self.normalise(self.project(images, training, views), training, views)

    def features(self, images):
        """f1, f5 and f7, of them the embeddings r1, r5 and r7, and the mixture (B,k,D) if any."""
        f = super().features(images)
        f |= {"r1": f["f1"], "r5": self.phi5(f["f5"]), "r7": self.phi7(f["f7"])}
        return f | {"mixture": self.mixture(f["f1"])} if self.mixture else f

    def draw(self, batch):
        """The `antecedent_locations` of a training step."""
        return (self.antecedent_locations(batch),)

    def antecedent_locations(self, batch):
        """One flat location per scale, view and image of this replica: {n: (2,batch) int32}.

        Uniform, and whatever the number of replicas the same for an image of the global batch.
        """
        step = ops.cast(self.step, "int32")
        first = distribution.first_image(batch)
        return {
            n: tf.random.stateless_uniform(
                (2, batch * distribution.replicas()), (self.seed, step * 8 + n), 0, n * n, tf.int32
            )[:, first : first + batch]
            for n in multiscale.antecedent_scales(self.tasks)
        }

    def objective(self, x1, x2, locations, training=True):
        """The losses that shape the representation, and f1 of both views for the probes.

        Returns:
            (losses, penalty, entropies, f1): as `multiscale.multiscale_nce`, and (2*B,nrkhs), view
            1 first.
        """
        batch = ops.shape(x1)[0]
        # Both views run through the trunk as one batch: larger products, the same values.
        projected = self._project(ops.concatenate([x1, x2]), training)
        embeddings = self.normalise(projected, training, views=2)
        # Not sliced: of a split the gradient is one concatenation, of slices sums of padded copies.
        halves = {n: ops.split(embedding, 2) for n, embedding in embeddings.items()}
        view1, view2 = ({n: half[view] for n, half in halves.items()} for view in (0, 1))
        consequents = None
        if distribution.replicas() > 1:
            consequents = [
                {m: distribution.gather(view[m]) for m in multiscale.consequent_scales(self.tasks)}
                for view in (view1, view2)
            ]
        components = self.mixture and ops.split(self.mixture(embeddings[1]), 2)
        first = distribution.first_image(batch)
        scored = self._score(view1, view2, locations, consequents, first, components)
        return *scored, embeddings[1]

    def _project(self, images, training):
        return self.project(images, training, views=2)

    def _score(self, view1, view2, locations, consequents, first, components):
        return multiscale.multiscale_nce(
            view1,
            view2,
            locations,
            self.tasks,
            self.clip,
            self.regulariser,
            self.score_bytes,
            consequents,
            first,
            components,
            self.tau,
        )

    def divide(self, compiled=False, micro_batch=0):
        """Divides the training step into regions, on each side of the collectives.

        With `use_bn` there are collectives inside the trunk, which is then left as it is.

        Args:
            compiled: whether XLA compiles each.
            micro_batch: how many images of a replica are embedded at a time; 0 for all of them.
        """
        if compiled:
            self._score = distribution.compiled(self._score)
        if self.encoder.use_bn:
            return
        variables = [*self.encoder.variables, *self.phi5.variables, *self.phi7.variables]

        def project(images):
            projected = self.project(images, True, 2)
            return [projected[n] for n in multiscale.SCALES]

        project = distribution.stateless(project, variables)
        if compiled:
            project = distribution.compiled(project)
        if micro_batch:
            dtypes = [self.encoder.compute_dtype] * len(multiscale.SCALES)
            project = in_parts(project, 2 * micro_batch, dtypes)

        def bound(images, training):
            values = project([tf.convert_to_tensor(v.value) for v in variables], images)
            return dict(zip(multiscale.SCALES, values, strict=True))

        self._project = bound

    def train_step(self, data):
        (x1, x2), labels, locations = data
        before = self.running_averages()
        batch = ops.shape(x1)[0]
        labels = ops.concatenate([labels, labels])
        with tf.GradientTape() as tape:
            losses, penalty, entropies, f1 = self.objective(x1, x2, locations)
            total = sum(losses.values()) + penalty - sum(entropies.values()) / self.tau
            logits = self.probes(ops.stop_gradient(f1), training=True)
            of_probes = probe_losses(labels, logits)
            # One sum trains both: no gradient of the probes reaches f1. Replicas' gradients add up.
            trained = (total + sum(of_probes.values())) / distribution.replicas()
            trained = self.optimizer.scale_loss(trained)
        terms = {f"nce_{name}": loss for name, loss in losses.items()} | {"regulariser": penalty}
        terms |= {f"{name}_loss": loss for name, loss in of_probes.items()}
        good = self.update(tape.gradient(trained, self.trained_variables), terms, before)

        values = {"loss": total, "regulariser": penalty}
        for n, m in self.tasks:
            loss = losses[f"{n}-{m}"]
            values[f"nce_{n}-{m}"] = loss
            values[f"bound_{n}-{m}"] = multiscale.information_bound(
                loss, batch * distribution.replicas(), m
            )
        values |= {f"entropy_{name}": entropy for name, entropy in entropies.items()}
        for name, value in values.items():
            self.objective_means[name].update_state(ops.where(good == 1, value, 0), good)
        self.measure_probes(labels, logits, of_probes, good)
        logs = results(self.objective_means) | results(self.probe_means)
        return logs | {"skipped": self.skipped.result()}


def build_model(config, classes, dtype=None):
    """The model of `config`, not compiled; its `dtype` is by default the config's precision."""
    encoder = Encoder(
        config.image_size,
        config.ndf,
        config.nrkhs,
        config.ndepth,
        config.use_bn,
        dtype=dtype or config.precision,
        name="encoder",
    )
    if config.objective == "supervised":
        return Classifier(encoder, classes)
    return AMDIM(
        encoder,
        classes,
        config.tasks,
        config.clip or None,
        config.regulariser,
        config.seed,
        config.score_megabytes * 2**20,
        config.mixture_components,
        config.mixture_tau,
    )


def means(*names):
    return {name: keras.metrics.Mean(name) for name in names}


def results(trackers):
    return {name: tracker.result() for name, tracker in trackers.items()}
