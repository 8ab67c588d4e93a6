"""One walk for all commands: what is an image, what is passed over, what a run then holds to."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from amdim_tf.config import load_config
from amdim_tf.data import sources
from amdim_tf.data.folders import PassedOver, walk
from amdim_tf.errors import InputError
from amdim_tf.training.run_directory import RunDirectory

IMAGE = tf.io.encode_png(np.arange(40 * 30 * 3, dtype="uint8").reshape(40, 30, 3)).numpy()


def write(path, contents=IMAGE):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)


def load(path, **fields):
    config = load_config("image_folder")
    config.update({"image_size": 64, "batch_size": 2, **fields})
    return sources.load(config, str(path))


def names(split, folder):
    return sorted(os.path.relpath(os.fsdecode(x.numpy()), folder) for x, _ in split.examples)


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for i in range(3):
                write(tmp_path / split / name / f"{i}.png")
    return tmp_path


HIDDEN = (".ipynb_checkpoints", "@eaDir", ".Trash-1000", "__MACOSX", "$RECYCLE.BIN", "lost+found")


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_folders_are_no_classes_and_their_images_no_copies(name, folder):
    for split in ("train", "val"):
        write(folder / split / name / "0-checkpoint.png")
        write(folder / split / "cat" / name / "0-checkpoint.png")
    write(folder / "train" / "dog" / "._1.png")
    data = load(folder)
    assert data.class_names == ("cat", "dog") and data.train.size == data.test.size == 6
    assert data.note == "passed over: 3 hidden"


def test_images_without_classes_next_to_a_hidden_folder_are_all_read(tmp_path):
    for i in range(5):
        write(tmp_path / "train" / f"{i}.png")
    write(tmp_path / "train" / ".cache" / "thumbnail.png")
    data = load(tmp_path)
    assert data.class_names == () and data.train.size == 5


def test_links_are_followed_once_and_loops_end(tmp_path):
    write(tmp_path / "elsewhere" / "a.png")
    write(tmp_path / "elsewhere" / "more" / "b.png")
    write(tmp_path / "train" / "c.png")
    (tmp_path / "train" / "first").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train" / "second").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "more" / "loop").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train" / "self").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "d.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "train" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    passed_over = PassedOver()
    found = list(walk(str(tmp_path / "train"), passed_over))
    assert found == ["c.png", "d.png", "first/a.png", "first/more/b.png"]
    assert passed_over == {"links to a folder that was seen": 3, "links to nothing": 1}


def test_every_file_is_read_or_named_with_its_kind(folder):
    cat = folder / "train" / "cat"
    for name in ("a.JPEG", "b.jfif", "c.webp", "d.Bmp", "e.gif"):
        write(cat / name)
    for name in ("f.tif", "g.TIFF", "h.txt", "README", "i.jpg.part"):
        write(cat / name)
    write(folder / "train" / "loose.png")
    write(folder / "train" / "notes.txt")
    os.mkfifo(cat / "pipe.png")
    data = load(folder)
    assert data.train.size == 6 + 5
    for each in ("1 .tif files", "1 .tiff files", "1 .txt files", "1 .part files"):
        assert each in data.note
    assert "1 files without an extension" in data.note and "1 that are no files" in data.note
    assert "1 images outside of the folders of the classes" in data.note


def test_subfolders_without_classes_need_labels_none(tmp_path):
    for name in ("2023/a.png", "2023/may/b.png", "2024/c.png"):
        write(tmp_path / "train" / name)
    with pytest.raises(InputError, match="--config.labels=none"):
        load(tmp_path)
    data = load(tmp_path, labels="none")
    assert data.class_names == () and data.test is None and list(data.train.labels()) == [-1] * 3
    assert names(data.train, tmp_path / "train") == ["2023/a.png", "2023/may/b.png", "2024/c.png"]


def test_names_that_are_no_text(tmp_path):
    for split in (b"train", b"val"):
        for name in (b"caf\xe9", b"x"):
            path = os.path.join(os.fsencode(tmp_path), split, name)
            os.makedirs(path)
            for i in range(2):
                with open(os.path.join(path, b"%d-\xff.png" % i), "wb") as file:
                    file.write(IMAGE)
    data = load(tmp_path)
    assert data.class_names == (r"caf\xe9", "x") and data.train.size == 4
    record, _ = next(iter(data.train.examples))
    assert data.decode(record).shape == (40, 30, 3)


def test_a_folder_of_another_file_system(folder):
    for path in folder.rglob("*.png"):
        place = f"ram://folder/{path.relative_to(folder)}"
        tf.io.gfile.makedirs(os.path.dirname(place))
        tf.io.write_file(place, path.read_bytes())
    data = load("ram://folder")
    expected = load(folder)
    assert data.class_names == ("cat", "dog") and data.train.digest == expected.train.digest
    record, _ = next(iter(data.train.examples))
    assert data.decode(record).shape == (40, 30, 3)
    with pytest.raises(InputError, match="data_dir must .* begin with one of .*gs://.*s4://x"):
        load("s4://x")


# The data of a run


def claim(run, data):
    RunDirectory(run, {"dataset": "x"}).claim_data(data.record())


def rename(folder):
    for split in ("train", "val"):
        (folder / split / "cat").rename(folder / split / "horse")


def add_class(folder):
    for split in ("train", "val"):
        write(folder / split / "ape" / "0.png")


def double(folder):
    for i in range(6):
        write(folder / "train" / "cat" / f"more{i}.png")


def rename_image(folder):
    (folder / "val" / "cat" / "0.png").rename(folder / "val" / "cat" / "zero.png")


def move_image(folder):
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "dog" / "00.png")


@pytest.mark.parametrize(
    "change, expected",
    [
        (rename, "2 classes there and 2 here, .*without horse .* without cat"),
        (add_class, "2 classes there and 3 here, .*without ape"),
        (double, "train has 6 images there and 12 here"),
        (rename_image, "the 6 images of test have other names"),
        (move_image, "the 6 images of train have other names, sizes or labels"),
    ],
)
def test_a_run_is_not_trained_further_on_other_data(change, expected, folder):
    run = folder / "run"
    claim(run, load(folder))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    claim(run, load(folder))
    change(folder)
    with pytest.raises(InputError, match=f"workdir=.*run was trained on other data .*{expected}"):
        claim(run, load(folder))
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_the_same_data_may_lie_elsewhere(folder):
    claim(folder / "run", load(folder))
    for split in ("train", "val"):
        (folder / split).rename(folder / "run" / split)
    claim(folder / "run", load(folder / "run"))


def test_runs_of_earlier_versions_hold_to_their_classes(folder):
    run, data = folder / "run", load(folder)
    RunDirectory(run, {"dataset": "x"})
    for known in (["cat", "dog"], ["0", "1"]):  # of a run, and of a converted checkpoint
        (run / "classes.json").write_text(json.dumps(known))
        claim(run, data)
        assert json.loads((run / "classes.json").read_text()) == ["cat", "dog"]
        (run / "data.json").unlink()
    (run / "classes.json").write_text(json.dumps(["dog", "cat"]))
    with pytest.raises(InputError, match="the classes are in another order"):
        claim(run, data)
