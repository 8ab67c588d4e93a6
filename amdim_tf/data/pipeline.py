"""Batches: images of a data set become views to train on, or test images to measure by."""

import functools
import itertools
from collections.abc import Callable, Iterator

import tensorflow as tf

from amdim_tf.data import views
from amdim_tf.data.data import UNLABELLED, Data
from amdim_tf.data.filters import own_layer
from amdim_tf.data.policy import Policy
from amdim_tf.data.splits import Split
from amdim_tf.distribution import Worker, compiled
from amdim_tf.errors import InputError
from amdim_tf.typing import Config, Tensor

TEST_BATCH = 256
AUTOTUNE = tf.data.AUTOTUNE
# Nothing that `tf.data` maps needs AutoGraph, whose conversion takes as long as all the tracing.
as_written = tf.autograph.experimental.do_not_convert


def steps_per_epoch(data: Data, config: Config) -> int:
    """Full batches in an epoch; the remainder waits for the next, differently shuffled one.

    Raises:
        InputError: a batch larger than the data set.
    """
    if config.batch_size > data.train.size:
        raise InputError(
            f"batch_size must be at most the {data.train.size} training images of "
            f"{config.dataset}. Received: batch_size={config.batch_size}"
        )
    return data.train.size // config.batch_size


def views_of(data: Data, config: Config) -> Callable:
    """The function that makes views (x1, x2) from the images and the draws of a batch.

    Each view is (B,S,S,C) float32, normalised. Images are (B,H,W,C); those of different shapes are
    cut to views (B,V,S,S,C) before they form a batch, and only their colours change
    here. Draws are those of `views.draw`, but batch first: (B,47,V).
    """
    policy = Policy(**config.views)
    shape = (config.image_size, config.image_size, data.channels)
    layer = own_layer(policy.layer, shape) if policy.layer else None
    reframe = compiled(
        lambda images, draws: views.reframe(images, config.image_size, policy, draws)
    )
    normalize = compiled(
        lambda pairs: tuple(tf.unstack(views.normalize(pairs, config.mean, config.std)))
    )

    @tf.function(autograph=False)
    def to_views(images, draws):
        draws = tf.transpose(draws, (1, 2, 0))
        if None in data.image_shape:
            pairs = tf.transpose(images, (1, 0, 2, 3, 4))
        else:
            pairs = reframe(images, draws)
        return normalize(views.recolor(pairs, policy, draws, layer))

    return to_views


@as_written
def train_batches(
    data: Data,
    config: Config,
    first_step: int,
    last_step: int,
    to_views: Callable | None = None,
    worker: Worker | None = None,
) -> tf.data.Dataset:
    """Batches `((x1, x2, ...), labels)` of the steps `first_step` to `last_step` - 1.

    Views (B,S,S,C) float32, normalised; labels (B,) int64. What a step sees is a function of the
    seed and the step, wherever training started: (seed, epoch) shuffles an epoch, and (seed, step)
    draws the views.

    Args:
        data: a `Data`.
        config: a config.
        first_step, last_step: the first step, and the one after the last.
        to_views: makes the views, by default `views_of(data, config)`. Another function, such as
            one that leaves images and draws as they are, leaves that to the training step.
        worker: a `distribution.Worker` among several. It gets its share of each batch, in a chunk
            for each of its replicas.
    """
    worker = worker or Worker()
    # Images of a batch for this worker, and of a chunk.
    share = config.batch_size * worker.local // worker.replicas
    chunk = share if worker.alone else share // worker.local
    epoch_steps = steps_per_epoch(data, config)
    policy = Policy(**config.views)
    size, batch = config.image_size, config.batch_size
    to_views = to_views or views_of(data, config)
    crop_boxes = compiled(
        lambda draws, height, width: views.crop_boxes(draws, height, width, policy)
    )

    def epoch(number):
        first = tf.maximum(first_step - number * epoch_steps, 0) * batch
        examples = data.train.shuffled((config.seed, number), first)
        return examples.take(epoch_steps * batch - first)

    def decode(index, record):
        if None not in data.image_shape:
            return tf.ensure_shape(data.decode(record), (*data.image_shape, data.channels))
        # Images of different shapes are cut to size one by one, before they form a batch.
        draws = views.draw((config.seed, index), 1, policy.views)
        if policy.geometry == "crop":
            image, boxes = data.decode_window(record, functools.partial(crop_boxes, draws))
            pair = views.crop_one(image, boxes, size, policy, draws)
        else:
            pair = views.reframe(data.decode(record)[None], size, policy, draws)[:, 0]
        return tf.ensure_shape(pair, (policy.views, size, size, data.channels))

    def decode_batch(indices, example):
        def fill(places, images):
            # The place of a bad image is taken by the next good one, without its label.
            wanted = tf.range(chunk, dtype=tf.int64)
            found = tf.searchsorted(places, wanted)
            labels = tf.where(tf.gather(places, found) == wanted, example[1], UNLABELLED)
            images = tf.gather(images, found % tf.maximum(tf.size(places) - 1, 1))
            return indices, (tf.ensure_shape(images, (chunk, *images.shape[1:])), labels)

        return attempt(data, decode, indices, *example).map(fill)

    def draw_views(indices, example):
        images, labels = example
        step, place = indices[0] // batch, indices[0] % batch
        draws = views.draw((config.seed, step), batch, policy.views)
        draws = tf.transpose(draws, (2, 0, 1))
        draws = tf.slice(draws, [place, 0, 0], tf.constant([chunk, *draws.shape[1:]], tf.int64))
        return to_views(images, draws), labels

    first_epoch, last_epoch = first_step // epoch_steps, -(-last_step // epoch_steps)
    examples = (
        tf.data.Dataset.range(first_epoch, last_epoch)
        .flat_map(epoch)
        .take((last_step - first_step) * batch)
        .enumerate(first_step * batch)
    )
    if not worker.alone:
        examples = examples.filter(lambda index, _: index % batch // share == worker.index)
    batches = examples.batch(chunk, drop_remainder=True)
    if batches.element_spec[1][0].dtype == tf.string:  # else they are pixels
        # Two at a time: none waits for the last image of another.
        batches = batches.interleave(
            decode_batch, cycle_length=2, num_parallel_calls=2, deterministic=True
        )
    return (
        batches.map(draw_views, num_parallel_calls=AUTOTUNE)
        .apply(tf.data.experimental.assert_cardinality((last_step - first_step) * share // chunk))
        .prefetch(AUTOTUNE)
    )


@as_written
def test_batches(
    data: Data,
    split: Split,
    config: Config,
    worker: Worker | None = None,
    first: int = 0,
    prepare: Callable | None = None,
) -> tf.data.Dataset:
    """Batches (places, images, labels) of a `split` of `data` in order, prepared as at test time.

    Batches are all of one size B, so that nothing is traced or compiled for a smaller one, and the
    same for any number of replicas: places (B,) int64 in the split, images (B,S,S,C) float32,
    normalised, and labels (B,) int64, -1 where unknown. Where an image is bad, see `attempt`, or
    where there are no more images, place and label are -1 and the image is zeros.

    Args:
        data: a `Data`.
        split: one of its splits.
        config: a config.
        worker: a `distribution.Worker` among several, by default the only one. Each of its replicas
            takes a batch at a time, and all replicas of all workers take the same number.
        first: the number of the batch to begin with.
        prepare: maps an image (H,W,C) to its entry in `images`; by default the transform of
            test time.
    """
    worker, size = worker or Worker(), batch_size(split)
    numbers = range(first, -(-split.size // size))
    own = [i for i, _ in enumerate(numbers) if worker.owns(i)]
    fillers = -(-len(numbers) // worker.replicas) * worker.local - len(own)

    def normalised(image):
        image = views.center(image[None], config.image_size)[0]
        image = tf.ensure_shape(image, (config.image_size, config.image_size, data.channels))
        return views.normalize(image, config.mean, config.std)

    def transform(_, record):
        return (prepare or normalised)(data.decode(record))

    def decode_batch(places, example):
        def fill(good, images):
            # Where there is no good image, the end that `attempt` adds: zeros.
            end = tf.size(good) - 1
            rows = tf.fill([size], end)
            rows = tf.tensor_scatter_nd_update(rows, good[:-1, None], tf.range(end))

            def known(column):
                return tf.gather(tf.concat([tf.gather(column, good[:-1]), [-1]], 0), rows)

            return known(places), tf.gather(images, rows), known(example[1])

        return attempt(data, transform, places, *example).map(fill)

    examples = split.examples_from(first * size).enumerate(first * size)
    batches = examples.batch(size)
    if not worker.alone:
        batches = batches.enumerate().filter(lambda number, _: worker.owns(number))
        batches = batches.map(lambda _, batch: batch)
    # One batch is decoded at a time: at 128 pixels each takes 50 MB, several times over.
    batches = batches.flat_map(decode_batch)
    if fillers:
        nothing = tf.nest.map_structure(
            lambda spec: tf.zeros(spec.shape, spec.dtype), batches.element_spec
        )
        places, images, labels = nothing
        filler = tf.data.Dataset.from_tensors((places - 1, images, labels - 1))
        batches = batches.concatenate(filler.repeat(fillers))
    known = tf.data.experimental.assert_cardinality(len(own) + fillers)
    return batches.apply(known).prefetch(2)


class Rounds:
    """Iterates over `batches`, a data set of known length, again and again, set up only once.

    TensorFlow takes seconds to set up what decodes images. Between rounds no batch is held.

    Example:
    >>> rounds = Rounds(tf.data.Dataset.range(3))
    >>> [[int(each) for each in rounds] for _ in range(2)]
    [[0, 1, 2], [0, 1, 2]]
    """

    def __init__(self, batches: tf.data.Dataset):
        self.batches = batches
        self._endless: Iterator | None = None

    def __iter__(self) -> Iterator:
        # A round that ends early takes its iterator with it.
        endless, self._endless = self._endless or iter(self._repeated()), None
        yield from itertools.islice(endless, len(self.batches))
        self._endless = endless

    def _repeated(self) -> tf.data.Dataset:
        # Unlike `repeat` within a prefetch, this asks for a round's first batch when it begins.
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        rounds = tf.data.Dataset.counter().flat_map(lambda _: self.batches)
        return rounds.with_options(options)


def batch_size(split: Split) -> int:
    """B, the images in each of the `test_batches` of a `split`."""
    return min(TEST_BATCH, split.size)


def attempt(
    data: Data, transform: Callable, indices: Tensor, records: Tensor, labels: Tensor
) -> tf.data.Dataset:
    """The images of the good records of a batch; `data.failures` is told of the others.

    An image is bad if it cannot be read, decoded or transformed, or if its label is out of range.

    Args:
        data: a `Data`.
        transform: maps an index and a record to an image.
        indices, records, labels: those of the batch, (B,...) each.

    Returns:
        A dataset of one element (places (G+1,) int64, images (G+1,...)): the places of the good
        records in the batch and their images, and at the end, at place B, zeros.
    """
    count = tf.size(labels, tf.int64)
    valid = tf.where((labels >= UNLABELLED) & (labels < max(len(data.class_names), 1)))[:, 0]

    def report(places, images):
        lost = tf.sets.difference([tf.range(count)], [places]).values
        tell = functools.partial(tf.numpy_function, data.lose, [tf.gather(records, lost)], [])
        with tf.control_dependencies([tf.cond(tf.size(lost) > 0, tell, tf.no_op)]):
            return tf.identity(places), images

    return transformed(transform, valid, count, indices, records).map(report)


def transformed(
    transform: Callable, places: Tensor, end: Tensor, *columns: Tensor
) -> tf.data.Dataset:
    """What `transform` makes of the rows at `places` of `columns`, where it raises no error.

    Args:
        transform: maps an entry of each column to tensors of known shapes.
        places: (P,) int64.
        end: () int64.
        columns: (B,...) each.

    Returns:
        A dataset of one element (places (G+1,), values (G+1,...)): the places of the rows that
        could be transformed with their values, and after them `end` with zeros.
    """
    rows = places, *(tf.gather(column, places) for column in columns)

    def one(place, *row):
        return place, transform(*row)

    good = tf.data.Dataset.from_tensor_slices(rows).map(one, AUTOTUNE)
    value = good.element_spec[1]
    nothing = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), value)
    last = tf.data.Dataset.from_tensors((end, nothing))
    return good.ignore_errors().concatenate(last).batch(tf.size(places, tf.int64) + 1)
