"""The embedded default: 32x32 patches of 14 photographs, class = photograph.

    python -m amdim_tf.train

Needs no download: the photographs come with scikit-image.
"""

from amdim_tf.config import base_config

# ndf, nrkhs, ndepth
SIZES = {"tiny": (32, 256, 2)}


def get_config(size):
    config = base_config()
    config.source = "photo_patches"
    config.ndf, config.nrkhs, config.ndepth = SIZES[size]
    config.batch_size = 64
    config.steps = 650
    config.learning_rate = 2e-3
    config.warmup_steps = 100
    # Colour tells these photographs apart, so less of it is taken away than on CIFAR-10.
    config.views.hue = 0.1
    config.views.gray_probability = 0.0
    return config
