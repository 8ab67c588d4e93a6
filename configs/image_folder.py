"""Your own images, at 128 pixels, from folders.

    python -m amdim_tf.train --dataset=image_folder --data_dir=DIR

DIR holds train/<class>/ and val/<class>/, or images of no class in train/ for the encoder alone.
JPEG, PNG, BMP and GIF of any size; `tiny` is for a machine without accelerator, the other sizes are
those of ImageNet.
"""

from amdim_tf.config import config_module

IMAGENET = config_module("imagenet2012")
SIZES = {"tiny": IMAGENET.SIZES["tiny"]} | IMAGENET.SIZES  # the first is the default


def get_config(size):
    config = config_module("places205").get_config("small")
    config.ndf, config.nrkhs, config.ndepth, config.batch_size = SIZES[size]
    config.probe_epochs = 30
    config.probe_decays = (15 / 30, 25 / 30)
    return config
