"""Kills a small training at random instants and starts it again, until it ends.

`kill_training.py FOLDER COUNT` compares FOLDER/killed, a run that was killed COUNT times while it
was trained, with FOLDER/whole, one that was not; and FOLDER/end*, COUNT copies of the trained run
that are each killed once at a random instant between the last training step and the end. It prints
what it found as JSON. `kill_training.py RUN` is such a training.
"""

import json
import pathlib
import random
import shutil
import subprocess
import sys
import time

from amdim_tf.config import load_config
from amdim_tf.runs.training import train
from amdim_tf.training.checkpoints import Checkpoints
from amdim_tf.training.run_files import read_result

STEPS = 30


def small_config():
    config = load_config("photo_patches")
    config.update({"ndf": 4, "nrkhs": 16, "ndepth": 1, "batch_size": 16, "log_every": 7})
    config.update({"steps": STEPS, "probe_images": 200, "checkpoint_minutes": 0})
    return config


def start(path):
    return subprocess.Popen([sys.executable, "-X", "faulthandler", __file__, path])


def kill(process):
    process.kill()
    return process.wait() < 0


def newest(path):
    """The step of the newest checkpoint of the run in `path`, damaged or not."""
    return max(Checkpoints(path / "checkpoints").steps(), default=0)


def kill_in_training(path, count, generator):
    """Kills a run `count` times before its last step; the steps of its checkpoints then."""
    steps = []
    for _ in range(count):
        before, process = newest(path), start(path)
        # In a step, or in a save.
        while newest(path) < min(before + 1, STEPS - 1):
            assert process.poll() is None, f"ended by itself with {process.returncode}"
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.1))
        kill(process)
        steps.append(newest(path))
    return steps


def main():
    folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    generator = random.Random(0)
    whole = start(folder / "whole")
    steps = kill_in_training(folder / "killed", count, generator)
    process, trained = start(folder / "killed"), folder / "trained"
    while newest(folder / "killed") < STEPS:
        time.sleep(0.01)
    kill(process)
    shutil.copytree(folder / "killed", trained)
    status = {"whole": whole.wait()}
    started = time.monotonic()
    status["killed"] = start(folder / "killed").wait()
    seconds, missing = time.monotonic() - started, []
    for i in range(count):
        end = folder / f"end{i}"
        shutil.copytree(trained, end)
        process = start(end)
        time.sleep(generator.uniform(0, seconds))
        if kill(process):
            missing.append(list((read_result(end) or {"missing": ["all"]})["missing"]))
        status[end.name] = start(end).wait()
    report = {"killed_after": steps, "missing_when_killed": missing, "status": status}
    print(json.dumps(report | {"seconds_of_the_end": seconds}))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        train(small_config(), pathlib.Path(sys.argv[1]))
    else:
        main()
