"""Paths as people write them: of this machine, of another file system, or of none."""

import os
import pathlib

import pytest

from amdim_tf.config import load_config
from amdim_tf.errors import InputError
from amdim_tf.files import has_scheme, local, printable, readable, write_text
from amdim_tf.serving.saved_model import export
from amdim_tf.training.run_directory import RunDirectory, load_model


def test_paths_of_this_machine(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    for text, expected in {
        "~/runs/x": "/home/somebody/runs/x",
        "file:///data/x": "/data/x",
        "runs/a:b": "runs/a:b",
        "C:/runs": "C:/runs",
        "/x": "/x",
    }.items():
        assert local(text, "workdir") == pathlib.Path(expected)
        assert readable(text, "data_dir") == expected
    assert readable("gs://bucket/data/", "data_dir") == "gs://bucket/data"


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run", "ram://run", "gs:/bucket"])
def test_what_has_to_be_complete_is_not_written_to_other_file_systems(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("photo_patches")
    for name, write in {
        "workdir": lambda: RunDirectory(path, config),
        "output": lambda: export(None, config, path),
    }.items():
        with pytest.raises(InputError, match=f"{name} must be .* of this machine.*{name}={path}"):
            write()
    with pytest.raises(InputError, match=path):
        load_model(path)
    assert has_scheme(path) and not os.listdir(tmp_path)


def test_names_that_are_no_text(tmp_path):
    name = os.fsdecode(b"caf\xe9\xff.png")
    assert printable(name) == printable(b"caf\xe9\xff.png") == r"caf\xe9\xff.png"
    write_text(tmp_path / "names", name)
    assert (tmp_path / "names").read_bytes() == b"caf\xe9\xff.png"
