"""What the commands share: flags that depend on the data set, and errors of one sentence."""

import re
import sys

from absl import app, flags
from ml_collections import config_flags

from amdim_tf.config import DEFAULT_DATASET, fields, load_config, nearest
from amdim_tf.errors import InputError


def define_data_flags():
    """The flags that choose a config."""
    flags.DEFINE_string("dataset", DEFAULT_DATASET, "a config, or an image set of TFDS")
    flags.DEFINE_string("size", None, "named size of the config; its first one by default")
    flags.DEFINE_string("data_dir", None, "where TFDS keeps prepared data; its own default if none")


def parse_flags(argv):
    """absl's parser, with the config that --dataset and --size name behind the --config flags."""
    # A first look, for the flags on which the default values of the others depend.
    chosen = flags.FlagValues()
    flags.DEFINE_string("dataset", DEFAULT_DATASET, "", flag_values=chosen)
    flags.DEFINE_string("size", None, "", flag_values=chosen)
    chosen(argv, known_only=True)
    config, size = load_config(chosen.dataset, chosen.size)
    flags.FLAGS.set_default("size", size)

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


def run(main):
    """Runs `main()` after parsing flags; bad input ends it with one sentence and exit code 1."""

    def without_arguments(argv):
        if argv[1:]:
            raise InputError(f"Only flags are valid arguments. Received: {' '.join(argv[1:])}")
        return main()

    try:
        app.run(without_arguments, flags_parser=parse_flags)
    except InputError as error:
        sys.exit(f"error: {error}")
