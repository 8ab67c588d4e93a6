"""Segmentation: a linear classifier on each location of a map, against masks of the images."""

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from amdim_tf.data.decoding import checked
from amdim_tf.data.pipeline import transformed
from amdim_tf.data.preprocess import Preprocess
from amdim_tf.data.views import central_mask
from amdim_tf.errors import InputError
from amdim_tf.evaluation.cells import VOID, Cells
from amdim_tf.evaluation.classifiers import trained_on_features
from amdim_tf.evaluation.features import Features, Kept, preparation
from amdim_tf.evaluation.protocols.protocol import Protocol
from amdim_tf.evaluation.regions import Regions
from amdim_tf.objectives.multiscale import parse_tasks
from amdim_tf.progress import progress

if TYPE_CHECKING:
    from amdim_tf.evaluation.evaluation import Evaluation

BATCH = 64


class Segmentation(Protocol):
    """Measures the mean intersection over union of a linear classifier, trained with an MLP.

    A location learns the class that most pixels of its cell have, and predicts it for all of them.
    The map is the largest that the run's tasks name, or that of --features. What is learned from is
    kept on the disk until the end; of test images nothing is kept.
    """

    of_maps = True

    def predictions(self, evaluation: "Evaluation") -> Regions | None:
        if not evaluation.data.masks:
            raise InputError(
                "segmentation needs a data set of TFDS with masks, a second image of one channel "
                f"of 8 bits, such as oxford_iiit_pet. Received: {evaluation.config.dataset}"
            )
        if not evaluation.chief:
            return None
        reader = Reader(evaluation, scale(evaluation))
        kept = reader.known()
        values = np.setdiff1d(kept.labels, -1)
        if len(values) < 2:
            raise InputError(
                "Masks must have two classes or more, other than 255. "
                f"Received: {', '.join(map(str, values)) or 'none'}"
            )
        labels = np.where(kept.labels < 0, -1, np.searchsorted(values, kept.labels))
        features, run = Features(kept.values(), labels), evaluation.open_training("segmentation")
        model = trained_on_features(features, len(values), evaluation.config, run)
        classify = tf.function(lambda rows: model(rows, training=False)["linear"])
        regions = Regions()
        for _, counts, rows in reader.batches("test"):
            logits = classify(rows).numpy()
            if not np.isfinite(logits).all():
                raise InputError("The linear classifier must give finite numbers. Received: others")
            best = values[logits.argmax(1)].reshape(counts.shape[:2])
            for counts_of_image, predicted in zip(counts, best, strict=True):
                regions.add(counts_of_image, predicted)
        shutil.rmtree(kept.folder, ignore_errors=True)  # features of maps are large
        if not regions.confusion.any():
            raise InputError(
                f"Test images must have pixels of a class. Received: {regions.images} without"
            )
        return regions


def scale(evaluation: "Evaluation") -> int:
    """n of the map f<n> that is classified."""
    name, encoder = evaluation.settings.features, evaluation.encoder
    if name == "f1":
        tasks = parse_tasks(evaluation.config.tasks, encoder.scales)
        return max(max(pair) for pair in tasks)
    if name.startswith("f"):
        return int(name[1:])
    raise InputError(f"segmentation needs a map f<n>. Received: features={name}")


class Reader:
    """Reads images with their masks, as the cells of the map f<n>."""

    def __init__(self, evaluation: "Evaluation", n: int):
        self.evaluation, self.n = evaluation, n
        encoder, config = evaluation.encoder, evaluation.config
        self.cells = Cells.of(encoder, n)
        self.prepare = Preprocess.of(config)
        shape = (None, config.image_size, config.image_size, config.channels)

        @tf.function(input_signature=[tf.TensorSpec(shape)], autograph=False)
        def encode(images):
            features = tf.cast(encoder(images, training=False)[f"f{n}"], tf.float32)
            return tf.reshape(features, (-1, features.shape[-1]))

        self.encode = encode

    def known(self) -> Kept:
        """The features of the cells to learn from, and their commonest value as labels.

        Those that are on the disk already are not computed again.
        """
        evaluation, cells = self.evaluation, self.n**2
        config, folder, step = evaluation.kept
        description = {
            "step": step,
            "encoder": evaluation.encoder_digest,
            "precision": evaluation.encoder.dtype_policy.name,
            "map": self.n,
            "data": evaluation.known_split.digest,
            "label_fraction": evaluation.settings.label_fraction,
            "images": preparation(config),
        }
        width = evaluation.encoder.scales[self.n]
        shape = (evaluation.labelled * cells, width)
        kept = Kept(folder, description, shape, writes=True)
        place = kept.done
        for places, counts, rows in self.batches("known", place // cells):
            size = min(BATCH, evaluation.labelled - place // cells)
            good = np.zeros((size, cells, width), "float32")
            good[places] = rows.reshape(len(places), cells, width)
            labels = np.full((size, cells), -1)
            labels[places] = np.where(counts.any(2), counts.argmax(2), -1)
            kept.labels[place : place + size * cells] = labels.ravel()
            kept.write(place, good.reshape(-1, width))
            place += size * cells
        kept.finish(place)
        return kept

    def batches(self, kind: str, first: int = 0) -> Iterator[tuple]:
        """Yields (places (G,), counts (G,n*n,256), features (G*n*n,D)) of batches of images.

        Args:
            kind: "known" or "test".
            first: the image to begin with.
        """
        data, size = self.evaluation.data, self.evaluation.test_split.size
        assert data.masks, "it was checked that there are masks"
        examples = data.masks(kind)
        if kind == "known":
            size = self.evaluation.labelled
            examples = _at(examples, self.evaluation.places)

        def one(image, mask):
            pixels, mask = data.decode(image), tf.io.decode_png(mask, 1)[..., 0]
            same = tf.reduce_all(tf.shape(pixels)[:2] == tf.shape(mask))
            mask = checked(mask, same, "A mask must be as large as its image")
            counts = self.cells.count(central_mask(mask, self.prepare.image_size))
            return self.prepare(pixels[None])[0], counts

        def decode(images, masks):
            count = tf.size(images, tf.int64)
            good = transformed(one, tf.range(count), count, images, masks)
            return good.map(lambda places, values: (images, places[:-1], *values))

        batches = examples.skip(first).batch(BATCH).flat_map(decode).prefetch(tf.data.AUTOTUNE)
        with progress(size, first, leave=False, delay=5) as bar:
            for images, places, pixels, counts in batches.as_numpy_iterator():
                data.lose(np.delete(images, places).tolist())
                counts = counts[:-1].copy()
                counts[..., VOID] = 0
                yield places, counts, self.encode(pixels[:-1]).numpy()
                bar.update(len(images))


def _at(examples, places):
    """The `examples` at `places` (N,), in order; all if they are None."""
    if places is None:
        return examples
    wanted = np.zeros(places.max() + 1, bool)
    wanted[places] = True
    wanted = tf.constant(wanted)
    examples = examples.take(len(wanted)).enumerate()
    return examples.filter(lambda i, _: wanted[i]).map(lambda _, example: example)
