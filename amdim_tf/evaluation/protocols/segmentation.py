"""Segmentation: a linear classifier on each location of a map, against masks of the images."""

import shutil
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from amdim_tf.data.decoding import checked
from amdim_tf.data.pipeline import transformed
from amdim_tf.data.preprocess import Preprocess
from amdim_tf.errors import InputError
from amdim_tf.evaluation.cells import VALUES, VOID, Cells, central_mask
from amdim_tf.evaluation.classifiers import fit_on_features
from amdim_tf.evaluation.features import Features, Kept
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
    The map is the largest that the run's tasks name, or that of --features.
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
        n = self.scale(evaluation)
        known, test = (Segments(evaluation, n, kind) for kind in ("known", "test"))
        values = np.union1d(known.values, test.values)
        features = known.features(values), test.features(values)
        if len(np.unique(features[0].labels)) < 2:
            raise InputError(
                "Masks must have two classes or more, other than 255. "
                f"Received: {', '.join(map(str, values)) or 'none'}"
            )
        run = evaluation.open_training("segmentation")
        found = fit_on_features(*features, len(values), evaluation.config, run)["linear"]
        confusions = test.confusions(values, found.ranked[:, 0], features[1].rows)
        for each in (known, test):
            each.remove()
        return Regions(confusions, [str(value) for value in values])

    @staticmethod
    def scale(evaluation: "Evaluation") -> int:
        """n of the map f<n> that is classified."""
        name, encoder = evaluation.settings.features, evaluation.encoder
        if name == "f1":
            tasks = parse_tasks(evaluation.config.tasks, encoder.scales)
            return max(max(pair) for pair in tasks)
        if name.startswith("f"):
            return int(name[1:])
        raise InputError(f"segmentation needs a map f<n>. Received: features={name}")


class Segments:
    """The cells of the map f<n> in the images of a split, with their features and pixels.

    Attributes:
        values: the classes (K,) that masks have, as numbers.
    """

    def __init__(self, evaluation: "Evaluation", n: int, kind: str):
        self.data, self.encoder, self.n = evaluation.data, evaluation.encoder, n
        self.cells = Cells.of(self.encoder, n)
        split, places = evaluation.test_split, None
        if kind == "known":
            split, places = evaluation.known_split, evaluation.places
        self.size = split.size if places is None else len(places)
        config, folder, step = evaluation.kept
        self.prepare = Preprocess(config.image_size, config.mean, config.std)
        description = {
            "step": step,
            "encoder": evaluation.encoder_digest,
            "precision": self.encoder.dtype_policy.name,
            "map": n,
            "data": split.digest,
            "label_fraction": evaluation.settings.label_fraction if kind == "known" else 1,
            "images": [config.dataset, config.image_size, *config.mean, *config.std],
        }
        shape = (self.size * n * n, self.encoder.scales[n])
        self.kept = Kept(folder, description, shape, writes=True)
        # Most masks have few of the values, so only those of a batch are kept.
        self.counted: list[tuple[np.ndarray, np.ndarray]] = []
        self._read(self._examples(kind, places))
        self.values = np.unique(np.concatenate([values for values, _ in self.counted]))

    def features(self, values: np.ndarray) -> Features:
        """The `Features` of the cells, labelled by the commonest of the classes `values`."""
        counts = np.concatenate([self._counts(i, values) for i in range(len(self.counted))])
        labels = np.where(counts.any(1), counts.argmax(1), -1)
        return Features(self.kept.values(), labels)

    def confusions(self, values: np.ndarray, found: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Pixels (N,K,K) of each image by class and by that `found` (R,) for the cells `rows`."""
        predicted = np.full(self.size * self.n**2, -1)
        predicted[rows] = found
        by_image = predicted.reshape(self.size, -1)
        confusions = np.zeros((self.size, len(values), len(values)), "int64")
        first = 0
        for i in range(len(self.counted)):
            counts = self._counts(i, values).reshape(-1, self.n**2, len(values))
            for counts_of_image in counts:
                np.add.at(confusions[first].T, by_image[first], counts_of_image)
                first += 1
        return confusions

    def remove(self) -> None:
        """Removes the features from the disk: those of maps are large."""
        shutil.rmtree(self.kept.folder, ignore_errors=True)

    def _counts(self, i, values):
        """The pixels (R,K) that the cells of batch `i` have of each of `values`."""
        found, counts = self.counted[i]
        spread = np.zeros((len(counts), len(values)), counts.dtype)
        spread[:, np.searchsorted(values, found)] = counts
        return spread

    def _examples(self, kind, places):
        """The dataset of (image, mask) of the images that count."""
        examples = self.data.masks(kind)
        if places is None:
            return examples
        wanted = np.zeros(places.max() + 1, bool)
        wanted[places] = True
        wanted = tf.constant(wanted)
        examples = examples.take(len(wanted)).enumerate()
        return examples.filter(lambda i, _: wanted[i]).map(lambda _, example: example)

    def _read(self, examples):
        """Counts the pixels of all cells, and writes the features that are not there yet."""
        feature = f"f{self.n}"
        side = (None, self.encoder.image_size, self.encoder.image_size, self.data.channels)

        @tf.function(input_signature=[tf.TensorSpec(side)], autograph=False)
        def encode(images):
            features = tf.cast(self.encoder(images, training=False)[feature], tf.float32)
            return tf.reshape(features, (-1, features.shape[-1]))

        def one(image, mask):
            pixels, mask = self.data.decode(image), tf.io.decode_png(mask, 1)[..., 0]
            same = tf.reduce_all(tf.shape(pixels)[:2] == tf.shape(mask))
            mask = checked(mask, same, "A mask must be as large as its image")
            counts = self.cells.count(central_mask(mask, self.encoder.image_size))
            return self.prepare(pixels[None])[0], counts

        def decode(images, masks):
            count = tf.size(images, tf.int64)
            good = transformed(one, tf.range(count), count, images, masks)
            return good.map(lambda places, values: (images, places, *values))

        batches = examples.batch(BATCH).flat_map(decode).prefetch(tf.data.AUTOTUNE)
        place = 0
        with progress(self.size, leave=False, delay=5) as bar:
            for images, places, pixels, counts in batches.as_numpy_iterator():
                places, cells = places[:-1], len(images) * self.n**2
                self.data.lose(np.delete(images, places))
                known = np.zeros((len(images), self.n**2, VALUES), "uint16")
                known[places] = np.minimum(counts[:-1], np.iinfo("uint16").max)
                known = known.reshape(-1, VALUES)
                values = np.setdiff1d(np.flatnonzero(known.any(0)), VOID)
                self.counted.append((values, known[:, values]))
                if place >= self.kept.done and len(places):
                    rows = np.zeros((len(images), self.n**2, self.kept.shape[1]), "float32")
                    found = encode(pixels[:-1]).numpy()
                    rows[places] = found.reshape(len(places), *rows.shape[1:])
                    self.kept.write(place, rows.reshape(cells, -1))
                place += cells
                bar.update(len(images))
        self.kept.finish(place)
