"""The objectives that test_every_objective checks, each by its variant or its bound, all tiny.

`every_objective.py FILE STRATEGY NAME...` trains them on the devices of STRATEGY, in a process of
its own: logical devices have to be made before TensorFlow touches the processor.
"""

import sys

import keras
import numpy as np
from same import save

from amdim_tf.config import load_config
from amdim_tf.data.policy import Policy
from amdim_tf.distribution import choose_strategy
from amdim_tf.objectives.objective import find_objective
from amdim_tf.training.building import build_encoder, check_config
from amdim_tf.training.learner import Learner
from amdim_tf.variants import METHODS

SMALL = {"ndf": 4, "nrkhs": 32, "ndepth": 1, "batch_size": 8, "steps": 4, "log_every": 1}
OWN = {
    "exemplar": {"views.number": 3},
    "patch_offset": {"image_size": 112},
    "jigsaw": {"image_size": 112},
    "jsd": {"bound": "jsd"},
    "dv": {"bound": "dv"},
}
# cpc is cpc_3x3 with more patches, which takes longer.
NAMES = (*(name for name in METHODS if name != "cpc"), "jsd", "dv")


def config_of(name, **fields):
    """A checked config of the variant `name`."""
    config = load_config("photo_patches", variant=name if name in METHODS else "")
    config.update_from_flattened_dict(SMALL | OWN.get(name, {}) | fields)
    check_config(config)
    return config


def learner(config, dtype, classes):
    keras.utils.set_random_seed(0)
    objective = find_objective(config.objective).of(config)
    return Learner(build_encoder(config, dtype), classes, objective, seed=1, dtype=dtype)


def batch_of(config, count=4):
    """((x1, ...), labels) of random images."""
    generator, size = np.random.default_rng(0), config.image_size
    number = Policy(**config.views).views
    views = generator.uniform(size=(number, count, size, size, 3))
    return tuple(views.astype("float32")), generator.integers(0, 3, count)


def after_training(strategy, name):
    """The losses of three updates in float64, and all weights."""
    config = config_of(name)
    with strategy.scope():
        model = learner(config, "float64", classes=0)
        # Adam would blow up the rounding of gradients that are zero by symmetry.
        model.compile(optimizer=keras.optimizers.SGD(0.01), jit_compile=False)
    views = tuple(view.astype("float64") for view in batch_of(config, 12)[0])
    logs = model.fit(views, batch_size=4, shuffle=False, verbose=0).history
    return [np.array(logs["loss"]), *model.get_weights()]


if __name__ == "__main__":
    path, strategy_name, *names = sys.argv[1:]
    chosen = choose_strategy(strategy_name)
    save(path, {name: after_training(chosen, name) for name in names})
