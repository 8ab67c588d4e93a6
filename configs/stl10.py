"""STL-10: 100,000 unlabelled, 5,000 training and 8,000 test images, at 64 pixels, 10 classes.

    python -m amdim_tf.train --dataset=stl10 --size=small --data_dir=DIR
    python -m amdim_tf.train --dataset=stl10 --size=small --variant=-color_jitter --data_dir=DIR
    python -m amdim_tf.evaluate --workdir=runs/stl10-small-seed0 --data_dir=DIR
    python -m amdim_tf.train --dataset=stl10 --workdir=RUN --data_dir=DIR \
        --config.mixture_components=2
    python -m amdim_tf.evaluate --workdir=RUN --features=mixture --data_dir=DIR

The encoder sees the unlabelled and the training images, the classifiers the training images. The
paper names 4 to 8 Tesla V100, and no hours; its ablations are trained for 50 epochs. Its mixtures
have 2, 3 or 4 components.
"""

from amdim_tf.config import base_config

# ndf, nrkhs, ndepth, batch_size
SIZES = {"small": (192, 1536, 8, 480), "tiny": (8, 64, 2, 32)}
IMAGES = {"train": 105000, "test": 8000}
SMALL = {"size": "small", "epochs": 50}
# Accuracies in per cent, see CIFAR-10.
PAPER = {
    (3, "AMDIM"): {**SMALL, "linear": 93.4, "mlp": 93.8},
    (3, "+strong aug"): {**SMALL, "variant": "+strong_aug", "linear": 94.2, "mlp": 94.5},
    (3, "-color jitter"): {**SMALL, "variant": "-color_jitter", "linear": 90.3, "mlp": 90.6},
    (3, "-random gray"): {**SMALL, "variant": "-random_gray", "linear": 88.3, "mlp": 89.4},
    (3, "-random crop"): {**SMALL, "variant": "-random_crop", "linear": 86.0, "mlp": 87.1},
    (3, "-multiscale"): {**SMALL, "variant": "-multiscale", "linear": 92.6, "mlp": 93.0},
    (3, "-stabilize"): {**SMALL, "variant": "-stabilize", "linear": 93.5, "mlp": 93.8},
}


def get_config(size):
    config = base_config()
    config.ndf, config.nrkhs, config.ndepth, config.batch_size = SIZES[size]
    config.train_split = "unlabelled+train"
    config.probe_split = "train"
    config.image_size = 64
    config.mean = (0.43, 0.42, 0.39)
    config.std = (0.27, 0.26, 0.27)
    config.views.geometry = "crop"
    return config
