"""Several replicas train as one device does."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import replicas
import tensorflow as tf
from tensorflow.python.distribute.cluster_resolver import slurm_cluster_resolver

from amdim_tf.command import STOPPED
from amdim_tf.config import load_config
from amdim_tf.data import photographs, pipeline
from amdim_tf.distribution import Worker, check_batch, choose_strategy, cluster
from amdim_tf.errors import InputError
from amdim_tf.runs.training import train
from amdim_tf.training.checkpoints import Checkpoints


@pytest.mark.long
def test_replicas_and_regions_change_nothing(tmp_path):
    """Losses, statistics of batch norm and weights after 10 steps, also with batch norm inside."""
    cases = {
        "cpu:2": ["nan", "clip", "xla-micro-mixture", "frozen-micro", "tuned-xla"],
        "cpu:4": ["xla", "bn", "frozen-xla", "tuned-micro"],
        "multiworker": ["xla"],
    }

    def start(strategy, name, **options):
        command = [sys.executable, replicas.__file__, str(tmp_path / f"{name}.npz")]
        return subprocess.Popen(
            [*command, strategy, *cases[strategy]], stderr=subprocess.PIPE, text=True, **options
        )

    started = {strategy: start(strategy, strategy) for strategy in ("cpu:2", "cpu:4")}
    first, second = (os.environ | environment for environment in workers_here(2))
    started["multiworker"] = start("multiworker", "multiworker", env=first)
    other = start("multiworker", "other", env=second)
    one_device = tf.distribute.get_strategy()
    expected = {
        case: replicas.weights_after_training(one_device, case)
        for case in ("clip", "plain", "bn", "nan", "mixture", "frozen", "tuned")
    }
    assert expected["nan"]["skipped"].mean() == pytest.approx(0.1)  # one step of ten
    for values in expected.values():
        assert all(np.isfinite(value).all() for value in values.values())
    for strategy, names in cases.items():
        _, errors = started[strategy].communicate(timeout=900)
        assert started[strategy].returncode == 0, errors
        values = dict(np.load(tmp_path / f"{strategy}.npz"))
        for case in names:
            same = next((known for known in expected if known in case), "plain")
            for name, value in expected[same].items():
                difference = np.abs(values[f"{case}:{name}"] - value).max()
                # Biases before a batch norm are rounding noise.
                assert difference <= 1e-5 * max(np.abs(value).max(), 1e-2), (strategy, case, name)
    assert other.wait() == 0


def workers_here(size):
    """The environments of `size` workers on this machine."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(size)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    return [
        {
            "TF_CONFIG": json.dumps(
                {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            )
        }
        for index in range(size)
    ]


@pytest.mark.long
def test_the_command_compiled_on_two_replicas_and_by_two_workers(tmp_path):
    """The workers are stopped in the middle, by a signal to one of them, and started again."""
    fields = {"ndf": 4, "nrkhs": 16, "ndepth": 1, "batch_size": 16, "log_every": 1, "steps": 8}
    arguments = [f"--config.{name}={value}" for name, value in fields.items()]

    def start(name, *flags, **environment):
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "amdim_tf.train", "--config.probe_images=100"),
                *(*arguments, f"--workdir={tmp_path / name}", *flags),
            ],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    workers = [start("workers", **environment) for environment in workers_here(2)]
    while not (tmp_path / "workers" / "metrics.jsonl").exists() and workers[0].poll() is None:
        time.sleep(0.1)
    workers[1].send_signal(signal.SIGTERM)  # of which the other learns by the next step
    for process in workers:
        output, errors = process.communicate(timeout=600)
        assert process.returncode == STOPPED, errors
        step = int(re.search(r"Stopped after step (\d+): the same command", output)[1])
        assert 0 < step < 8
    assert Checkpoints(tmp_path / "workers" / "checkpoints").newest()[0] == step

    processes = [start("two", "--strategy=cpu:2", "--views_on=accelerator")]
    processes += [start("workers", **environment) for environment in workers_here(2)]
    config = load_config("photo_patches")
    config.update(fields | {"probe_images": 100})
    train(config, tmp_path / "one", baselines=False)
    train(config, tmp_path / "xla", baselines=False, xla="on")
    outputs = [process.communicate(timeout=600) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    assert "CPU:1" in outputs[0][0] and "Wrote" in outputs[1][0] and "Wrote" not in outputs[2][0]

    lines = {
        name: [
            json.loads(line)
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("one", "xla", "two", "workers")
    }
    for name, metrics in lines.items():
        for ours, theirs in zip(metrics, lines["one"], strict=True):
            for field in ("step", "loss", "regulariser", "nce_5-5", "nce_1-7", "linear_loss"):
                assert ours[field] == pytest.approx(theirs[field], rel=1e-5, abs=1e-5), name


def test_each_image_is_seen_once_by_all_workers():
    data = photographs.photo_patches(train_count=10)
    config = load_config("photo_patches")
    config.batch_size = 12

    def steps(worker):
        batches = pipeline.train_batches(data, config, 5, 14, worker=worker)  # 11 steps an epoch
        return list(batches.as_numpy_iterator())

    whole = steps(Worker())
    parts = [steps(Worker(index, local=2, replicas=4)) for index in range(2)]
    for i, (views, labels) in enumerate(whole):
        mine = [parts[index][2 * i + replica] for index in range(2) for replica in range(2)]
        np.testing.assert_array_equal(np.concatenate([part[1] for part in mine]), labels)
        for view in range(2):
            joined = np.concatenate([part[0][view] for part in mine])
            # A step of hue apart at most, where a compiler rounds otherwise.
            assert np.abs(joined - views[view]).mean() < 1e-3


def test_other_strategies_are_refused():
    for name in ("mirored", "cpu:0", "cpu:", "cpu:two"):
        with pytest.raises(InputError, match=f"auto, none, mirrored, multiworker, cpu:N.*'{name}'"):
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


@pytest.mark.parametrize(
    "text",
    ["{", "{}", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}'],
)
def test_a_malformed_tf_config_is_refused(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    for name in ("auto", "multiworker"):
        with pytest.raises(InputError, match="TF_CONFIG must be JSON such as .*Received: TF_CONF"):
            choose_strategy(name)


def test_several_workers_need_a_cluster():
    with pytest.raises(InputError, match="multiworker needs TF_CONFIG, or Slurm's.*no TF_CONFIG"):
        choose_strategy("multiworker")


def test_slurms_environment_is_read(monkeypatch):
    for name, value in {
        "SLURM_PROCID": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "node[7-8]",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": "",  # no nvidia-smi
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # which TensorFlow writes
    with pytest.raises(InputError, match="on machines with GPUs. Received: no TF_CONFIG, and from"):
        choose_strategy("auto")
    monkeypatch.setattr(slurm_cluster_resolver, "get_num_gpus", lambda: 8)
    resolver = cluster()
    assert resolver.cluster_spec().as_dict() == {"worker": ["node7:8888", "node8:8888"]}
    assert (resolver.task_type, resolver.task_id) == ("worker", 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"


@pytest.mark.long
def test_workers_that_disagree_are_refused(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "amdim_tf.train", f"--seed={seed}", f"--workdir={tmp_path}/run"],
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed, environment in enumerate(workers_here(2))
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode not in (0, None) and "Traceback" not in errors
        assert re.search("error: All workers must have the same configuration.*Received", errors)
