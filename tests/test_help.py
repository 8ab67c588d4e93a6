"""What every command says of itself, and what it says to a flag that it does not have."""

import re
import runpy
import shlex
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from amdim_tf.config import fields, load_config
from amdim_tf.errors import InputError
from amdim_tf.files import write_json

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules")

COMMANDS = {
    "train": {"dataset": "photo_patches", "size": None, "data_dir": None, "epochs": None},
    "evaluate": {"workdir": None, "protocol": "all", "label_fraction": "1.0", "strategy": "auto"},
    "sweep": {"dataset": "photo_patches", "steps": None, "seeds": "0,1,2"},
    "visualize": {"workdir": None, "images": "1000"},
    "report": {"workdir": None, "output": None},
    "results": {"folder": "runs"},
    "embed": {"encoder": None, "tfrecords": None, "format": "parquet"},
    "export": {"workdir": None, "dtype": "float32", "[no]xla": "false"},
    "convert": {"checkpoint": None, "output": None},
    "benchmark": {"output": "benchmark.json", "runs": "10"},
}
CONFIGURED = ("train", "evaluate", "sweep", "visualize", "report", "benchmark")


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """A function that runs a command as `python -m` does: its exit code, or last words, and output.

    Its flags are forgotten, so that the next command can have them.
    """
    monkeypatch.chdir(tmp_path)
    before = {*flags.FLAGS}

    def run(command, *arguments):
        monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
        try:
            with pytest.raises(SystemExit) as left:
                runpy.run_module(f"amdim_tf.{command}", run_name="__main__", alter_sys=True)
        finally:
            for name in {*flags.FLAGS} - before:
                delattr(flags.FLAGS, name)
        assert not any(tmp_path.glob("runs*"))
        return left.value.code, capsys.readouterr().out

    # absl's own stay.
    run("results", "--help")
    before |= {name for name in flags.FLAGS if name.startswith("help")}
    return run


def config_lines(text):
    """{name: value} of the fields of the config that a help shows."""
    words = [shlex.split(line) for line in re.findall(r"^  '?--config\..*$", text, re.MULTILINE)]
    assert all(len(each) == 1 for each in words)
    return dict(each[0].removeprefix("--config.").split("=", 1) for each in words)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_all_there_is(command, run):
    texts = {}
    for word in ("--help", "-h", "-?", "--helpshort", "--helpfull"):
        code, texts[word] = run(command, word)
        assert code in (0, None)
    assert len({texts[word] for word in texts if word != "--helpfull"}) == 1
    text = texts["--help"]
    assert f"\npython -m amdim_tf.{command}" in text.replace("    python", "python")
    for text in (texts["--help"], texts["--helpfull"]):
        for name, default in COMMANDS[command].items():
            (described,) = re.findall(
                rf"^  --{re.escape(name)}: ((?:.|\n    )*)", text, re.MULTILINE
            )
            assert (f"(default: '{default}')" in described) == (default is not None), name
        assert set(config_lines(text)) == (
            {*fields(load_config("cifar10"))} if command in CONFIGURED else set()
        )
    assert "--verbosity" in texts["--helpfull"] and "--verbosity" not in texts["--help"]


def test_help_shows_the_config_that_is_chosen(run, tmp_path):
    _, text = run("train", "--epochs", 3, "--dataset", "cifar10", "--help", "--size=small")
    assert "as cifar10 has them at size small:" in text
    shown = config_lines(text)
    assert (shown["batch_size"], shown["decays"]) == ("480", str((250 / 300, 280 / 300)))
    _, text = run("train", "--variant", "-multiscale", "--help")
    assert config_lines(text)["tasks"] == "1-7"

    config = load_config("stl10", "small")
    config.ndf = 5
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "config.json", fields(config))
    for command in ("evaluate", "visualize"):
        _, text = run(command, "--workdir=run", "-h")
        assert "as stl10 has them at size small:" in text and config_lines(text)["ndf"] == "5"


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["evaluate"], "photo_patches.*workdir must be a run directory.*workdir=None"),
        (["visualize", "--workdir=no", "--dataset=cifar10"], "cifar10 has them.*workdir=no"),
        (["train", "--dataset=cifar10", "--size=huge"], "size tiny .size must be one of tiny,"),
        (["train", "--size"], "photo_patches.*Missing value for flag --size"),
    ],
)
def test_help_shows_what_can_be_shown(arguments, expected, run):
    code, text = run(*arguments, "--help")
    assert code in (0, None)
    (header,) = re.findall("^fields of the config.*$", text, re.MULTILINE)
    assert re.search(expected, header), header
    assert len(config_lines(text)) == len(fields(load_config("cifar10")))


def test_what_help_shows_of_the_config_can_be_given_back(run):
    _, text = run("train", "--dataset=cifar10", "--size=large", "--variant=+strong_aug", "--help")
    words = [f"--config.{name}={value}" for name, value in config_lines(text).items()]
    parsed, config = flags.FlagValues(), load_config("stl10")
    given = config_flags.DEFINE_config_dict("config", config, flag_values=parsed, sys_argv=words)
    parsed(["train", *words])
    assert given.value.to_dict() == load_config("cifar10", "large", "+strong_aug").to_dict()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["evaluate", "--workdirr=run"], "nearest are --workdir,.* Received: --workdirr"),
        (["visualize", "--image=5"], "nearest are --images,.* Received: --image"),
        (["export", "--outptu=x"], "nearest are --output,.* Received: --outptu"),
        (["convert", "-output_dir", "x"], "nearest are --output,.* Received: --output_dir"),
        (["train", "--nooverwrit"], "nearest are --overwrite,.* Received: --nooverwrit"),
        (["train", "--batch_size=8"], "nearest are --config.batch_size,.*--batch_size"),
        (["train", "--dataset"], "Missing value for flag --dataset"),
        (["train", "--epochs=three"], "epochs=three"),
        (["train", "--epochs=3", "--steps=7"], "cannot both be given.*epochs=3, steps=7"),
        (["export"], "--workdir must have a value.*; .*--output must have a value"),
        (["train", "--config.ndf", "8", "--config.nd=1"], "config.nd is no field.* ndf"),
        (["train", "--epochs", "3", "--dataset", "cifar10", "--size=no"], "xlarge for cifar10"),
        (["sweep", "--variants", "-multiscale,-stabilize", "--size=no"], "size='no'"),
        (["sweep", "--seeds=0,1,01"], "seeds must differ from each other. Received: 0,1,1"),
        (["sweep", "--variants=-multiscale", "--objectives=cmc"], "variants and objectives cannot"),
        (["sweep", "--variant=rotation", "--objectives=cmc"], "with amdim.*variant='rotation'"),
        (["train", "--config.decays=half"], "config.decays must be numbers, such as .*'half'"),
    ],
)
def test_a_wrong_flag_is_answered_in_one_sentence(arguments, expected, run):
    message, text = run(*arguments)
    assert re.search(f"^error: .*{expected}", message), message
    assert not text and "\n" not in message


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], (300, 650)),
        (["--epochs=3"], (3, 0)),
        (["--config.epochs=3"], (3, 0)),
        (["--steps=7"], (300, 7)),
        (["--config.epochs=3", "--config.steps=7"], (3, 7)),
    ],
)
def test_epochs_take_the_place_of_the_steps_of_a_config(arguments, expected, run, monkeypatch):
    """All of a help's fields may be given back: steps that are given count."""

    def train(config, *_, **others):
        raise InputError(f"{config.epochs, config.steps}")

    monkeypatch.setattr("amdim_tf.runs.training.train", train)
    assert run("train", *arguments)[0] == f"error: {expected}"
