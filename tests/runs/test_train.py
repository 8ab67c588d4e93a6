"""The command as a user meets it: a run, a second run, an interrupt, and every refusal."""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from long import most_long

from amdim_tf import processor
from amdim_tf.config import base_config, load_config, nearest
from amdim_tf.data import photographs
from amdim_tf.encoders.amdim import Encoder
from amdim_tf.errors import InputError
from amdim_tf.evaluation.evaluation import evaluate
from amdim_tf.files import write_json
from amdim_tf.lock import locked
from amdim_tf.runs.training import plan, train
from amdim_tf.serving.bulk import Job, embed
from amdim_tf.serving.saved_model import export
from amdim_tf.training.building import build, check_config
from amdim_tf.training.run_directory import RunDirectory, load_model

SMALL = {"ndf": 4, "nrkhs": 16, "ndepth": 1, "batch_size": 16, "log_every": 2, "probe_images": 500}


def small(**fields):
    config = load_config("photo_patches")
    config.update(SMALL | fields)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "finished"
    return path, train(small(steps=6), path)


def files(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_run_leaves_everything_behind(finished):
    path, result = finished
    assert json.loads((path / "result.json").read_text()) == result
    assert result["steps"] == 6 and result["test_images"] == 840
    for row in ("frozen", "untrained", "raw_pixels"):
        assert set(result["accuracy"][row]) == {"linear", "mlp", "knn"}
        # 500 training images and few steps: above chance, 1/14, is all to expect.
        assert all(0.1 < value <= 1 for value in result["accuracy"][row].values()), row

    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert {"loss", "nce_1-5", "bound_5-5", "learning_rate", "input_wait"} <= set(lines[0])
    assert all(0 <= line["input_wait"] <= 1 for line in lines)
    rates = [line["learning_rate"] for line in lines]
    assert rates == pytest.approx([2e-3, 2e-3, 8e-5])  # decays after 5/6 and 14/15
    assert list((path / "tensorboard").glob("events.*"))

    encoder = keras.models.load_model(path / "encoder.keras")
    assert isinstance(encoder, Encoder) and encoder.ndf == 4
    served = tf.saved_model.load(str(path / "export" / "1")).signatures["normalized"]
    images = tf.random.stateless_normal((2, 32, 32, 3), (0, 1))
    np.testing.assert_allclose(served(images=images)["f1"], encoder(images)["f1"], atol=1e-5)


def test_a_checkpoint_holds_every_variable(tmp_path):
    """Also running averages inside the trunk, and the encoder can be had by itself."""
    config = small(use_bn=True, mixture_components=2)
    run = RunDirectory(tmp_path, config)
    models = [build(config, classes=3, last_step=1) for _ in range(2)]
    generator = np.random.default_rng(0)
    owners = [[model, model.optimizer] for model in models]
    for owner in owners[0]:
        for variable in owner.variables:
            values = generator.integers(0, 1000, variable.shape)
            variable.assign(values.astype(variable.dtype))
    run.save(models[0], 1)
    assert run.restore(models[1]) == 1
    write_json(tmp_path / "classes.json", ["a", "b", "c"])
    model, step = load_model(tmp_path)
    assert step == 1 and len(model.encoder.variables) > 30
    parts = [
        (getattr(models[0], name), getattr(model, name))
        for name in ("encoder", "probes", "mixture")
    ]
    for ours, theirs in [*zip(*owners, strict=True), *parts]:
        for saved, restored in zip(ours.variables, theirs.variables, strict=True):
            np.testing.assert_array_equal(saved.numpy(), restored.numpy(), saved.path)


@pytest.mark.parametrize("flags, expected", [("avx2", True), ("avx2 avx512_bf16", False)])
def test_the_plan_says_where_half_precision_is_slow(flags, expected, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    config = small(precision="mixed_bfloat16", steps=6)
    check_config(config)
    model, run = build(config, 0, last_step=6), RunDirectory(tmp_path / "run", config)
    text = plan(config, photographs.photo_patches(), model, 0, 6, run)
    assert ("mixed_bfloat16 is slower than float32 here" in text) is expected


def test_a_second_run_changes_nothing(finished, capsys):
    path, result = finished
    before = files(path)
    # How a run computes may change.
    assert train(small(steps=6, micro_batch=2), path) == result
    assert files(path) == before
    assert "nothing to do" in capsys.readouterr().out


def test_a_folder_that_another_process_writes_to_is_refused(finished, tmp_path):
    path, _ = finished
    before, config = files(path), small(steps=6)
    model, held = load_model(path)[0], "which process .* on .* holds"
    with locked(path, "workdir"), pytest.raises(InputError, match=f"workdir=.*finished, {held}"):
        train(config, path, overwrite=True)
    with locked(path / "evaluation", "workdir"), pytest.raises(InputError, match=held):
        evaluate(path, config, ("knn",))
    with locked(path / "export", "output"), pytest.raises(InputError, match=f"output=.*{held}"):
        export(model, config, path / "export")
    job = Job(str(path), str(tmp_path), "parquet", "tfrecords", f"{tmp_path}/*.tfrecord")
    tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")).close()
    with locked(tmp_path, "output"), pytest.raises(InputError, match=f"output=.*{held}"):
        embed(job)
    assert {name: x for name, x in files(path).items() if "evaluation" not in str(name)} == before


def test_another_configuration_is_refused(finished):
    path, _ = finished
    before = files(path)
    with pytest.raises(
        InputError, match="l2 is 1e-05 there and 0.1 here; steps is 6 there and 7 here"
    ):
        train(small(steps=7, l2=0.1), path)
    assert files(path) == before


@pytest.mark.parametrize("content", [None, "{"])
def test_a_directory_that_holds_something_else_is_refused(content, tmp_path):
    (tmp_path / ("other.txt" if content is None else "config.json")).write_text(content or "mine")
    before = files(tmp_path)
    with pytest.raises(InputError, match=f"workdir={tmp_path}"):
        RunDirectory(tmp_path, small())
    assert files(tmp_path) == before
    with pytest.raises(InputError, match="cannot be used"):
        RunDirectory(next(iter(before)), small())


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"image_size": 33}, "32, 64, 128.*image_size=33"),
        ({"tasks": "1-9"}, "Received: tasks='1-9'"),
        ({"batch_size": 1}, "batch_size must be at least 2.*batch_size=1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"std": (0.2, 0.0, 0.2)}, "std must be one number per channel"),
        ({"decays": (0.5, 30.0)}, "decays must be fractions"),
        ({"std": (0.2, float("inf"), 0.2)}, "std must be one number per channel"),
        ({"clip": -1.0}, "clip must be at least 0"),
        ({"clip": float("inf")}, "clip must be at least 0 and finite. Received: clip=inf"),
        ({"mixture_tau": float("inf")}, "mixture_tau must be positive and finite"),
        ({"source": "zip"}, "tfds, folder, photo_patches, photo_pairs. Received: source='zip'"),
        ({"objective": "dim"}, "amdim, .*supervised, or MODULE:CLASS.*objective='dim'"),
        ({"precision": "half"}, "float32, mixed_bfloat16, mixed_float16. Received.*'half'"),
        (
            {"micro_batch": 4, "use_bn": True},
            "without batch norm inside.*micro_batch=4.*use_bn=True",
        ),
        ({"mixture_components": 2, "tasks": "5-5"}, "mixture_components=2, tasks='5-5'"),
        ({"mixture_components": 2, "objective": "supervised"}, "objective='supervised'"),
        ({"views": {"geometry": "zoom"}}, "geometry must be one of.*'zoom'"),
    ],
)
def test_values_out_of_range_are_refused(fields, expected):
    config = base_config()
    config.update(fields)
    with pytest.raises(InputError, match=expected):
        check_config(config)


def test_nearest_names():
    assert nearest("batchsize", ["batch_size", "epochs", "seed"], 1) == "batch_size"


def command(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "amdim_tf.train", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


REFUSALS = {
    "unknown data set": (
        ["--dataset=photo_patch"],
        "photo_patches.*Received: dataset='photo_patch'",
    ),
    "unknown size": (["--size=huge"], "tiny.*Received: size='huge'"),
    "unknown variant": (["--variant=+mixup"], "local_dim, .*Received: variant='.mixup'"),
    "unknown field": (
        ["--config.batchsize=8"],
        "config.batchsize is no field.*config.batch_size|batch_size",
    ),
    "wrong type": (["--config.ndf=wide"], "config.ndf must be int, such as 32.*'wide'"),
    "unknown flag": (["--epoch=3"], "nearest are --epochs, .*Received: --epoch"),
    "stray argument": (["cifar10"], "Only flags.*cifar10"),
    "zero batch": (["--config.batch_size=0"], "batch_size must be at least 2.*batch_size=0"),
    "too large a batch": (["--config.batch_size=5000"], "at most the 4139.*batch_size=5000"),
    "missing data": (["--dataset=cifar10", "--data_dir=nowhere"], "data_dir=nowhere"),
    "a file as workdir": (["--workdir=file"], "workdir cannot be used.*workdir=file"),
}


@pytest.mark.parametrize("case", most_long(REFUSALS, 6))
def test_refusals_are_one_sentence(case, tmp_path):
    arguments, expected = REFUSALS[case]
    (tmp_path / "file").write_text("mine")
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode not in (0, None)
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert re.search(expected, message), message
    assert "Traceback" not in done.stderr + done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.long
def test_the_command_outside_the_checkout(tmp_path):
    sizes = [f"--config.{name}={value}" for name, value in SMALL.items()]
    done = command("--steps=2", "--seed=1", *sizes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "runs" / "photo_patches-tiny-seed1"
    assert json.loads((path / "config.json").read_text())["seed"] == 1
    for part in (
        "4139 training and 840 test images",
        "parameters",
        "CPU:0",
        str(path.relative_to(tmp_path)),
    ):
        assert part in done.stdout
    assert "untrained encoder" in done.stdout and "images/s" in done.stderr
