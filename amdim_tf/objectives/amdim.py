"""AMDIM: each antecedent of one view picks its own consequents in the other (3.3, Equation 5)."""

import itertools
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from amdim_tf import distribution
from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.errors import InputError
from amdim_tf.objectives import multiscale
from amdim_tf.objectives.bounds import MOST, MovingMeans, contrast_of
from amdim_tf.objectives.mixture import BagOfFeatures, Mixture
from amdim_tf.objectives.objective import Losses, Objective
from amdim_tf.objectives.phi import Phi
from amdim_tf.precision import at_least_float32
from amdim_tf.typing import Config, Tensor


class Amdim(Objective):
    """The multiscale NCE between two views, of f1 and maps of features as phi embeds them.

    Small crops, if there are any, are further views whose f1 is scored against both others: the
    tasks from scale 1 have them as antecedents, too.

    phi_n embeds the map of each scale that a task names. f1 is its own embedding if it has as many
    dimensions as they have; otherwise phi_1 embeds it.

    Args:
        tasks: n-to-m tasks, see `multiscale.parse_tasks`; by default those of
            `multiscale.default_tasks` for the encoder.
        clip, regulariser: see `nce.nce`.
        score_bytes: see `multiscale.multiscale_nce`.
        components: k, how many mixture features replace f1 as antecedents; 0 keeps f1. See
            `mixture`.
        tau: inverse temperature of their posterior.
        nrkhs: dimensions of the embeddings; by default those of f1.
        small_crops: number of further views, after the two.
        bound: what is maximised: "nce", the method; "jsd" or "dv", see `bounds`.

    Example:
    >>> from amdim_tf.encoders.amdim import Encoder
    >>> objective = Amdim("1-5,5-5")
    >>> sorted(objective.build(Encoder(image_size=32, ndf=4, nrkhs=16, ndepth=1)))
    ['phi5', 'phi7']
    >>> embeddings = {1: ops.eye(4, 16), 5: ops.ones((4, 5, 5, 16)), 7: ops.ones((4, 7, 7, 16))}
    >>> losses = objective.losses(embeddings, None, objective.draw(0, 0, 2))  # two images
    >>> sorted(losses.terms)
    ['nce_1-5', 'nce_5-5', 'regulariser']
    """

    least_images = 2  # a single image has no negatives

    def __init__(
        self,
        tasks: str | None = None,
        clip: float | None = 20.0,
        regulariser: float = 5e-2,
        score_bytes: int = 2**28,
        components: int = 0,
        tau: float = 1.0,
        nrkhs: int | None = None,
        small_crops: int = 0,
        bound: str = "nce",
    ):
        self.views, self.small_crops = 2 + small_crops, small_crops
        self.tasks = multiscale.parse_tasks(tasks) if tasks else ()
        self.clip, self.regulariser, self.score_bytes = clip, regulariser, score_bytes
        self.components, self.tau, self.nrkhs = components, tau, nrkhs or 0
        self.bound = bound
        self.moving: MovingMeans | None = None
        self.mixture: Mixture | None = None
        self.phi1: Phi | None = None  # the identity
        self.phis: dict[int, Phi] = {}

    @property
    def role_of_f1(self) -> str:  # type: ignore[override]
        return "which phi_1 embeds for the bound" if self.phi1 else "which the bound scores"

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        names = [f"{n}-{m}" for n, m in self.tasks]
        mixed = [f"entropy_{n}-{m}" for n, m in self.tasks if self.components and n == 1]
        bounds = [f"{kind}_{name}" for kind in ("nce", "bound") for name in names]
        return ("loss", "regulariser", *bounds, *mixed, *["small_crops"] * bool(self.small_crops))

    @classmethod
    def check(cls, config: Config) -> None:
        tasks = multiscale.parse_tasks(config.tasks)
        if config.bound != "nce" and (config.mixture_components or config.views.small_crops):
            raise InputError(
                "bound must be nce with mixture_components or views.small_crops. Received: "
                f"bound={config.bound!r}, mixture_components={config.mixture_components}, "
                f"views.small_crops={config.views.small_crops}"
            )
        others = config.mixture_components, config.micro_batch
        if config.views.small_crops and (any(others) or not any(n == 1 for n, _ in tasks)):
            raise InputError(
                "views.small_crops must be 0 unless tasks include one from scale 1, and "
                "mixture_components and micro_batch are 0. Received: "
                f"views.small_crops={config.views.small_crops}, tasks={config.tasks!r}, "
                f"mixture_components={others[0]}, micro_batch={others[1]}"
            )
        if config.mixture_components and not any(n == 1 for n, _ in tasks):
            raise InputError(
                "mixture_components must be 0 unless tasks include one from scale 1. "
                f"Received: mixture_components={config.mixture_components}, "
                f"tasks={config.tasks!r}, objective={config.objective!r}"
            )

    @classmethod
    def of(cls, config: Config) -> "Amdim":
        return cls(
            config.tasks,
            config.clip or None,
            config.regulariser,
            config.score_megabytes * 2**20,
            config.mixture_components,
            config.mixture_tau,
            config.nrkhs,
            config.views.small_crops,
            config.bound,
        )

    def build(self, encoder: ImageEncoder) -> dict[str, keras.layers.Layer]:
        super().build(encoder)
        widths = encoder.scales
        self.tasks = self.tasks or multiscale.default_tasks(widths)
        multiscale.parse_tasks(multiscale.tasks_text(self.tasks), widths)
        self.nrkhs = self.nrkhs or encoder.nrkhs
        options = {"dtype": encoder.dtype_policy}
        layers: dict[str, keras.layers.Layer] = {}

        def phi_of(n):
            phi = layers[f"phi{n}"] = Phi(self.nrkhs, encoder.use_bn, name=f"phi{n}", **options)
            phi.build((None, n, n, widths[n]))
            # A phi that no task scores gets no gradient.
            phi.trainable = n in named
            return phi

        named = {n for task in self.tasks for n in task}
        if 1 in named and encoder.nrkhs != self.nrkhs:
            self.phi1 = phi_of(1)
        self.phis = {n: phi_of(n) for n in sorted((named | {*encoder.embedded}) - {1})}
        self.scales = (1, *self.phis)
        if self.bound == "dv":
            dtype = at_least_float32(encoder.variable_dtype)
            self.moving = MovingMeans(len(self.tasks), name="moving_means", dtype=dtype)
            layers["moving_means"] = self.moving
        if self.components:
            self.mixture = Mixture(self.components, name="mixture", **options)
            self.mixture.build((None, self.nrkhs))
            layers["mixture"] = self.mixture
        return layers

    @property
    def projection(self) -> tuple[keras.layers.Layer, ...]:
        return tuple(self.phis.values())

    def draw(self, seed: int, step: Tensor, batch: int) -> dict[int, Tensor]:
        """One flat location per scale, view and image of this replica: {n: (2,batch) int32}.

        Locations are uniform. An image of the global batch has the same ones for any number of
        replicas.
        """
        first, images = distribution.first_image(batch), batch * distribution.replicas()
        drawn = {}
        for n in multiscale.antecedent_scales(self.tasks):
            own = (seed, ops.cast(step, "int32") * 8 + n % 8)
            if n >= 8:  # which would be another step's
                own = tf.random.experimental.stateless_fold_in(own, n)
            drawn[n] = tf.random.stateless_uniform((2, images), own, 0, n * n, tf.int32)
        return {n: each[:, first : first + batch] for n, each in drawn.items()}

    def project(
        self, features: dict[str, Tensor], training: bool = False, views: int = 1
    ) -> dict[int, Tensor]:
        """{1: f1 of all views, n: what phi makes of the maps, without those of small crops}."""
        mode: dict[str, Any] = {"training": training, "views": min(views, 2)}
        maps = {n: self._of_two(features[f"f{n}"], views) for n in self.phis}
        maps = {n: self.phis[n].project(x, **mode) for n, x in maps.items()}
        return {1: features["f1"]} | maps

    def _of_two(self, x, views):
        """The rows of the first two of `views` in `x` (V*B,...)."""
        return x[: ops.shape(x)[0] // views * 2] if views > 2 else x

    def normalise(
        self, projected: dict[int, Tensor], training: bool = False, views: int = 1
    ) -> dict[int, Tensor]:
        """{1: f1 (V*B,nrkhs), n: embeddings (2*B,n,n,nrkhs)} of V views."""
        embeddings = super().normalise(projected, training, views)
        mode: dict[str, Any] = {"training": training, "views": min(views, 2)}
        return embeddings | {n: phi.bn(projected[n], **mode) for n, phi in self.phis.items()}

    def embed_f1(self, f1: Tensor, training: bool = False, views: int = 1) -> Tensor:
        """r1 (V*B,nrkhs), which is f1 unless there is a phi_1."""
        if not self.phi1:
            return f1
        r1 = self.phi1(f1[:, None, None], training=training, views=views)
        return ops.squeeze(r1, axis=(1, 2))

    def losses(
        self, embeddings: dict[int, Tensor], labels: Tensor, draws: dict[int, Tensor]
    ) -> Losses:
        losses, penalty, entropies, small = self.scores(embeddings, draws)
        total = sum(losses.values()) + penalty - sum(entropies.values()) / self.tau + small
        terms = {f"nce_{name}": loss for name, loss in losses.items()} | {"regulariser": penalty}
        terms |= {"small_crops": small} if self.small_crops else {}
        metrics = {"loss": total} | terms
        images = ops.shape(embeddings[1])[0] // self.views * distribution.replicas()
        for n, m in self.tasks:
            loss = losses[f"{n}-{m}"]
            if self.bound == "nce":
                bound = multiscale.information_bound(loss, images, m)
            else:
                bound = MOST[self.bound] - loss
            metrics[f"bound_{n}-{m}"] = bound
        metrics |= {f"entropy_{name}": entropy for name, entropy in entropies.items()}
        return Losses(total, terms, metrics)

    def scores(
        self, embeddings: dict[int, Tensor], locations: dict[int, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor], Tensor]:
        """(losses, penalty, entropies) of `embeddings`, view 1 first; see `multiscale_nce`.

        And the mean over small crops of losses and penalty, where they are the antecedents.
        """
        r1, small = self.embed_f1(embeddings[1], training=True, views=self.views), []
        if self.small_crops:
            x1, x2, *small = ops.split(r1, self.views)
            r1 = ops.concatenate([x1, x2])
        embeddings = embeddings | {1: r1}
        # The gradient of a split is one concatenation; that of slices is a sum of padded copies.
        halves = {n: ops.split(embedding, 2) for n, embedding in embeddings.items()}
        view1, view2 = ({n: half[view] for n, half in halves.items()} for view in (0, 1))
        consequents = self._gathered(embeddings) if distribution.replicas() > 1 else None
        components = self.mixture and ops.split(self.mixture(embeddings[1]), 2)
        first = distribution.first_image(ops.shape(r1)[0] // 2)
        logs = self.moving and self.moving.logs.value
        *found, ratios = self._score(
            view1, view2, locations, consequents, first, components, small, logs
        )
        if self.moving:
            self.moving.update(distribution.all_mean(ratios))
        return tuple(found)

    def _gathered(self, embeddings):
        """Consequents {m: (B,m*m,D)} of views 1 and 2, from the images of all replicas.

        One collective gathers all scales of both views: several would take longer, and the graph
        of each grows with the square of the number of replicas.
        """
        scales, width = multiscale.consequent_scales(self.tasks), self.nrkhs
        each = [ops.reshape(embeddings[m], (-1, m * m, width)) for m in scales]
        gathered = distribution.gather(ops.concatenate(each, axis=1))
        locations = [m * m for m in scales]
        shape = (distribution.replicas(), 2, -1, sum(locations), width)
        views = ops.split(ops.reshape(gathered, shape), 2, axis=1)
        views = [ops.reshape(view, (-1, sum(locations), width)) for view in views]
        ends = list(itertools.accumulate(locations[:-1]))
        return [dict(zip(scales, ops.split(view, ends, axis=1), strict=True)) for view in views]

    def _score(self, view1, view2, locations, consequents, first, components, small, logs):
        contrast = contrast_of(self.bound, logs)
        how = self.clip, self.regulariser, self.score_bytes, consequents, first

        def scored(tasks, change, *mixture):
            views = view1 | change, view2 | change
            return multiscale.multiscale_nce(
                *views, locations, tasks, *how, *mixture, contrast=contrast
            )

        losses, penalty, entropies = scored(self.tasks, {}, components, self.tau)
        from_f1, of_small = tuple(task for task in self.tasks if task[0] == 1), 0 * penalty
        for r1 in small:
            own, own_penalty, _ = scored(from_f1, {1: r1})
            of_small += (sum(own.values()) + own_penalty) / len(small)
        ratios = contrast.ratios() if self.moving else ()
        return losses, penalty, entropies, of_small, ratios

    def features(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The embeddings r<n> that tasks score, and the mixture (B,k,D) if there is one."""
        found = {"r1": self.embed_f1(features["f1"])}
        found |= {f"r{n}": phi(features[f"f{n}"]) for n, phi in self.phis.items()}
        return found | ({"mixture": self.mixture(found["r1"])} if self.mixture else {})

    def representations(self) -> dict[str, ImageEncoder]:
        if not self.mixture:
            return {}
        return {"mixture": BagOfFeatures(self.encoder, self.mixture, self.embed_f1)}

    def divide(self, compiled: bool) -> None:
        self._score = distribution.region(self._score, compiled)  # type: ignore[method-assign]

    def flops(self, batch: int) -> int:
        """Operations of scores and mixture: both views, forward, both operands' gradients."""
        antecedents = max(1, self.components) + self.small_crops  # in the place of f1
        scored = batch * sum(m * m * (antecedents if n == 1 else 1) for n, m in self.tasks)
        mixed = self.nrkhs * (1 + self.components) if self.mixture else 0
        return 3 * 2 * 2 * batch * (scored + mixed) * self.nrkhs

    def __str__(self) -> str:
        small = f", {self.small_crops} small crops" * bool(self.small_crops)
        return f"tasks {multiscale.tasks_text(self.tasks)}{small}"

    def get_config(self) -> dict:
        fields = ("clip", "regulariser", "score_bytes", "components", "tau")
        own = {"tasks": multiscale.tasks_text(self.tasks) or None, "nrkhs": self.nrkhs or None}
        own |= {"small_crops": self.small_crops} if self.small_crops else {}
        own |= {"bound": self.bound} if self.bound != "nce" else {}
        return own | {field: getattr(self, field) for field in fields}
