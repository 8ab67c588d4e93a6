"""Places205: 2,448,873 training and 20,500 validation images, at 128 pixels, 205 classes.

    python -m amdim_tf.evaluate --workdir=runs/imagenet2012-large-+strong_aug-seed0 \\
        --dataset=places205 --data_dir=DIR
    python -m amdim_tf.train --dataset=places205 --data_dir=DIR

TFDS does not have it: DIR holds train/<class>/ and val/<class>/. The first command is the paper's
transfer of an ImageNet encoder; hardware is that of ImageNet.
"""

from amdim_tf.config import config_module

SIZES = config_module("imagenet2012").SIZES
IMAGES = {"train": 2448873, "test": 20500}
# Accuracies in per cent of ImageNet's encoders, Table 1, as remembered: the abstract has 55.0.
PAPER = {
    ("large", "+strong_aug"): {"linear": 55.0, "epochs": 150},
    ("large", "supervised"): {"linear": 57.2},
}


def get_config(size):
    config = config_module("imagenet2012").get_config(size)
    config.source = "folder"
    config.test_split = "val"
    config.probe_epochs = 15
    config.probe_decays = (7 / 15, 12 / 15)
    return config
