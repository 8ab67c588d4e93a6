"""Kills a small training at random instants and starts it again, until it ends.

`kill_training.py FOLDER COUNT` compares FOLDER/killed, a run that was killed COUNT times, with
FOLDER/whole, one that was not, and prints what it found as JSON. `kill_training.py RUN` is such a
training.
"""

import json
import pathlib
import random
import subprocess
import sys
import time

from amdim_tf.checkpoints import Checkpoints
from amdim_tf.config import load_config
from amdim_tf.train import train

STEPS = 30


def small_config():
    config = load_config("photo_patches")
    config.update({"ndf": 4, "nrkhs": 16, "ndepth": 1, "batch_size": 16, "log_every": 7})
    config.update({"steps": STEPS, "probe_images": 200, "checkpoint_minutes": 0})
    return config


def start(path):
    return subprocess.Popen([sys.executable, "-X", "faulthandler", __file__, path])


def newest(path):
    """The step of the newest checkpoint of the run in `path`, damaged or not."""
    return max(Checkpoints(path / "checkpoints").steps(), default=0)


def main():
    folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    whole, killed = start(folder / "whole"), folder / "killed"
    generator, steps = random.Random(0), []
    for i in range(count):
        before, process = newest(killed), start(killed)
        # In a step, in a save; the last time while the encoder is measured or exported.
        while newest(killed) < (min(before + 1, STEPS) if i + 1 < count else STEPS):
            assert process.poll() is None, f"ended by itself with {process.returncode}"
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.1 if i + 1 < count else 1.5))
        process.kill()
        process.wait()
        steps.append(newest(killed))
    finished = (killed / "result.json").exists()
    status = {"killed": start(killed).wait(), "whole": whole.wait()}
    print(json.dumps({"killed_after": steps, "finished_before": finished, "status": status}))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        train(small_config(), pathlib.Path(sys.argv[1]), baselines=False)
    else:
        main()
