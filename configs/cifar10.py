"""CIFAR-10: 50,000 training and 10,000 test images of 32 pixels, 10 classes.

    python -m amdim_tf.train --dataset=cifar10 --size=large --data_dir=DIR
    python -m amdim_tf.evaluate --workdir=runs/cifar10-large-seed0 --data_dir=DIR

`small` and `large` are those of the paper's table, `xlarge` is that of its text, which the authors
call a mistake (amdim-public, issue 3; the batch of 480 is from there, too). The paper names 4 to 8
Tesla V100 for its experiments, and no hours. `tiny` is for a machine without accelerator and learns
faster than the reference, whose learning rate is 2e-4.
"""

from amdim_tf.config import base_config

# ndf, nrkhs, ndepth, batch_size
SIZES = {
    "tiny": (32, 256, 2, 64),
    "small": (128, 1024, 10, 480),
    "large": (256, 2048, 10, 480),
    "xlarge": (320, 1280, 10, 480),
}
IMAGES = {"train": 50000, "test": 10000}
# Accuracies in per cent by table and row of the paper, and which run of ours a row stands for.
PAPER = {
    (2, "Highway Network (sup)"): {"linear": 92.28},
    (2, "ResNet-101 (sup)"): {"linear": 93.58},
    (2, "WideResNet-40-4 (sup)"): {"linear": 95.47},
    (2, "AMDIM - small"): {"size": "small", "linear": 89.5, "mlp": 91.4},
    (2, "AMDIM - large"): {"size": "large", "linear": 91.2, "mlp": 93.1},
}


def get_config(size):
    config = base_config()
    config.ndf, config.nrkhs, config.ndepth, config.batch_size = SIZES[size]
    config.mean = (125.3 / 255, 123.0 / 255, 113.9 / 255)
    config.std = (63.0 / 255, 62.1 / 255, 66.7 / 255)
    if size == "tiny":
        config.learning_rate = 1e-3
    return config
