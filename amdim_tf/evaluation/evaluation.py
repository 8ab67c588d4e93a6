"""Measures what the encoder of a run has learned, by each of the protocols (4).

evaluation/NAME.json, NAME.png    a result and its confusion matrix
evaluation/NAME.IDENTITY/         a training of classifiers that is not finished
evaluation/features/              see `amdim_tf.evaluation.features`
evaluation/index-*.npz            labels of large sets, see `amdim_tf.data.splits`
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import shutil
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from amdim_tf.config import MEANS, fields, file_name
from amdim_tf.data import sources
from amdim_tf.data.data import Data
from amdim_tf.data.splits import Split
from amdim_tf.distribution import Devices, check_agreement, check_batch, choose_devices
from amdim_tf.errors import InputError
from amdim_tf.evaluation import classifiers, fractions
from amdim_tf.evaluation.features import Features, digest, encode, kept_features
from amdim_tf.evaluation.pictures import draw_confusion
from amdim_tf.evaluation.predictions import Predictions
from amdim_tf.evaluation.protocols import NEIGHBOURS, PROTOCOLS
from amdim_tf.evaluation.protocols.protocol import find_protocol
from amdim_tf.evaluation.regions import Regions
from amdim_tf.evaluation.results import title
from amdim_tf.files import local, read_json, write_json
from amdim_tf.lock import locked
from amdim_tf.training.building import check_config
from amdim_tf.training.run_directory import RunDirectory, environment, load_model
from amdim_tf.training.run_files import read_config, read_result
from amdim_tf.typing import Config


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an encoder is measured.

    Args:
        fast: whether linear and MLP classifiers learn from features that are computed once,
            instead of from augmented images by the reference's schedule.
        label_fraction: fraction of the training images that classifiers and neighbours learn from.
        features: what they see of an image: "f1", "mixture" for all of its mixture features, or a
            map "f<n>" for protocols of maps.
        neighbours: number of votes of the protocol knn.
    """

    fast: bool = False
    label_fraction: float = 1.0
    features: str = "f1"
    neighbours: int = NEIGHBOURS

    def __post_init__(self):
        if self.neighbours < 1:
            raise InputError(f"knn must be at least 1. Received: knn={self.neighbours}")
        if not 0 < self.label_fraction <= 1:
            raise InputError(f"label_fraction must lie in 0..1. Received: {self.label_fraction:g}")


def evaluate(
    workdir: str | pathlib.Path,
    config: Config,
    chosen: Sequence[str] = PROTOCOLS,
    data_dir: str | pathlib.Path | None = None,
    fast: bool = False,
    label_fraction: float = 1.0,
    features: str = "f1",
    strategy: str = "none",
    xla: str = "off",
    neighbours: int = NEIGHBOURS,
) -> dict[str, dict[str, Any]]:
    """Measures the encoder of a run; writes a result and a picture for each protocol.

    A protocol that was measured before, on the same encoder with the same settings, is not measured
    again. A measurement that was stopped goes on from its last checkpoint.

    Args:
        workdir: the run directory.
        config: the config for the data and the classifiers' schedule, see `evaluation_config`.
        chosen: names of protocols, see `protocols.protocol`.
        data_dir: the folder of the data, see `sources.load`.
        fast, label_fraction, features, neighbours: see `Settings`.
        strategy, xla: see `distribution.choose_devices`.

    Returns:
        {protocol: result}, as in `workdir`/evaluation.

    Raises:
        InputError: the run has no checkpoint or not the features, the data has no classes, or too
            many images are bad.
        Stopped: by SIGINT or SIGTERM, after a checkpoint was saved.
    """
    settings = Settings(fast, label_fraction, features, neighbours)
    for name in chosen:
        kind = find_protocol(name)
        if re.fullmatch(r"f([2-9]|[1-9]\d+)", features) and not kind.of_maps:
            raise InputError(f"{name} classifies f1, not maps. Received: features={features}")
    read_config(workdir)  # a wrong directory is found before the data is read
    devices = choose_devices(strategy, xla)  # before TensorFlow runs anything
    check_config(config)
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
    """Measures the encoder of a run on a data set.

    Args:
        workdir: the run directory.
        config, data: a config and a `Data` with classes.
        devices: `distribution.Devices`.
        settings: `Settings`.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        config: Config,
        data: Data,
        devices: Devices,
        settings: Settings,
    ):
        self.workdir, self.config, self.data = workdir, config, data
        self.devices, self.settings = devices, settings
        self.folder, self.chief = workdir / "evaluation", devices.worker.chief
        self.classes = len(data.class_names)
        self.feature = settings.features
        self.encoder, self.step = self.load()
        assert data.probe and data.test, "data with classes has both"
        self.known_split, self.test_split = data.probe, data.test
        self.places: np.ndarray | None = None
        self.unfinished: set[pathlib.Path] = set()
        if settings.label_fraction < 1:
            labels = data.probe.labels(self.folder)
            self.places = fractions.balanced_places(labels, settings.label_fraction, self.classes)
        self.labelled = data.probe.size if self.places is None else len(self.places)
        if self.chief:
            print(
                f"encoder   {workdir}, after {self.step} steps, {config.precision}\n"
                f"data      {config.dataset}: {self.labelled} labelled and {data.test.size} test "
                f"images, {len(data.class_names)} classes" + f" ({data.note})" * bool(data.note),
                flush=True,
            )

    def load(self) -> tuple[keras.Model, int]:
        """The encoder as it was trained, on all devices, and the step of its training."""
        with self.devices.strategy.scope():
            model, step = load_model(self.workdir, self.config.precision)
            maps = {f"f{n}": model.encoder for n in model.encoder.scales}
            offered = maps | model.objective.representations()
            if self.settings.features not in offered:
                raise InputError(
                    f"features must be one of {', '.join(offered)} for workdir={self.workdir}. "
                    f"Received: features={self.settings.features}"
                )
            if self.settings.features == "f1":
                self.feature = f"f1, {model.objective.role_of_f1}"
            return offered[self.settings.features], step

    def measure(self, protocol: str) -> dict[str, Any]:
        """The result of a protocol, from the disk, or measured now and written."""
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
                assert found, "the chief has predictions"
                self.write(path, protocol, found, identity, time.time() - started)
            check_agreement(self.devices.strategy, f"{name} measured")
            result = read_json(path)
        if self.chief:
            print(title(result) + ", measured before" * known, flush=True)
        self.unfinished.add(self.training_path(protocol))
        return result

    def tidy(self) -> None:
        """Removes the trainings of classifiers after their results are written."""
        for path in self.unfinished if self.chief else ():
            shutil.rmtree(path, ignore_errors=True)

    # Several protocols need these; each is computed once.

    @functools.cached_property
    def known_features(self) -> Features:
        """The `Features` to learn from."""
        if self.places is None:
            return self.encode(self.known_split)
        everything = kept_features(self.encoder, self.known_split, *self.kept)
        return everything.within(self.places) if everything else self.encode(self.subset)

    @functools.cached_property
    def test_features(self) -> Features:
        """The `Features` of the test images."""
        return self.encode(self.test_split)

    @functools.cached_property
    def subset(self) -> Split:
        """The images to learn from, if not all."""
        assert self.places is not None
        return self.known_split.subset(self.places, self.folder)

    @functools.cached_property
    def probes(self) -> dict[str, Predictions] | None:
        """{"linear", "mlp": Predictions} on the frozen encoder; see `Protocol.predictions`."""
        if not self.settings.fast:
            return self.on_views("linear", self.encoder, frozen=True)
        features = self.known_features, self.test_features
        if not self.chief:
            return None
        run = self.open_training("linear")
        return classifiers.fit_on_features(*features, self.classes, self.config, run)

    @property
    def kept(self) -> tuple[Config, pathlib.Path, int]:
        """The arguments of `encode` that say which features are kept, and where."""
        return self.config, self.folder / "features", self.step

    def encode(self, split: Split) -> Features:
        """The `Features` of a `split`, kept in the run's folder of features."""
        config, folder, step = self.kept
        if self.chief:
            print(f"features  of {split.size} images, in {folder}", flush=True)
        return encode(self.encoder, self.data, split, config, self.devices, folder, step)

    def on_views(self, protocol: str, encoder: keras.Model, frozen: bool) -> dict[str, Predictions]:
        """{"linear", "mlp": Predictions} by classifiers that learn from augmented images."""
        data = self.data
        if self.places is not None:
            data = dataclasses.replace(data, probe=self.subset)
        config = self.config.copy_and_resolve_references()
        together = self.devices.worker.replicas * max(config.micro_batch, 1)
        if self.labelled < config.batch_size:
            config.batch_size = self.labelled // together * together
        check_batch(config.batch_size, config.micro_batch, self.devices.strategy)
        with self.devices.strategy.scope():
            model = classifiers.build_classifier(encoder, config, data, self.devices, frozen)
        run = self.open_training(protocol)
        return classifiers.fit_on_views(model, data, config, self.devices, run)

    # Names and identities

    def name(self, protocol: str) -> str:
        """The name of a result's files, without extension."""
        settings = self.settings
        words = [file_name(self.config.dataset), file_name(protocol)]
        words += ["fast"] * self.fast(protocol)
        words += [f"{settings.label_fraction:g}"] * (settings.label_fraction < 1)
        words += [settings.features] * (settings.features != "f1")
        if find_protocol(protocol).votes and settings.neighbours != NEIGHBOURS:
            words.append(f"{settings.neighbours}")
        return "-".join(words)

    def fast(self, protocol: str) -> bool:
        """Whether the setting `fast` changes how a protocol measures."""
        return self.settings.fast and len(find_protocol(protocol).ways) > 1

    def identity(self, protocol: str) -> str:
        """A text that differs if encoder, data or settings of a result differ."""
        how = {name: x for name, x in fields(self.config).items() if name not in MEANS}
        settings = dataclasses.asdict(self.settings) | {"fast": self.name(protocol)}
        if not find_protocol(protocol).votes:
            del settings["neighbours"]
        what = [self.step, self.encoder_digest, self.known_split.digest, self.test_split.digest]
        text = json.dumps([how, settings, what, self.data.class_names], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def encoder_digest(self) -> str:
        """See `features.digest`."""
        return digest(self.encoder)

    def training_path(self, protocol: str) -> pathlib.Path:
        """The folder that keeps the training of a protocol's classifiers, which some share."""
        shared = find_protocol(protocol).training or protocol
        name = self.name(shared).replace("-linear", "-probes")
        return self.folder / f"{name}.{self.identity(shared)[:8]}"

    def open_training(self, protocol: str) -> RunDirectory:
        """The `RunDirectory` that keeps the training of a protocol's classifiers."""
        path = self.training_path(protocol)
        config = fields(self.config) | {"identity": self.identity(protocol)}
        run = RunDirectory(path, config) if self.chief else None
        if self.distributed(protocol):
            check_agreement(self.devices.strategy, f"{path} is there")
        return run or RunDirectory(path, config)

    def distributed(self, protocol: str) -> bool:
        """Whether all workers train the classifiers of a protocol together."""
        return "views" in find_protocol(protocol).ways and not self.fast(protocol)

    def write(
        self,
        path: pathlib.Path,
        protocol: str,
        found: Predictions | Regions,
        identity: str,
        seconds: float,
    ) -> None:
        """Writes the result of `found`, and its confusion matrix."""
        report, confusion = found.report(self.data.class_names)
        result = {
            "protocol": protocol,
            "fast": self.fast(protocol),
            "label_fraction": self.settings.label_fraction,
            "features": self.settings.features,
            "labelled_images": self.labelled,
            # Bad images have no scores.
            "test_images": found.images,
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
        draw_confusion(confusion, list(report["per_class"]), title(result), picture)
        write_json(path, result)
