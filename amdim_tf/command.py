"""What the commands share: flags that depend on the data set, and errors of one sentence."""

import inspect
import os
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from amdim_tf.config import DEFAULT_DATASET, fields, nearest
from amdim_tf.errors import InputError, Stopped

INTERRUPTED = 130
# As sysexits.h has it: try again later, which goes on.
STOPPED = 75


def define_training_flags():
    """The flags of commands that train."""
    flags.DEFINE_string("dataset", DEFAULT_DATASET, "a config, or an image set of TFDS")
    flags.DEFINE_string("size", None, "named size of the config; its first one by default")
    flags.DEFINE_string("data_dir", None, "where TFDS keeps prepared data; or a folder of images")
    flags.DEFINE_integer("epochs", None, "passes over the training images")
    flags.DEFINE_integer("steps", None, "updates; takes precedence over epochs")


def define_device_flags():
    """The flags of commands that train on several devices."""
    flags.DEFINE_string("strategy", "auto", "devices: auto, none, mirrored, multiworker, cpu:N")
    flags.DEFINE_enum("xla", "auto", ["auto", "on", "off"], "compile the training step by XLA")


def configured(*names):
    """The config of the --config flags, with those of the flags `names` that are present."""
    config = flags.FLAGS.config
    for name in names:
        if flags.FLAGS[name].present:
            config[name] = flags.FLAGS[name].value
    return config


def parse_flags(argv, choose_config):
    """absl's parser, with the config that other flags choose behind the --config flags."""
    valid = {}
    if choose_config:
        config = choose_config(**_first_look(argv, inspect.signature(choose_config).parameters))
        valid = fields(config)
        for name in re.findall(r"^--?(?:no)?config\.([^=]+)", "\n".join(argv), re.MULTILINE):
            if name not in valid:
                raise InputError(
                    f"config.{name} is no field; the nearest are {nearest(name, valid)}. "
                    f"The fields are {', '.join(valid)}"
                )
        config_flags.DEFINE_config_dict("config", config)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        wrong = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
        if not wrong:
            raise InputError(str(error)) from error
        name, value = wrong.groups()
        raise InputError(
            f"config.{name} must be {type(valid[name]).__name__}, such as {valid[name]}. "
            f"Received: {value!r}"
        ) from error


def _first_look(argv, names):
    """The values of the string flags `names`, on which other flags depend."""
    chosen = flags.FlagValues()
    for name in names:
        flags.DEFINE_string(name, flags.FLAGS[name].default, "", flag_values=chosen)
    chosen(argv, known_only=True)
    return {name: chosen[name].value for name in names}


def markdown(lines):
    """A table in Markdown of `lines` of text cells, the first of them its header."""
    header, *rows = lines
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def run(main, choose_config=None):
    """Runs `main()` after parsing flags; bad input ends it with one sentence and exit code 1.

    `choose_config`, if the command has a config, makes it of flags named as its parameters.
    """

    def without_arguments(argv):
        if argv[1:]:
            raise InputError(f"Only flags are valid arguments. Received: {' '.join(argv[1:])}")
        logging.set_verbosity(logging.ERROR)  # TFDS and TensorFlow report what they open
        return main()

    try:
        app.run(without_arguments, flags_parser=lambda argv: parse_flags(argv, choose_config))
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a full disk, a missing permission
        sys.exit(f"error: {error}. What was written before is whole")
    except Stopped as stopped:
        _leave(stopped, STOPPED)
    except KeyboardInterrupt:
        _leave("Interrupted.", INTERRUPTED)


def _leave(message, code):
    """Ends the process at once: neither threads of `tf.data` nor a checkpoint are waited for."""
    print(f"\n{message}", flush=True)
    sys.stderr.flush()
    os._exit(code)
