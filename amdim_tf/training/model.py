"""AMDIM: encoder, embeddings and probes with the training step that joins them (Equation 5)."""

import itertools

import keras
import tensorflow as tf
from keras import ops

from amdim_tf import distribution
from amdim_tf.objectives import multiscale
from amdim_tf.objectives.mixture import Mixture
from amdim_tf.objectives.phi import Phi
from amdim_tf.objectives.probes import probe_losses
from amdim_tf.training.classifier import Classifier, means, results


@keras.saving.register_keras_serializable("amdim_tf")
class AMDIM(Classifier):
    """Trains an encoder by the multiscale objective, with probes beside it that measure f1.

    `fit`, `evaluate` and calls are as those of `Classifier`; only the probes see the labels, and
    their gradient does not reach the encoder. So `fit` needs none: `fit((x1, x2))` of arrays, and
    of datasets `((x1, x2),)`, since Keras takes the second of `(x1, x2)` for labels, and this is
    refused. A batch has two images or more, each other's negatives.

    Args:
        encoder: an `Encoder`.
        classes: number of classes, for the probes; 0 for none, and then labels are not looked at.
        tasks: n-to-m tasks, see `multiscale.parse_tasks`.
        clip, regulariser: see `nce.nce`.
        seed: of the antecedent locations, which are a function of (seed, step).
        score_bytes: see `multiscale.multiscale_nce`.
        components, tau: k mixture features in place of f1 as antecedents, and the inverse
            temperature of their posterior, see `mixture`; 0 for f1 itself.

    Example:
    >>> x1, x2 = keras.random.normal((2, 16, 32, 32, 3))
    >>> model = AMDIM(Encoder(image_size=32, ndf=4, nrkhs=16, ndepth=1), classes=0)
    >>> model.compile(optimizer=AdamL2(2e-4))
    >>> history = model.fit((x1, x2), batch_size=8, verbose=0)
    >>> model.encoder.predict(x1, verbose=0)["f1"].shape
    (16, 16)
    """

    # Labels are for the probes alone, and an image alone has no negatives.
    needs_labels, least_images = False, 2

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
        super().__init__(encoder, classes, seed=seed, **kwargs)
        self.tasks = multiscale.parse_tasks(tasks)
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
        self.components, self.tau = components, tau
        self.mixture = None
        if components:
            self.mixture = Mixture(components, dtype=encoder.dtype_policy, name="mixture")
            self.mixture.build((None, encoder.nrkhs))
        # A phi that no task scores would get no gradient.
        self.phi5.trainable, self.phi7.trainable = (
            any(n in task for task in self.tasks) for n in (5, 7)
        )

    def project(self, images, training=False, views=1):
        mode = {"training": training, "views": views}
        features = self.encoder.trunk(images, **mode)
        return {
            1: features["f1"],
            5: self.phi5.project(features["f5"], **mode),
            7: self.phi7.project(features["f7"], **mode),
        }

    def normalise(self, projected, training=False, views=1):
        """Embeddings {1: (V*B,nrkhs), 5: (V*B,5,5,nrkhs), 7: (V*B,7,7,nrkhs)} of V views."""
        mode = {"training": training, "views": views}
        norms = {5: self.phi5.bn, 7: self.phi7.bn}
        embeddings = super().normalise(projected, **mode)
        return embeddings | {n: norms[n](projected[n], **mode) for n in norms}

    @property
    def projecting(self):
        return multiscale.SCALES, (self.encoder, self.phi5, self.phi7)

    def embed(self, images, training=False, views=1):
        """`project` and `normalise`."""
        return self.normalise(self.project(images, training, views), training, views)

    def features(self, images):
        """f1, f5 and f7, of them the embeddings r1, r5 and r7, and the mixture (B,k,D) if any."""
        f = super().features(images)
        f |= {"r1": f["f1"], "r5": self.phi5(f["f5"]), "r7": self.phi7(f["f7"])}
        return f | {"mixture": self.mixture(f["f1"])} if self.mixture else f

    def draw(self, batch):
        return self.antecedent_locations(batch), *super().draw(batch)

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
        consequents = self._gathered(embeddings) if distribution.replicas() > 1 else None
        components = self.mixture and ops.split(self.mixture(embeddings[1]), 2)
        first = distribution.first_image(batch)
        scored = self._score(view1, view2, locations, consequents, first, components)
        return *scored, embeddings[1]

    def _gathered(self, embeddings):
        """Consequents {m: (B,m*m,D)} of views 1 and 2, of the images of all replicas.

        All scales of both views are gathered at once: a collective of each would take longer, and
        the graph of one grows with the square of the number of replicas.
        """
        scales, width = multiscale.consequent_scales(self.tasks), self.encoder.nrkhs
        each = [ops.reshape(embeddings[m], (-1, m * m, width)) for m in scales]
        gathered = distribution.gather(ops.concatenate(each, axis=1))
        locations = [m * m for m in scales]
        shape = (distribution.replicas(), 2, -1, sum(locations), width)
        views = ops.split(ops.reshape(gathered, shape), 2, axis=1)
        views = [ops.reshape(view, (-1, sum(locations), width)) for view in views]
        ends = list(itertools.accumulate(locations[:-1]))
        return [dict(zip(scales, ops.split(view, ends, axis=1), strict=True)) for view in views]

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

    def get_config(self):
        fields = ("clip", "regulariser", "score_bytes", "components", "tau")
        own = {"tasks": ",".join(f"{n}-{m}" for n, m in self.tasks)}
        return super().get_config() | own | {field: getattr(self, field) for field in fields}

    def divide(self, compiled=False, micro_batch=0):
        self._score = distribution.region(self._score, compiled)
        super().divide(compiled, micro_batch)

    def train_step(self, data):
        (x1, x2), labels, locations, draws = data
        before = self.running_averages()
        batch = ops.shape(x1)[0]
        labels = ops.concatenate([labels, labels])
        with tf.GradientTape() as tape:
            losses, penalty, entropies, f1 = self.objective(x1, x2, locations)
            total = sum(losses.values()) + penalty - sum(entropies.values()) / self.tau
            logits = self.probes(ops.stop_gradient(f1), training=True, draws=draws)
            of_probes = probe_losses(labels, logits)
            # One sum trains both: no gradient of the probes reaches f1. Replicas' gradients add up.
            trained = (total + sum(of_probes.values())) / distribution.replicas()
            trained = self.optimizer.scale_loss(trained)
        terms = {f"nce_{name}": loss for name, loss in losses.items()} | {"regulariser": penalty}
        terms |= {f"{name}_loss": loss for name, loss in of_probes.items()}
        good = self.update(tape.gradient(trained, self.trainable_variables), terms, before)

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
