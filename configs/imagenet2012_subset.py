"""1 % or 10 % of ImageNet's training images with labels, the validation set whole (TFDS).

    python -m amdim_tf.evaluate --workdir=runs/imagenet2012-small-seed0 \\
        --dataset=imagenet2012_subset/1pct --data_dir=DIR

For measuring an encoder with few labels, and as ImageNet to be prepared by hand.
"""

from amdim_tf.config import config_module

IMAGENET2012 = config_module("imagenet2012")
SIZES, get_config = IMAGENET2012.SIZES, IMAGENET2012.get_config
