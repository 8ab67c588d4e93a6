"""Pairs of the default's patches side by side, for mixture features: which half is which?

    python -m amdim_tf.train --dataset=photo_pairs
    python -m amdim_tf.visualize --workdir=runs/photo_pairs-tiny-seed0

Needs no download: the photographs come with scikit-image. The class is that of the left half.
"""

from amdim_tf.config import base_config

# ndf, nrkhs, ndepth
SIZES = {"tiny": (32, 256, 2)}


def get_config(size):
    config = base_config()
    config.source = "photo_pairs"
    config.ndf, config.nrkhs, config.ndepth = SIZES[size]
    config.mixture_components = 2
    config.batch_size = 64
    config.steps = 650
    config.learning_rate = 2e-3
    config.warmup_steps = 100
    config.views.flip_probability = 0.0
    config.views.hue = 0.1
    config.views.gray_probability = 0.0
    return config
