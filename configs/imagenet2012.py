"""ImageNet: 1,281,167 training and 50,000 validation images, at 128 pixels, 1000 classes.

    python -m amdim_tf.train --dataset=imagenet2012 --data_dir=DIR

TFDS cannot download it: it has to be prepared in DIR first, see the README. `small` and `large` are
the paper's; `tiny` shows that everything runs.
"""

from amdim_tf.config import base_config

# ndf, nrkhs, ndepth, batch_size
SIZES = {"small": (192, 1536, 8, 200), "large": (320, 2560, 10, 1008), "tiny": (8, 64, 2, 32)}


def get_config(size):
    config = base_config()
    config.ndf, config.nrkhs, config.ndepth, config.batch_size = SIZES[size]
    config.test_split = "validation"
    config.image_size = 128
    config.mean = (0.485, 0.456, 0.406)
    config.std = (0.229, 0.224, 0.225)
    config.views.geometry = "crop"
    config.views.hue = 0.1
    config.epochs = 50
    config.decays = (30 / 50, 45 / 50)
    return config
