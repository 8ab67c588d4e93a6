"""What the commands share: flags that depend on the data set, and errors of one sentence.

A command imports what is heavy, TensorFlow first of all, in its `main`: flags and help do not wait.
"""

import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from amdim_tf.config import DEFAULT_DATASET, FIELDS, fields, load_config, nearest
from amdim_tf.errors import InputError, Stopped, one_line
from amdim_tf.tensorflow_log import start_tensorflow
from amdim_tf.typing import Config

# What is defined here belongs to the command that asks for it, and so to its --help.
flags.disclaim_key_flags()

DATA_DIR = "a folder of images; or where TFDS keeps its data, ~/tensorflow_datasets if none"
HELP = re.compile(r"--?(\?|h|help|helpshort|helpfull)(=true)?")
INTERRUPTED = 130
# As sysexits.h has it: try again later, which goes on.
STOPPED = 75


def define_training_flags() -> None:
    """The flags of commands that train."""
    flags.DEFINE_string("dataset", DEFAULT_DATASET, "a config, or an image set of TFDS")
    flags.DEFINE_string("size", None, "named size of the config; its first one if none")
    flags.DEFINE_string("data_dir", None, DATA_DIR)
    flags.DEFINE_integer("epochs", None, "passes over the images; those of the config if none")
    flags.DEFINE_integer("steps", None, "updates, and not epochs; those of the config if none")


def define_device_flags() -> None:
    """The flags of commands that train on several devices."""
    flags.DEFINE_string("strategy", "auto", "devices: auto, none, mirrored, multiworker, cpu:N")
    flags.DEFINE_enum("xla", "auto", ["auto", "on", "off"], "compile the training step by XLA")


def configured(*names: str) -> Config:
    """The config of the --config flags, changed by the flags `names` that are given.

    Raises:
        InputError: both --epochs and --steps are given.
    """
    config = flags.FLAGS.config
    for name in names:
        if flags.FLAGS[name].present:
            config[name] = flags.FLAGS[name].value
    if _present("epochs") and _present("steps"):
        raise InputError(
            "epochs and steps cannot both be given, since either is the length of a training. "
            f"Received: epochs={config.epochs}, steps={config.steps}"
        )
    if _present("epochs", "config.epochs") and not _present("steps", "config.steps"):
        config.steps = 0  # the config may have some, and they would count
    return config


def _present(*names):
    """Whether any of the flags `names` is given."""
    return any(name in flags.FLAGS and flags.FLAGS[name].present for name in names)


def parse_flags(argv: list[str], choose_config: Callable | None) -> list[str]:
    """Parses `argv` by absl; the --config flags change the config that other flags choose."""
    asked = [word for word in argv[1:] if HELP.fullmatch(word)]
    if asked:
        _print_help([word for word in argv if word not in asked], choose_config, asked)
        sys.exit()
    valid = {}
    try:
        if choose_config:
            chosen, others = _first_look(argv, choose_config)
            # A misspelt flag first: it may be why there is no config.
            for name in re.findall(r"^--(\w+)(?:=|$)", "\n".join(others), re.MULTILINE):
                if name not in flags.FLAGS and name.removeprefix("no") not in flags.FLAGS:
                    raise _no_flag(name, choose_config)
            config = choose_config(**chosen)
            valid = fields(config)
            for name in re.findall(r"^--?(?:no)?config\.([^=\n]+)", "\n".join(argv), re.MULTILINE):
                if name not in valid:
                    raise InputError(
                        f"config.{name} is no field; the nearest are {nearest(name, valid)}. "
                        f"The fields are {', '.join(valid)}"
                    )
            config_flags.DEFINE_config_dict("config", config)
        arguments = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        raise _no_flag(error.flagname, choose_config) from error
    except flags.Error as error:
        wrong = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
        if not wrong:
            raise InputError("; ".join(str(error).splitlines())) from error
        name, value = wrong.groups()
        raise InputError(
            f"config.{name} must be {type(valid[name]).__name__}, such as {valid[name]}. "
            f"Received: {value!r}"
        ) from error
    # The parser of tuples takes anything.
    for name, value in fields(flags.FLAGS.config).items() if choose_config else ():
        if isinstance(value, list) and not all(isinstance(x, int | float) for x in value):
            raise InputError(
                f"config.{name} must be numbers, such as {tuple(valid[name])}. "
                f"Received: {tuple(value)}"
            )
    return arguments


def _first_look(argv, choose_config):
    """The values of the string flags that `choose_config` takes, and what else is in `argv`."""
    chosen, names = flags.FlagValues(), inspect.signature(choose_config).parameters
    for name in names:
        flags.DEFINE_string(name, flags.FLAGS[name].default, "", flag_values=chosen)
    others = chosen(argv, known_only=True)
    return {name: chosen[name].value for name in names}, others


def _no_flag(name, choose_config):
    """The error for a flag that the command does not have."""
    valid = [f"--{flag.name}" for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])]
    if choose_config:
        valid += [f"--config.{field}" for field in fields(load_config(DEFAULT_DATASET))]
    return InputError(
        f"A flag must be one of those that --help lists, and the nearest are "
        f"{nearest(f'--{name}', valid)}. Received: --{name}"
    )


def _print_help(argv, choose_config, asked):
    """Prints what the command does, its flags, and the fields of the config that `argv` chooses."""
    app.usage(shorthelp="helpfull" not in "".join(asked), writeto_stdout=True)
    if not choose_config:
        return
    chosen, why = {}, ""
    try:
        chosen, _ = _first_look(argv, choose_config)
        config = choose_config(**chosen)
    except (InputError, flags.Error) as error:
        config = load_config(chosen.get("dataset") or DEFAULT_DATASET)
        why = f" ({one_line(error)})"
    print(f"\nfields of the config, as {config.dataset} has them at size {config.size}{why}:\n")
    for name, value in fields(config).items():
        value = tuple(value) if isinstance(value, list) else value
        print("  " + shlex.quote(f"--config.{name}={value}"))
        if name in FIELDS:  # a run of another version may have others
            field = FIELDS[name]
            print(f"      {field.meaning}" + (f"; must {field.valid}" if field.valid else ""))


def markdown(lines: Sequence) -> str:
    """A table in Markdown of `lines` of text cells, the first of them its header."""
    header, *rows = lines
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def run(main: Callable, choose_config: Callable | None = None) -> None:
    """Parses the flags and runs `main()`; bad input ends it with one sentence and exit code 1.

    Args:
        choose_config: makes the config, if the command has one, from the flags that have the names
            of its parameters.
    """

    def without_arguments(argv):
        if argv[1:]:
            raise InputError(f"Only flags are valid arguments. Received: {' '.join(argv[1:])}")
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
        start_tensorflow()
        logging.set_verbosity(logging.ERROR)  # TFDS and TensorFlow report what they open
        return main()

    try:
        app.run(without_arguments, flags_parser=lambda argv: parse_flags(argv, choose_config))
    except InputError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # whoever read the output has seen enough
        os._exit(1)
    except OSError as error:  # a full disk, a missing permission
        sys.exit(f"error: {error}. What was written before is complete")
    except Stopped as stopped:
        _leave(stopped, STOPPED)
    except KeyboardInterrupt:
        _leave("Interrupted.", INTERRUPTED)
    except Exception as error:
        if not _unreadable(error):
            raise
        sys.exit(f"error: a file is damaged, gone or out of reach: {one_line(error)}")


def _unreadable(error):
    """Whether `error` is one that TensorFlow raises about files, on any file system."""
    import tensorflow as tf

    return isinstance(
        error,
        tf.errors.DataLossError
        | tf.errors.FailedPreconditionError
        | tf.errors.NotFoundError
        | tf.errors.PermissionDeniedError
        | tf.errors.UnavailableError,
    )


def _leave(message, code):
    """Ends the process at once: neither threads of `tf.data` nor a checkpoint are waited for."""
    print(f"\n{message}", flush=True)
    sys.stderr.flush()
    os._exit(code)
