"""The encoders that test_every_encoder checks, each as a user would name it in a config.

`every_encoder.py FILE STRATEGY WHAT NAME...` runs them on the devices of STRATEGY, in a process of
its own: logical devices have to be made before TensorFlow touches the processor.
"""

import functools
import sys

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from same import save

from amdim_tf.config import load_config
from amdim_tf.distribution import choose_strategy
from amdim_tf.encoders.backbone import Backbone
from amdim_tf.training.building import build_encoder, check_config
from amdim_tf.training.model import AMDIM
from amdim_tf.training.optimizer import AdamL2

SMALL = {"ndf": 4, "nrkhs": 32, "ndepth": 1, "batch_size": 8, "steps": 4, "log_every": 1}


def hub(shape):
    """A backbone of keras-hub, from code."""
    import keras_hub

    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 128],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=shape,
    )


class HandMade(keras.Model):
    """A subclassed model, with batch norm and dropout in layers of its own."""

    def __init__(self):
        super().__init__()
        self.stages = [keras.layers.Conv2D(width, 3, 2, "same") for width in (8, 16, 24)]
        self.norms = [keras.layers.BatchNormalization() for _ in self.stages]
        self.dropout = keras.layers.Dropout(0.5)
        self.top = keras.layers.Dense(10)

    def call(self, x, training=None):
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = ops.relu(norm(stage(x), training=training))
        return self.top(self.dropout(ops.mean(x, axis=(1, 2)), training=training))


def hand_made(shape):
    """An encoder for a model that says nothing of its input."""
    return Backbone(HandMade(), shape[0], "tf")


ENCODERS = {
    "amdim at 32": {},
    "amdim at 64": {"image_size": 64},
    "amdim at 128": {"image_size": 128},
    "amdim at 256": {"image_size": 256},
    "keras-hub": {"encoder": "every_encoder:hub"},
    "hand-made": {"encoder": "every_encoder:hand_made"},
    "mobilenetv3small": {"encoder": "mobilenetv3small"},
    "resnet50v2": {"encoder": "resnet50v2"},
    "efficientnetv2b0": {"encoder": "efficientnetv2b0"},
    "convnexttiny": {"encoder": "convnexttiny"},
}


@functools.cache
def checked(name):
    """A config for the encoder; to check it makes the encoder."""
    config = load_config("photo_patches")
    config.update(SMALL | {"probe_images": 60} | ENCODERS[name])
    check_config(config)
    return config


def config_of(name, **fields):
    """A checked config for the encoder, to be changed at will."""
    config = checked(name).copy_and_resolve_references()
    config.update(fields)
    return config


def weights_after_training(strategy, name):
    """Those of encoder and phi after three updates in float64, and the losses."""
    config, generator = config_of(name), np.random.default_rng(0)
    size = config.image_size
    x1, x2 = generator.normal(size=(2, 12, size, size, 3))
    with strategy.scope():
        keras.utils.set_random_seed(0)
        encoder = build_encoder(config, "float64")
        model = AMDIM(encoder, classes=0, nrkhs=config.nrkhs, dtype="float64")
        model.compile(optimizer=AdamL2(1e-3), jit_compile=False)
    logs = model.fit((x1, x2), batch_size=4, shuffle=False, verbose=0).history
    return [np.array(logs["loss"]), *model.get_weights()]


def gradients(strategy, name):
    """Those of all weights by a sum over features in float64, and the averages of batch norm."""
    config, generator = config_of(name), np.random.default_rng(0)
    size, replicas = config.image_size, strategy.num_replicas_in_sync
    views = generator.normal(size=(2, 4, size, size, 3))
    with strategy.scope():
        keras.utils.set_random_seed(0)
        encoder = build_encoder(config, "float64")
    weights = [variable.value for variable in encoder.trainable_variables]

    def share(context):
        own = np.split(views, replicas, axis=1)[context.replica_id_in_sync_group]
        return tf.constant(own.reshape(-1, *own.shape[2:]))

    def of_replica(images):
        with tf.GradientTape() as tape:
            features = encoder(images, training=True, views=2)
            total = sum(tf.reduce_sum(tf.sin(value)) for value in features.values())
        found = tape.gradient(total, weights, unconnected_gradients="zero")
        return tf.distribute.get_replica_context().all_reduce("SUM", found)

    images = strategy.experimental_distribute_values_from_function(share)
    found = strategy.run(of_replica, (images,))
    first = [strategy.experimental_local_results(each)[0].numpy() for each in found]
    return [*first, *(np.array(each) for each in encoder.non_trainable_variables)]


# What is compared on two replicas and one.
COMPARED = {"training": weights_after_training, "gradients": gradients}

if __name__ == "__main__":
    path, strategy_name, what, *names = sys.argv[1:]
    chosen = choose_strategy(strategy_name)
    save(path, {name: COMPARED[what](chosen, name) for name in names})
