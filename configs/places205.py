"""Places205: 2,448,873 training and 20,500 validation images, at 128 pixels, 205 classes.

    python -m amdim_tf.evaluate --workdir=runs/imagenet2012-large-+strong_aug-seed0 \\
        --dataset=places205 --data_dir=DIR
    python -m amdim_tf.train --dataset=places205 --data_dir=DIR

TFDS does not have it: DIR holds train/<class>/ and val/<class>/. The first command is the paper's
transfer of an ImageNet encoder; hardware is that of ImageNet.
"""

from amdim_tf.config import config_module

IMAGENET = config_module("imagenet2012")
SIZES = IMAGENET.SIZES
IMAGES = {"train": 2448873, "test": 20500}
# Accuracies in per cent of ImageNet's encoders, see CIFAR-10.
PAPER = {
    (1, "ResNet50v2 (sup)"): {"linear": 61.6},
    (1, "AMDIM (sup)"): {"size": "large", "variant": "supervised", "epochs": 150, "linear": 57.4},
    (1, "Rotation"): {"variant": "rotation", "linear": 48.0},
    (1, "Exemplar"): {"variant": "exemplar", "linear": 42.7},
    (1, "Patch Offset"): {"variant": "patch_offset", "linear": 45.3},
    (1, "Jigsaw"): {"variant": "jigsaw", "linear": 42.2},
    (1, "AMDIM - large"): {**IMAGENET.STRONG, "size": "large", "linear": 55.0},
}


def get_config(size):
    config = IMAGENET.get_config(size)
    config.source = "folder"
    config.test_split = "val"
    config.probe_epochs = 15
    config.probe_decays = (7 / 15, 12 / 15)
    return config
