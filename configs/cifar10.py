"""CIFAR-10: 50,000 training and 10,000 test images of 32 pixels, 10 classes.

    python -m amdim_tf.train --dataset=cifar10 --size=small

`small` and `large` are the paper's; `tiny` is for a machine without accelerator and
learns faster than the reference, whose learning rate is 2e-4.
"""

from amdim_tf.config import base_config

# ndf, nrkhs, ndepth, batch_size
SIZES = {"tiny": (32, 256, 2, 64), "small": (128, 1024, 10, 200), "large": (256, 2048, 10, 200)}


def get_config(size):
    config = base_config()
    config.ndf, config.nrkhs, config.ndepth, config.batch_size = SIZES[size]
    config.mean = (125.3 / 255, 123.0 / 255, 113.9 / 255)
    config.std = (63.0 / 255, 62.1 / 255, 66.7 / 255)
    if size == "tiny":
        config.learning_rate = 1e-3
    config.epochs = 300
    config.decays = (250 / 300, 280 / 300)
    return config
