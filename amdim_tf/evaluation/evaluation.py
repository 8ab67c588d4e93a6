"""What the encoder of a run has learned, by each of the protocols (4).

evaluation/NAME.json, NAME.png    a result and its confusion matrix
evaluation/NAME.IDENTITY/         the training of classifiers that is not finished
evaluation/features/              see `amdim_tf.evaluation.features`
evaluation/index-*.npz            labels of large sets, see `amdim_tf.data.splits`
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import time

import matplotlib.pyplot as plt
from sklearn.metrics import ConfusionMatrixDisplay

from amdim_tf.config import MEANS, fields, file_name
from amdim_tf.data import sources
from amdim_tf.distribution import check_agreement, check_batch, choose_devices
from amdim_tf.errors import InputError
from amdim_tf.evaluation import classifiers, fractions, predictions
from amdim_tf.evaluation.features import digest, encode, kept_features
from amdim_tf.evaluation.pictures import plain
from amdim_tf.evaluation.protocols import PROTOCOLS
from amdim_tf.evaluation.protocols.protocol import find_protocol
from amdim_tf.files import local, read_json, write_json
from amdim_tf.lock import locked
from amdim_tf.training.building import check_config
from amdim_tf.training.run_directory import RunDirectory, environment, load_model
from amdim_tf.training.run_files import read_config, read_result

# More class names than this cannot be read in a picture.
NAMED_CLASSES = 20


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an encoder is measured.

    Args:
        fast: linear and MLP classifiers learn from features computed once, without augmentation,
            instead of by the reference's schedule on augmented images.
        label_fraction: of the training images that classifiers and neighbours learn from.
        features: what they see of an image: "f1", or "mixture", all of its mixture features.
    """

    fast: bool = False
    label_fraction: float = 1.0
    features: str = "f1"

    def __post_init__(self):
        if not 0 < self.label_fraction <= 1:
            raise InputError(f"label_fraction must lie in 0..1. Received: {self.label_fraction:g}")


def evaluate(
    workdir,
    config,
    chosen=PROTOCOLS,
    data_dir=None,
    fast=False,
    label_fraction=1.0,
    features="f1",
    strategy="none",
    xla="off",
):
    """Measures the encoder of a run; writes a result and a picture for each protocol.

    A protocol that was measured before, on the same encoder by the same settings, is not measured
    again, and one that was stopped goes on from its last checkpoint.

    Args:
        workdir: the run directory.
        config: of the data and of the classifiers' schedule, see `evaluation_config`.
        chosen: names of protocols, see `protocols.protocol`.
        data_dir: where the data is, see `sources.load`.
        fast, label_fraction, features: see `Settings`.
        strategy, xla: see `distribution.choose_devices`.

    Returns:
        {protocol: result}, as in `workdir`/evaluation.

    Raises:
        InputError: a run without checkpoint or without the features, data without classes, or too
            many bad images.
        Stopped: by SIGINT or SIGTERM, after a checkpoint was saved.
    """
    check_config(config)
    settings = Settings(fast, label_fraction, features)
    for name in chosen:
        find_protocol(name)
    read_config(workdir)  # a wrong directory is found before the data is read
    devices = choose_devices(strategy, xla)
    data = sources.load(config, data_dir)
    if len(data.class_names) < 2:
        raise InputError(
            "Classifiers need a data set with two or more classes. "
            f"Received: {config.dataset} with {len(data.class_names)}"
        )
    workdir = local(workdir, "workdir")
    chief = devices.worker.chief
    with locked(workdir / "evaluation", "workdir") if chief else contextlib.nullcontext():
        evaluation = Evaluation(workdir, config, data, devices, settings)
        results = {name: evaluation.measure(name) for name in chosen}
        evaluation.tidy()
    return results


class Evaluation:
    """The measurement of the encoder of a run on a data set.

    Args:
        workdir: the run directory.
        config, data: a config and a `Data`.
        devices: `distribution.Devices`.
        settings: `Settings`.
    """

    def __init__(self, workdir, config, data, devices, settings):
        self.workdir, self.config, self.data = workdir, config, data
        self.devices, self.settings = devices, settings
        self.folder, self.chief = workdir / "evaluation", devices.worker.chief
        self.classes = len(data.class_names)
        self.encoder, self.step = self.load()
        self.places, self.unfinished = None, set()
        if settings.label_fraction < 1:
            labels = data.probe.labels(self.folder)
            self.places = fractions.balanced_places(labels, settings.label_fraction, self.classes)
        self.labelled = data.probe.size if self.places is None else len(self.places)
        if self.chief:
            print(
                f"encoder   {workdir}, after {self.step} steps, {config.precision}\n"
                f"data      {config.dataset}: {self.labelled} labelled and {data.test.size} test "
                f"images, {len(data.class_names)} classes"
                + (f" ({data.note})" if data.note else ""),
                flush=True,
            )

    def load(self):
        """The encoder as it was trained, on all devices, and the step of its training."""
        with self.devices.strategy.scope():
            model, step = load_model(self.workdir, self.config.precision)
            offered = {"f1": model.encoder} | model.objective.representations()
            if self.settings.features not in offered:
                raise InputError(
                    f"features must be one of {', '.join(offered)} for workdir={self.workdir}. "
                    f"Received: features={self.settings.features}"
                )
            return offered[self.settings.features], step

    def measure(self, protocol):
        """The result of a protocol: that on disk, or what is measured now and written."""
        name = self.name(protocol)
        path, identity = self.folder / f"{name}.json", self.identity(protocol)
        result = read_json(path)
        known = result.get("identity") == identity
        check_agreement(self.devices.strategy, f"{name} measured before: {known}")
        if not known:
            started = time.time()
            found = find_protocol(protocol)().predictions(self)
            self.data.failures.check()
            if self.chief:
                self.write(path, protocol, found, identity, time.time() - started)
            check_agreement(self.devices.strategy, f"{name} measured")
            result = read_json(path)
        if self.chief:
            print(title(result) + ", measured before" * known, flush=True)
        self.unfinished.add(self.training_path(protocol))
        return result

    def tidy(self):
        """Removes the trainings of classifiers whose results are written."""
        for path in self.unfinished if self.chief else ():
            shutil.rmtree(path, ignore_errors=True)

    # What several protocols need is computed once.

    @functools.cached_property
    def known_features(self):
        if self.places is None:
            return self.encode(self.data.probe)
        everything = kept_features(self.encoder, self.data.probe, *self.kept)
        return everything.within(self.places) if everything else self.encode(self.subset)

    @functools.cached_property
    def test_features(self):
        return self.encode(self.data.test)

    @functools.cached_property
    def subset(self):
        return self.data.probe.subset(self.places, self.folder)

    @functools.cached_property
    def probes(self):
        """{"linear", "mlp": Predictions} on the frozen encoder; see `Protocol.predictions`."""
        if not self.settings.fast:
            return self.on_views("linear", self.encoder, frozen=True)
        features = self.known_features, self.test_features
        if not self.chief:
            return None
        run = self.open_training("linear")
        return classifiers.fit_on_features(*features, self.classes, self.config, run)

    @property
    def kept(self):
        return self.config, self.folder / "features", self.step

    def encode(self, split):
        """`Features` of a `split` in the run's folder of features."""
        config, folder, step = self.kept
        if self.chief:
            print(f"features  of {split.size} images, in {folder}", flush=True)
        return encode(self.encoder, self.data, split, config, self.devices, folder, step)

    def on_views(self, protocol, encoder, frozen):
        """`Predictions` of classifiers that learn from augmented images."""
        data = self.data
        if self.places is not None:
            data = dataclasses.replace(data, probe=self.subset)
        config = self.config.copy_and_resolve_references()
        together = self.devices.worker.replicas * max(config.micro_batch, 1)
        if data.probe.size < config.batch_size:
            config.batch_size = data.probe.size // together * together
        check_batch(config.batch_size, config.micro_batch, self.devices.strategy)
        with self.devices.strategy.scope():
            model = classifiers.build_classifier(encoder, config, data, self.devices, frozen)
        run = self.open_training(protocol)
        return classifiers.fit_on_views(model, data, config, self.devices, run)

    # Names and identities

    def name(self, protocol):
        """The name of a result's files, without extension."""
        settings = self.settings
        parts = [file_name(self.config.dataset), file_name(protocol)]
        parts += ["fast"] * (settings.fast and len(find_protocol(protocol).ways) > 1)
        parts += [f"{settings.label_fraction:g}"] * (settings.label_fraction < 1)
        parts += ["mixture"] * (settings.features == "mixture")
        return "-".join(parts)

    def identity(self, protocol):
        """Text that differs for results of another encoder, other data or other settings."""
        how = {name: x for name, x in fields(self.config).items() if name not in MEANS}
        settings = dataclasses.asdict(self.settings) | {"fast": self.name(protocol)}
        of = [self.step, self.encoder_digest, self.data.probe.digest, self.data.test.digest]
        text = json.dumps([how, settings, of, self.data.class_names], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def encoder_digest(self):
        return digest(self.encoder)

    def training_path(self, protocol):
        """Where the training of a protocol's classifiers is kept; linear and MLP share one."""
        shared = find_protocol(protocol).training or protocol
        name = self.name(shared).replace("-linear", "-probes")
        return self.folder / f"{name}.{self.identity(shared)[:8]}"

    def open_training(self, protocol):
        """The `RunDirectory` of a protocol's classifiers, in which their training goes on."""
        path = self.training_path(protocol)
        config = fields(self.config) | {"identity": self.identity(protocol)}
        run = RunDirectory(path, config) if self.chief else None
        if self.distributed(protocol):
            check_agreement(self.devices.strategy, f"{path} is there")
        return run or RunDirectory(path, config)

    def distributed(self, protocol):
        """Whether all workers take part in the training of its classifiers."""
        return not self.settings.fast or "features" not in find_protocol(protocol).ways

    def write(self, path, protocol, found, identity, seconds):
        """Writes the result of `Predictions`, and their confusion matrix."""
        report, confusion = predictions.report(found, self.data.class_names)
        result = {
            "protocol": protocol,
            "fast": self.settings.fast and len(find_protocol(protocol).ways) > 1,
            "label_fraction": self.settings.label_fraction,
            "features": self.settings.features,
            "labelled_images": self.labelled,
            # Bad images have no scores.
            "test_images": len(found.labels),
            "accuracy": report,
            "seconds": round(seconds, 1),
            "config": fields(self.config),
            "encoder": {
                "steps": self.step,
                "train_images": (read_result(self.workdir) or {}).get("train_images"),
                "config": read_config(self.workdir),
            },
            "identity": identity,
            **environment(),
        }
        picture = path.with_suffix(".png")
        draw_confusion(confusion, self.data.class_names, title(result), picture)
        write_json(path, result)


def title(result):
    """A result in one line."""
    accuracy = result["accuracy"]
    low, high = accuracy["interval"]
    return (
        f"{result['config']['dataset']}, {result['protocol']}{' (fast)' * result['fast']}: top-1 "
        f"{accuracy['top1']:.3f} ({low:.3f} to {high:.3f}), top-5 {accuracy['top5']:.3f}"
    )


def draw_confusion(confusion, class_names, heading, path):
    """Draws counts (classes,classes) by true and predicted class, as parts of the true class."""
    parts = confusion / confusion.sum(1, keepdims=True).clip(1)
    named = len(class_names) <= NAMED_CLASSES
    figure, axes = plt.subplots(figsize=(8, 7), layout="constrained")
    display = ConfusionMatrixDisplay(
        parts, display_labels=list(map(plain, class_names)) if named else None
    )
    display.plot(
        ax=axes,
        include_values=named,
        values_format=".2f",
        cmap="Blues",
        xticks_rotation="vertical",
        text_kw={"fontsize": 7},
    )
    if not named:
        axes.xaxis.set_major_locator(plt.MaxNLocator(10, integer=True))
        axes.yaxis.set_major_locator(plt.MaxNLocator(10, integer=True))
    display.im_.colorbar.set_label("part of the images of the true class")
    axes.set_title(heading, fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)
