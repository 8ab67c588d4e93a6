"""Keeps of the runs in a folder what tests read, and what this version makes of them.

python keep.py FOLDER

NAME.tar.xz                     the run NAME
amdim.keras, classifier.keras   complete models, as `save` of Keras writes them
expected.npz                    {NAME: f1 (2,nrkhs) of `images()` by the run NAME}; `resumed` is
                                `stopped` after all its steps
"""

import pathlib
import shutil
import sys
import tarfile

import numpy as np

HERE = pathlib.Path(__file__).parent


def images():
    """Two normalised images (2,32,32,3)."""
    return np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")


def main(folder):
    from amdim_tf.training.run_directory import load_model

    expected = {}
    for run in sorted(pathlib.Path(folder).iterdir()):
        model, _ = load_model(run)
        expected[run.name] = np.asarray(model.encoder(images())["f1"])
        if run.name in ("finished", "supervised"):
            name = {"finished": "amdim", "supervised": "classifier"}[run.name]
            model.save(HERE / f"{name}.keras")
        checkpoints = sorted((run / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
        for path in checkpoints[:-1]:
            shutil.rmtree(path)
        for path in filter(pathlib.Path.is_file, run.rglob("*.json*")):
            text = path.read_text().replace(f"{folder}/", "")
            path.write_text(text.replace(str(HERE.parents[1]), "/home/user/amdim"))
        if run.name != "resumed":
            with tarfile.open(HERE / f"{run.name}.tar.xz", "w:xz") as archive:
                archive.add(run, run.name)
    np.savez(HERE / "expected.npz", **expected)


if __name__ == "__main__":
    main(sys.argv[1])
