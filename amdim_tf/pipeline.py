"""Batches: images of a data set become views to train on, or test images to measure on."""

import tensorflow as tf

from amdim_tf import views
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


def train_batches(data, config, first_step, last_step):
    """Batches `((x1, x2), labels)` of the steps `first_step` to `last_step` - 1.

    Views (B,S,S,3) float32, normalised; labels (B,) int64. What a step sees is a function of the
    seed and the step, wherever training started: epochs are shuffled by (seed, epoch), and views
    drawn by (seed, step).
    """
    epoch_steps = steps_per_epoch(data, config)
    policy = views.Policy(**config.views)
    size, batch = config.image_size, config.batch_size
    same_shape = None not in data.image_shape

    # XLA fuses the element-wise work of the views, threefold faster even on a CPU.
    @tf.function(jit_compile=True)
    def to_views(images, draws):
        if same_shape:
            pairs = views.two_views(images, size, policy, draws)
        else:
            pairs = views.recolor(tf.transpose(images, (1, 0, 2, 3, 4)), policy, draws)
        return tuple(tf.unstack(views.normalize(pairs, config.mean, config.std)))

    def decode(record, label):
        return data.decode(record), label

    def reframe_one(index, example):
        # Images of different shapes are cut to size one by one, before they form a batch.
        image, label = decode(*example)
        pair = views.reframe(image[None], size, policy, views.draw((config.seed, index), 1))
        return tf.ensure_shape(pair[:, 0], (2, size, size, 3)), label

    def epoch(number):
        # The order depends on this function's own seed as well, which would else be the global one.
        tf.compat.v1.set_random_seed(1)
        examples = data.train.examples.shuffle(
            min(SHUFFLE_IMAGES, data.train.size),
            seed=config.seed + number,
            reshuffle_each_iteration=False,
        )
        if same_shape:
            examples = examples.map(decode, num_parallel_calls=AUTOTUNE)
        else:
            first = number * data.train.size
            examples = examples.enumerate(first).map(reframe_one, num_parallel_calls=AUTOTUNE)
        return examples.batch(batch, drop_remainder=True)

    def draw_views(step, example):
        images, labels = example
        return to_views(images, views.draw((config.seed, step), batch)), labels

    first_epoch, skipped = divmod(first_step, epoch_steps)
    last_epoch = -(-last_step // epoch_steps)
    return (
        tf.data.Dataset.range(first_epoch, last_epoch)
        .flat_map(epoch)
        .skip(skipped)
        .enumerate(first_step)
        .take(last_step - first_step)
        .map(draw_views, num_parallel_calls=AUTOTUNE)
        .apply(tf.data.experimental.assert_cardinality(last_step - first_step))
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
