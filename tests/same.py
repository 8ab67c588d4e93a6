"""Ends that have to be the same: after a checkpoint, and on two replicas."""

import subprocess
import sys

import numpy as np

from amdim_tf.training.run_directory import RunDirectory


def assert_a_step_after_a_checkpoint_is_the_same(model, config, first, second, folder):
    """Of a training that went on from the batch `first`, and that was restored: bit for bit."""
    run = RunDirectory(folder, config)
    model.run_eagerly = True  # a graph of all gradients takes up to a minute to make
    model.train_on_batch(*first)
    run.save(model, 1)
    ends = []
    for _ in range(2):
        model.train_on_batch(*second)
        ends.append([np.array(x) for x in (*model.weights, *model.optimizer.variables)])
        assert run.restore(model) == 1
    for ours, expected in zip(*ends, strict=True):
        np.testing.assert_array_equal(ours, expected)


def assert_two_replicas_are_as_one(script, what, expected, folder):
    """`script FILE cpu:2 WHAT... NAME...` saves arrays as `expected` {name: [array, ...]}."""
    path = str(folder / "two.npz")
    command = [sys.executable, script, path, "cpu:2", *what, *expected]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(path)
    for name, arrays in expected.items():
        for i, value in enumerate(arrays):
            difference = np.abs(found[f"{name}/{i}"] - value).max(initial=0)
            assert difference <= 1e-5 * np.abs(value).max(initial=1e-2), (name, i)
        assert f"{name}/{len(arrays)}" not in found


def save(path, found):
    """What `assert_two_replicas_are_as_one` reads."""
    np.savez(path, **{f"{name}/{i}": x for name, all_ in found.items() for i, x in enumerate(all_)})
