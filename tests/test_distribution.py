"""Several replicas train as one device does."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
import replicas
import tensorflow as tf

from amdim_tf.config import load_config
from amdim_tf.distribution import check_batch, choose_strategy
from amdim_tf.errors import InputError
from amdim_tf.train import train


def test_replicas_and_regions_change_nothing(tmp_path):
    """Losses, statistics of batch norm and weights after 10 steps, also with batch norm inside."""
    cases = {"cpu:2": ["plain", "xla-micro"], "cpu:4": ["xla", "bn"]}
    started = {
        strategy: subprocess.Popen(
            [
                sys.executable,
                replicas.__file__,
                str(tmp_path / f"{strategy}.npz"),
                strategy,
                *names,
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for strategy, names in cases.items()
    }
    one_device = tf.distribute.get_strategy()
    plain, with_bn = (replicas.weights_after_training(one_device, case) for case in ("plain", "bn"))
    for strategy, names in cases.items():
        _, errors = started[strategy].communicate(timeout=900)
        assert started[strategy].returncode == 0, errors
        values = dict(np.load(tmp_path / f"{strategy}.npz"))
        for case in names:
            for name, value in (with_bn if "bn" in case else plain).items():
                difference = np.abs(values[f"{case}:{name}"] - value).max()
                # Biases before a batch norm are rounding noise.
                assert difference <= 1e-5 * max(np.abs(value).max(), 1e-2), (strategy, case, name)


def test_the_command_compiled_or_on_two_replicas_that_make_the_views(tmp_path):
    fields = {"ndf": 4, "nrkhs": 16, "ndepth": 1, "batch_size": 16, "log_every": 1, "steps": 3}
    config = load_config("photo_patches")
    config.update(fields | {"probe_images": 100})
    train(config, tmp_path / "one", baselines=False)
    train(config, tmp_path / "xla", baselines=False, xla="on")
    arguments = [f"--config.{name}={value}" for name, value in fields.items()]
    arguments += ["--config.probe_images=100", f"--workdir={tmp_path / 'two'}"]
    flags = ["--strategy=cpu:2", "--views_on=accelerator"]
    done = subprocess.run(
        [sys.executable, "-m", "amdim_tf.train", *flags, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "CPU:1" in done.stdout
    one, xla, two = (
        (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        for name in ("one", "xla", "two")
    )
    for other in (xla, two):
        for ours, theirs in zip(one, other, strict=True):
            ours, theirs = json.loads(ours), json.loads(theirs)
            for name in ("step", "loss", "regulariser", "nce_5-5", "nce_1-7", "linear_loss"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name


def test_other_strategies_are_refused():
    for name in ("mirored", "cpu:0", "cpu:", "cpu:two"):
        with pytest.raises(InputError, match=f"auto, none, mirrored, cpu:N.*'{name}'"):
            choose_strategy(name)
    with pytest.raises(InputError, match="mirrored needs accelerators.*'mirrored'"):
        choose_strategy("mirrored")


def test_a_batch_that_does_not_divide_is_refused():
    strategy = types.SimpleNamespace(num_replicas_in_sync=3)
    check_batch(6, 0, strategy)
    check_batch(12, 2, strategy)
    for batch in (64, 3):
        with pytest.raises(InputError, match=f"multiple of their number, 3.*batch_size={batch}"):
            check_batch(batch, 0, strategy)
    with pytest.raises(InputError, match="divide the 4 images of a device.*micro_batch=3"):
        check_batch(12, 3, strategy)
