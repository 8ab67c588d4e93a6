"""Starts exports and kills them at random instants: `kill_exports.py FOLDER COUNT`.

Each runs in a fork of this process, which has imported TensorFlow but not used it.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time

from serving.test_export import CLASSES, small_config

from amdim_tf.serving import self_check
from amdim_tf.serving.saved_model import export
from amdim_tf.training.building import build_model


def start(folder):
    pid = os.fork()
    if pid:
        return pid
    config = small_config()
    self_check.check = lambda *_: None  # it writes nothing, and takes half of the time
    export(build_model(config, len(CLASSES)), config, folder, class_names=CLASSES)
    os._exit(0)


def main():
    folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    started = time.monotonic()
    _, status = os.waitpid(start(folder), 0)
    assert status == 0
    whole = time.monotonic() - started
    generator = random.Random(0)
    outcome = {"finished": 0, "killed": 0, "unfinished": 0}
    for _ in range(count):
        before = len([path for path in folder.iterdir() if path.name.isdecimal()])
        pid = start(folder)
        # The longest part is before the first file.
        time.sleep(whole * generator.uniform(0.3, 1.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        names = [path.name for path in folder.iterdir()]
        finished = len([name for name in names if name.isdecimal()]) > before
        outcome["finished" if finished else "killed"] += 1
        outcome["unfinished"] += any(name.startswith(".unfinished") for name in names)
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
