"""The switch of the tests that run commands: Python imports this first, and configs are tiny."""

import functools
import importlib

from absl import flags

from amdim_tf import command, config
from amdim_tf.training import run_files

TINY = {
    "image_size": 32,
    "ndf": 2,
    "nrkhs": 32,
    "ndepth": 1,
    "batch_size": 8,
    "steps": 2,
    "probe_images": 40,
    "probe_epochs": 1,
}
config_module_of, configured_by = config.config_module, command.configured
evaluation_config_of = run_files.evaluation_config


def config_module(dataset):
    module = config_module_of(dataset)
    own = module.get_config

    def get_config(size):
        found = own(size)
        found.update(TINY)
        return found

    module.get_config = get_config
    return module


def configured(*names):
    found = configured_by(*names)
    found.steps = TINY["steps"]  # and not those of --steps or --epochs
    if "baselines" in flags.FLAGS:
        flags.FLAGS.baselines = "off"
        # The command `export` has its own tests.
        importlib.import_module("amdim_tf.runs.finish").export = lambda *_: None
    return found


@functools.wraps(evaluation_config_of)  # its parameters are flags
def evaluation_config(*arguments, **named):
    found = evaluation_config_of(*arguments, **named)
    found.update({"probe_epochs": 1, "batch_size": 256})
    return found


config.config_module, command.configured = config_module, configured
run_files.evaluation_config = evaluation_config
