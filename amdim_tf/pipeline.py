"""Batches: images of a data set become views to train on, or test images to measure on."""

import functools

import tensorflow as tf

from amdim_tf import views
from amdim_tf.distribution import Worker, compiled
from amdim_tf.errors import InputError

SHUFFLE_IMAGES = 16384
TEST_BATCH = 256
AUTOTUNE = tf.data.AUTOTUNE


def steps_per_epoch(data, config):
    """Whole batches in an epoch; the remainder waits for the next, differently shuffled one.

    Raises:
        InputError: a batch larger than the data set.
    """
    if config.batch_size > data.train.size:
        raise InputError(
            f"batch_size must be at most the {data.train.size} training images of "
            f"{config.dataset}. Received: batch_size={config.batch_size}"
        )
    return data.train.size // config.batch_size


def views_of(data, config):
    """The function of a batch's images and draws that makes its views (x1, x2).

    Each view is (B,S,S,3) float32, normalised. Images are uint8 (B,H,W,3); those of different
    shapes are cut to views (B,2,S,S,3) before they form a batch, and lack only colour. Draws are
    `views.draw`'s, but batch first: (B,42,2).
    """
    policy = views.Policy(**config.views)
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
        return normalize(views.recolor(pairs, policy, draws))

    return to_views


def train_batches(data, config, first_step, last_step, to_views=None, worker=None):
    """Batches `((x1, x2), labels)` of the steps `first_step` to `last_step` - 1.

    Views (B,S,S,3) float32, normalised; labels (B,) int64. What a step sees is a function of the
    seed and the step, wherever training started: epochs are shuffled by (seed, epoch), and views
    drawn by (seed, step).

    Args:
        data: a `datasets.Data`.
        config: a config.
        first_step, last_step: ints.
        to_views: makes the views, by default `views_of(data, config)`. Another function, such as
            one that leaves images and draws as they are, leaves that to the training step.
        worker: a `distribution.Worker` among several. It gets its part of each batch, and that in
            one part for each of its replicas.
    """
    worker = worker or Worker()
    # Images of a batch for this process, and parts in which they come.
    mine = config.batch_size * worker.local // worker.replicas
    parts = 1 if worker.alone else worker.local
    part = mine // parts
    epoch_steps = steps_per_epoch(data, config)
    policy = views.Policy(**config.views)
    size, batch = config.image_size, config.batch_size
    same_shape = None not in data.image_shape
    to_views = to_views or views_of(data, config)
    crop_boxes = compiled(views.crop_boxes)

    def decode(_, example):
        record, label = example
        return data.decode(record), label

    def reframe_one(index, example):
        # Images of different shapes are cut to size one by one, before they form a batch.
        record, label = example
        draws = views.draw((config.seed, index), 1)
        if policy.geometry == "crop":
            image, boxes = data.decode_window(record, functools.partial(crop_boxes, draws))
            pair = views.crop_one(image, boxes, size, policy, draws)
        else:
            pair = views.reframe(data.decode(record)[None], size, policy, draws)[:, 0]
        return tf.ensure_shape(pair, (2, size, size, 3)), label

    def epoch(number):
        # The order depends on this function's own seed as well, which would else be the global one.
        tf.compat.v1.set_random_seed(1)
        examples = data.train.examples.shuffle(
            min(SHUFFLE_IMAGES, data.train.size),
            seed=config.seed + number,
            reshuffle_each_iteration=False,
        )
        examples = examples.take(epoch_steps * batch).enumerate()
        if not worker.alone:
            examples = examples.filter(lambda place, _: place % batch // mine == worker.index)
        if same_shape:
            examples = examples.map(decode, num_parallel_calls=AUTOTUNE)
        else:
            first = number * data.train.size
            examples = examples.map(
                lambda place, example: reframe_one(first + place, example),
                num_parallel_calls=AUTOTUNE,
            )
        return examples.batch(part, drop_remainder=True)

    def draw_views(number, example):
        images, labels = example
        step, place = number // parts, worker.index * mine + number % parts * part
        draws = tf.transpose(views.draw((config.seed, step), batch), (2, 0, 1))
        draws = tf.slice(draws, [place, 0, 0], tf.constant([part, *draws.shape[1:]], tf.int64))
        return to_views(images, draws), labels

    first_epoch, skipped = divmod(first_step, epoch_steps)
    last_epoch = -(-last_step // epoch_steps)
    return (
        tf.data.Dataset.range(first_epoch, last_epoch)
        .flat_map(epoch)
        .skip(skipped * parts)
        .enumerate(first_step * parts)
        .take((last_step - first_step) * parts)
        .map(draw_views, num_parallel_calls=AUTOTUNE)
        .apply(tf.data.experimental.assert_cardinality((last_step - first_step) * parts))
        .prefetch(AUTOTUNE)
    )


def test_batches(data, split, config):
    """All of a `split` of `data` as at test time: (normalised images (N,S,S,3), labels (N,))."""

    def transform(record, label):
        image = views.center(data.decode(record)[None], config.image_size)[0]
        image = tf.ensure_shape(image, (config.image_size, config.image_size, 3))
        return views.normalize(image, config.mean, config.std), label

    examples = split.examples.map(transform, num_parallel_calls=AUTOTUNE)
    return examples.batch(TEST_BATCH).prefetch(AUTOTUNE)
