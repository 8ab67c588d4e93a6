"""Takes the paper's sizes through a step, a checkpoint and an export, and prints what each takes.

    python benchmarks/full_width.py SIZE DIR

SIZE is tiny, small or large, at 128 pixels and 1000 classes as on ImageNet; the batch has 2 images.
Peaks are of all memory of the process, in GiB, during each part. DIR, which gets 12 GB at large, is
made, and removed at the end.
"""

import argparse
import gc
import pathlib
import shutil
import time

from amdim_tf.config import load_config
from amdim_tf.files import write_json
from amdim_tf.serving.saved_model import export
from amdim_tf.training.building import build
from amdim_tf.training.run_directory import RunDirectory, load_model
import numpy as np
import tensorflow as tf

CLASSES = 1000


def measured(name, function):
    """Calls `function()`, and prints its seconds and the peak of memory."""
    gc.collect()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    started = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - started
    status = pathlib.Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 2**20
    print(f"| {name} | {seconds:.1f} | {peak:.1f} |", flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=("tiny", "small", "large"))
    parser.add_argument("folder", type=pathlib.Path)
    size, folder = vars(parser.parse_args()).values()
    config = load_config("imagenet2012", size)
    config.batch_size = 2
    views = np.random.default_rng(0).standard_normal((2, 2, 128, 128, 3), "float32")
    batch = tf.data.Dataset.from_tensors(((views[0], views[1]), np.array([0, 1])))
    run = RunDirectory(folder, config)
    print("| part | s | peak, GiB |\n| --- | --- | --- |")
    model = measured("build", lambda: build(config, CLASSES, 1))
    measured("step", lambda: model.fit(batch, shuffle=False, verbose=0))
    measured("checkpoint", lambda: run.save(model, 1))
    files = sum(path.stat().st_size for path in (folder / "checkpoints" / "1").iterdir())
    del model
    write_json(folder / "classes.json", [str(i) for i in range(CLASSES)])
    model, _ = measured("load", lambda: load_model(folder))
    measured("export", lambda: export(model, config, folder / "export", 1))
    parameters = model.encoder.count_params()
    print(f"{size}: {parameters:,} parameters in the encoder, a checkpoint of {files / 1e9:.2f} GB")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
