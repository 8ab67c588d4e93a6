"""CIFAR-100: 50,000 training and 10,000 test images of 32 pixels, 100 classes.

    python -m amdim_tf.train --dataset=cifar100 --size=large --data_dir=DIR
    python -m amdim_tf.evaluate --workdir=runs/cifar100-large-seed0 --data_dir=DIR

Sizes, schedule and hardware are those of CIFAR-10.
"""

from amdim_tf.config import config_module

CIFAR10 = config_module("cifar10")
SIZES, get_config = CIFAR10.SIZES, CIFAR10.get_config
IMAGES = {"train": 50000, "test": 10000}
# Table 2, see CIFAR-10.
PAPER = {
    (2, "Highway Network (sup)"): {"linear": 67.61},
    (2, "ResNet-101 (sup)"): {"linear": 74.84},
    (2, "WideResNet-40-4 (sup)"): {"linear": 79.82},
    (2, "AMDIM - small"): {"size": "small", "linear": 68.1, "mlp": 71.5},
    (2, "AMDIM - large"): {"size": "large", "linear": 70.2, "mlp": 72.8},
}
