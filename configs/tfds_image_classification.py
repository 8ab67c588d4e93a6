"""Any image-classification set of TFDS that has no config of its own, at 64 pixels.

    python -m amdim_tf.train --dataset=NAME --config.test_split=SPLIT

Other image sizes are a matter of `--config.image_size` and the fields that go with it.
"""

from amdim_tf.config import base_config

# ndf, nrkhs, ndepth, batch_size
SIZES = {"tiny": (16, 128, 2, 64), "small": (192, 1536, 8, 200)}


def get_config(size):
    config = base_config()
    config.ndf, config.nrkhs, config.ndepth, config.batch_size = SIZES[size]
    config.image_size = 64
    config.mean = (0.485, 0.456, 0.406)
    config.std = (0.229, 0.224, 0.225)
    config.views.geometry = "crop"
    return config
