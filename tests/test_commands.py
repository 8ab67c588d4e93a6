"""Commands and snippets of README and guides run as they stand, with tiny configs."""

import os
import re
import shutil
import subprocess
import sys

import imagenet_data
import made
import numpy as np
import pytest
from disk.keep import HERE
from golden_values import ROOT

PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
# A block of code, and the file that the text before it, or its first line, names.
BLOCKS = re.compile(r"(?:`(\w+\.py)`[^`]*)?^```(\w*)\n((?:\"{3}(\w+\.py))?.*?)^```$", re.M | re.S)
# What is run elsewhere, or by nobody here.
ELSEWHERE = {
    "pip install": "the continuous integration installs and tests",
    "-m pytest": "the continuous integration installs and tests",
    "benchmarks/": "benchmarks take minutes to hours",
    "docs/curves.py": "needs trainings of hours",
    "amdim_tf.benchmark": "benchmarks take minutes to hours",
    "weights=imagenet": "needs a network",
    "--epochs=20": "a measurement of hours; test_docs knows its flags",
    "--epochs=28": "a measurement of hours; test_docs knows its flags",
    "--epochs=5": "a measurement of hours; test_docs knows its flags",
    "--objectives=": "a measurement of hours; test_docs knows its flags",
    "encoder=resnet50v2": "takes minutes to trace; test_every_encoder has it",
    "encoder=mobilenetv3small": "takes minutes to trace; test_every_encoder has it",
    "FILE.pth": "needs PyTorch",
    "<class>": "no command: the layout of a folder",
}
DEFAULT = "runs/photo_patches-tiny-seed0"
# The placeholders in snippets of Python.
GIVEN = """
import numpy as np
images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype("uint8")
labels = np.arange(8) % 3
"""


def blocks(page):
    """[(kind, file, text)] of the commands and snippets of a page."""
    found = [(kind, a or b, text) for a, kind, text, b in BLOCKS.findall(page.read_text())]
    return [each for each in found if not any(word in each[2] for word in ELSEWHERE)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with what the placeholders name."""
    folder = tmp_path_factory.mktemp("world")
    data = folder / "DIR"
    for name, test in (("cifar10", "test"), ("imagenet2012", "validation")):
        counts = {"train": 40, test: 16}
        imagenet_data.make(data, name, counts, files={}, classes=10, sides=(32, 32))
    made.image_folder(data, {"train": 12, "val": 8}, channels=4)
    shutil.copytree(data / "train", folder / "IMAGES")
    for name in ("FEATURES", "OTHERS"):
        np.save(folder / f"{name}.npy", np.random.default_rng(0).normal(size=(40, 3)))
    shutil.copytree(data / "cifar10", folder / "home" / "tensorflow_datasets" / "cifar10")
    shard = next((data / "cifar10").rglob("*test.tfrecord*"))
    shutil.copy(shard, folder / "FILES.tfrecord")
    shutil.copy(ROOT / "tests" / "golden" / "32.pth", folder / "amdim_ndf256_rkhs2048_rd10.pth")
    shutil.unpack_archive(HERE / "finished.tar.xz", folder)
    for path in ("bin/python", ".venv/bin/python"):
        (folder / path).parent.mkdir(parents=True)
        (folder / path).write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (folder / path).chmod(0o755)
    return folder


# Each command on these pages trains, measures or exports a run of its own.
MANY = ("data", "evaluation")


def marked(page):
    mark = pytest.mark.release if page.stem in MANY else pytest.mark.long
    return pytest.param(page, marks=mark, id=page.stem)


@pytest.mark.parametrize("page", [marked(page) for page in PAGES if blocks(page)])
def test_it_runs(page, world, tmp_path):
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'tests' / 'tiny'}:{ROOT}",
        "HOME": str(tmp_path / "home"),
    }
    everything = "".join(text for *_, text in blocks(page))
    if "--output=DIR" in everything:
        shutil.rmtree(tmp_path / "DIR")
    if not re.search("(train .*--workdir|convert .*--output)=RUN", everything):
        shutil.copytree(tmp_path / "finished", tmp_path / "RUN")
    if DEFAULT in everything:
        shutil.copytree(tmp_path / "finished", tmp_path / DEFAULT)
    for _, file, text in blocks(page):
        if file:
            (tmp_path / file).write_text(text)
    for kind, file, text in blocks(page):
        if file:
            continue
        command = [sys.executable, "-c", GIVEN + text] if kind else ["bash", "-e", "-c", text]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
