"""The authors' checkpoints become runs, to export, measure and train further, and back."""

import io
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from golden_values import GOLDEN, SIZES, Golden, relative_error
from long import most_long
from PIL import Image

from amdim_tf.config import load_config
from amdim_tf.errors import InputError
from amdim_tf.evaluation.evaluation import evaluate
from amdim_tf.files import write_json
from amdim_tf.reference import torch_file
from amdim_tf.reference.conversion import (
    from_checkpoint,
    named_variables,
    to_checkpoint,
    to_content,
)
from amdim_tf.runs.training import train
from amdim_tf.serving.saved_model import export
from amdim_tf.training.building import build
from amdim_tf.training.run_directory import RunDirectory, load_model
from amdim_tf.training.run_files import read_class_names, run_config

# What `torch.save` of PyTorch 2.15 made of these, in its new layout and with
# _use_new_zipfile_serialization=False. The tensors of `strided` are views of one storage, `float`
# is a Parameter, `plain` an OrderedDict.
LAYOUTS = {
    "float": np.arange(6, dtype="float32").reshape(2, 3),
    "strided": [np.arange(12, dtype="int64").reshape(3, 4)[:, 1::2], np.arange(12)[4:8]],
    "half": np.float16([0.5, -2]),
    "bool": np.array([True, False]),
    "scalar": np.array(7.0),
    "empty": np.zeros((0, 3), "float32"),
    "plain": {"text": "é", "list": [1, 2.5, None]},
}


@pytest.fixture(scope="module", params=most_long(SIZES, 3))
def converted(request, tmp_path_factory):
    """Golden values of a size, and the run that its checkpoint became."""
    run = tmp_path_factory.mktemp("converted") / "run"
    from_checkpoint(GOLDEN / f"{request.param}.pth", run)
    return Golden(request.param), run


@pytest.mark.long
def test_exports_give_the_golden_values(converted, tmp_path):
    golden, run = converted
    model, step = load_model(run)
    config, values = run_config(run), golden.values
    assert step == 0 and config.image_size == golden.meta["image_size"]
    folder = export(model, config, tmp_path, class_names=read_class_names(run))
    images = tf.constant(values["eval_images"])
    served = tf.saved_model.load(str(folder)).signatures["normalized"](images=images)
    for n in (1, 5, 7):
        for kind in "fr":
            expected = values[f"eval_{kind}{n}"].squeeze()
            assert relative_error(served[f"{kind}{n}"], expected) <= 1e-5
    for name, logits in model.probes(served["f1"]).items():
        assert relative_error(logits, values[f"eval_logits_{name}"]) <= 1e-5


def test_the_way_back_gives_the_same(converted, tmp_path):
    golden, run = converted
    content = to_content(run)
    theirs = torch_file.read(GOLDEN / f"{golden.meta['image_size']}.pth")
    assert content["hyperparams"] == theirs["hyperparams"]
    assert content["cursor"] == theirs["cursor"]
    shapes, expected = (
        {name: (x.shape, x.dtype) for name, x in weights["model"].items()}
        for weights in (content, theirs)
    )
    assert shapes == expected
    for name in [*named_variables(load_model(run)[0]), "g2l_loss.masks_r5"]:
        np.testing.assert_array_equal(content["model"][name], theirs["model"][name], name)

    torch = pytest.importorskip("torch", reason="writing a .pth file takes PyTorch")
    to_checkpoint(run, tmp_path / "back.pth")
    loaded = torch.load(tmp_path / "back.pth", weights_only=True)
    ours = torch_file.read(tmp_path / "back.pth")
    assert loaded["hyperparams"] == ours["hyperparams"] == content["hyperparams"]
    for name, tensor in loaded["model"].items():
        np.testing.assert_array_equal(tensor.numpy(), content["model"][name])
        np.testing.assert_array_equal(ours["model"][name], content["model"][name])


@pytest.mark.long
def test_a_converted_run_is_measured_and_goes_on(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 2)):
        for label in range(10):
            folder = tmp_path / "images" / split / str(label)
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 25 * (label + 1), (32, 32, 3), "uint8")
                Image.fromarray(pixels).save(folder / f"{i}.png")
    content = torch_file.read(GOLDEN / "32.pth")
    content["cursor"]["info_step"] = 98  # of the 100 that 50 epochs of two batches have
    monkeypatch.setattr(torch_file, "read", lambda path: content)
    run = tmp_path / "run"
    config = from_checkpoint("checkpoint.pth", run, "image_folder")
    assert config.to_dict() == run_config(run).to_dict()
    accuracy = evaluate(run, config, ("knn",), tmp_path / "images")["knn"]["accuracy"]
    assert accuracy["top1"] > 0.3  # the classes differ in brightness
    before = load_model(run)[0].encoder.trainable_weights
    result = train(config, run, tmp_path / "images", baselines=False)
    assert result["steps"] == 100 and load_model(run)[1] == 100
    after = load_model(run)[0].encoder.trainable_weights
    changes = [np.abs(a - b).max() for a, b in zip(after, before, strict=True)]
    assert 0 < max(changes) < 1e-3
    with pytest.raises(InputError, match="output must be a new directory"):
        from_checkpoint("checkpoint.pth", run, "image_folder")


@pytest.mark.parametrize("layout", ["new", "old"])
def test_both_layouts_are_read(layout):
    found = torch_file.read(GOLDEN / f"layouts_{layout}.pth")

    def same(ours, expected):
        if isinstance(expected, np.ndarray):
            assert ours.dtype == expected.dtype
            np.testing.assert_array_equal(ours, expected)
        elif isinstance(expected, dict):
            assert list(ours) == list(expected)
            for key in expected:
                same(ours[key], expected[key])
        elif isinstance(expected, list):
            for pair in zip(ours, expected, strict=True):
                same(*pair)
        else:
            assert ours == expected

    same(found, LAYOUTS)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def old_layout(content):
    parts = [torch_file.MAGIC, torch_file.PROTOCOL, {"little_endian": True}, content, []]
    return b"".join(pickle.dumps(part, 2) for part in parts)


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.pth").write_bytes(old_layout({"model": Malicious()}))
    with zipfile.ZipFile(tmp_path / "new.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": Malicious()}))
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Malicious()))
    for name in ("old", "new", "pickle"):
        with pytest.raises(InputError, match="it asks for .*mkdir"):
            from_checkpoint(tmp_path / f"{name}.pth", tmp_path / "run")
    assert sorted(os.listdir()) == ["new.pth", "old.pth", "pickle.pth"]


def rewritten(change):
    """A golden checkpoint with the bytes of its zip's entries as `change` leaves them."""
    with zipfile.ZipFile(GOLDEN / "32.pth") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file.getvalue()


def storage(entries):
    return next(name for name in entries if name.endswith("/data/0"))


ZIPPED, PICKLED = ((GOLDEN / name).read_bytes() for name in ("32.pth", "layouts_old.pth"))
FILES = {
    "nothing": (b"", "it is empty"),
    "a page": (b"<html>404</html>", "it is neither a zip nor a pickle"),
    "a pickle": (pickle.dumps({"model": 1}), "a pickle of something else"),
    "half a zip": (ZIPPED[: len(ZIPPED) // 2], "it is a zip that is cut off"),
    "a zip without its last bytes": (ZIPPED[:-5], "it is a zip that is cut off"),
    "a damaged zip": (
        ZIPPED[:600_000] + b"damaged" + ZIPPED[600_007:],
        "it is cut off or damaged .Bad CRC-32",
    ),
    "a zip of something else": (rewritten(lambda x: (x.clear(), x.update(a=b"b"))), "0 data.pkl"),
    "a short storage": (
        rewritten(lambda x: x.update({storage(x): x[storage(x)][:-4]})),
        "a tensor lies outside of its storage",
    ),
    "no storage": (rewritten(lambda x: x.pop(storage(x))), "it lacks the storage 0"),
    "pickles cut in the first": (PICKLED[:9], "it is cut off or damaged"),
    "pickles cut in the content": (PICKLED[:300], "it is cut off or damaged"),
    "pickles cut in a storage": (PICKLED[:-3], "it is cut off in the storage"),
    "a list": (old_layout([1, 2]), "with model, hyperparams, cursor. Received: a list of 2"),
    "a number": (old_layout(5), "with model, hyperparams, cursor. Received: 5"),
    "other names": (old_layout({"weights": 1}), "Received: a dictionary with .'weights'"),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_files_are_refused(case, tmp_path):
    data, expected = FILES[case]
    (tmp_path / "bad.pth").write_bytes(data)
    refused(tmp_path / "bad.pth", tmp_path, expected)


def refused(path, folder, expected):
    """Tries to convert `path` to a run in `folder`, of which nothing may be left."""
    with pytest.raises(InputError) as error:
        from_checkpoint(path, folder / "run")
    message = str(error.value)
    assert re.search(expected, message), message
    assert message.endswith(str(path)) and "\n" not in message
    assert not (folder / "run").exists()


def test_what_is_no_file_is_refused(tmp_path):
    refused(tmp_path / "none.pth", tmp_path, "No such file")
    refused(tmp_path, tmp_path, "Is a directory")
    with pytest.raises(InputError, match="checkpoint must be a folder or file of this machine"):
        from_checkpoint("gs://bucket/file.pth", tmp_path / "run")


STEM = "encoder.module.layer_list.0.conv.weight"
NORM = "encoder.module.layer_list.8.bn"
UNUSED = "encoder.module.layer_list.4.bn"


def changed(name, value):
    """A change of a content's hyperparams or cursor."""

    def change(content):
        content["cursor" if name in content["cursor"] else "hyperparams"][name] = value
        return content

    return change


def weights(name, change):
    """A change of a content's weights called `name`."""

    def changed(content):
        content["model"][name] = change(content["model"][name])
        return content

    return changed


def last(value, dtype="float32"):
    """A change of the last number of an array."""

    def change(array):
        array = array.astype(dtype)
        array.flat[-1] = value
        return array

    return change


def without(*names):
    def change(content):
        for name in names:
            (content if name in content else content["model"]).pop(name)
        return content

    return change


CONTENTS = {
    "a tensor": (lambda _: np.zeros((3, 2)), "Received: a tensor of shape .3, 2."),
    "weights alone": (lambda x: x["model"], "Received: a dictionary with .'encoder.*conv.weight'"),
    "no cursor": (without("cursor"), "with model, hyperparams, cursor. Received: a dict"),
    "sizes as a list": (lambda x: x | {"hyperparams": [1]}, "hyperparams must be.* a list of 1"),
    "few sizes": (lambda x: x | {"hyperparams": {"ndf": 16}}, "n_rkhs, n_depth.*with .'ndf'. in"),
    "an empty cursor": (lambda x: x | {"cursor": {}}, "cursor must be a dictionary with info_step"),
    "a tensor as model": (lambda x: x | {"model": np.zeros(2)}, "model.* a tensor of shape .2,."),
    "lists as weights": (weights(STEM, np.ndarray.tolist), "tensors by name. Received: a list of"),
    "no names": (lambda x: x | {"model": {1: np.ones(2)}}, "by name. Received: .* as 1 in"),
    "a name too few": (without(f"{NORM}.bias"), f"Received: 1 .{NORM}.bias. lacking and none"),
    "no first name": (without(STEM), f"Received: 1 .{STEM}. lacking and none unknown"),
    "a name too many": (
        lambda x: x | {"model": x["model"] | {"encoder.head": np.ones(2)}},
        "Received: none lacking and 1 .encoder.head. unknown",
    ),
    "some names with a prefix": (
        lambda x: (
            x | {"model": {f"{'module.' * (k == STEM)}{k}": v for k, v in x["model"].items()}}
        ),
        f"Received: 1 .{STEM}. lacking",
    ),
    "another shape": (
        weights(f"{NORM}.weight", lambda x: x[:-1]),
        f"{NORM}.weight of shape .64,.. Received: .63,.",
    ),
    "another order": (weights(STEM, np.transpose), f"ndf.* be 3, the first side of {STEM}"),
    "no shape": (
        weights(STEM, lambda x: x.max(keepdims=True)[0, 0, 0, 0, ...]),
        f"ndf.* be 0, the first side of {STEM}",
    ),
    "whole numbers": (weights(STEM, lambda x: x.astype(int)), f"{STEM}.* type. Received: int64"),
    "NaN": (
        weights(STEM, last(np.nan)),
        f"{STEM} must be finite in float32. Received: 1 of 432.*nan",
    ),
    "infinity": (weights(f"{NORM}.bias", last(-np.inf)), f"{NORM}.bias must be finite.*-inf"),
    "too large": (weights(STEM, last(1e39, "float64")), f"{STEM} must be finite.*1e.39"),
    "NaN that is not used": (
        weights(f"{UNUSED}.bias", last(np.nan)),
        f"{UNUSED}.bias must be finite",
    ),
    "a negative variance": (
        weights(f"{NORM}.running_var", last(-1e-7)),
        f"{NORM}.running_var must not be negative. Received: -1.0.*e-07",
    ),
    "a negative count": (
        weights(f"{NORM}.num_batches_tracked", last(-3, int)),
        "num_batches_tracked must not be negative. Received: -3",
    ),
}
NUMBERS = {
    "encoder_size": (48, 32.0, True, "32", None, np.array(32), "must be 32, 64 or 128"),
    "ndf": (0, -16, 16.0, True, 10**30, 17, "must be 16, the first side of"),
    "n_rkhs": (2**62, -64, [64], "must be 64, the first side of"),
    "n_depth": (10**9, 0, -1, 2.0, "must be 2, the layers in its blocks"),
    "n_classes": (-1, 0, 11, float("inf"), "must be 10, the first side of"),
    "use_bn": (0, None, "False", "must be True or False"),
    "tclip": (np.nan, np.inf, -1.0, 1e39, 10**5000, True, "20", "must be finite and at least 0"),
    "info_step": (
        -5,
        1.5,
        True,
        2**31,
        np.nan,
        None,
        "must be a whole number from 0 to 2147483647",
    ),
    "classifier_epoch": (-1, "must be a whole number from 0 to 2147483647"),
}
for name, (*values, rule) in NUMBERS.items():
    for i, value in enumerate(values):
        CONTENTS[f"{name} {i}"] = changed(name, value), f"{name} of a checkpoint {rule}"


@pytest.mark.parametrize("case", most_long(CONTENTS, 4))
def test_bad_contents_are_refused(case, tmp_path, monkeypatch):
    change, expected = CONTENTS[case]
    content = change(torch_file.read(GOLDEN / "32.pth"))
    monkeypatch.setattr(torch_file, "read", lambda path: content)
    refused(tmp_path / "bad.pth", tmp_path, expected)


def test_an_output_that_is_taken_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path):
        with pytest.raises(InputError, match=f"output must be a new directory.*output={output}$"):
            from_checkpoint(GOLDEN / "32.pth", output)
    assert os.listdir(tmp_path) == ["file"]
    for output in (tmp_path, tmp_path / "no" / "back.pth"):
        with pytest.raises(InputError, match="output must be a file in an existing folder"):
            to_checkpoint(tmp_path, output)


def test_what_is_no_mistake_is_converted(tmp_path, monkeypatch, capsys):
    """Prefixes of DataParallel, numbers of another precision, and what nobody reads."""
    content = torch_file.read(GOLDEN / "32.pth")
    expected = dict(content["model"])
    own = named_variables(Golden(32).model())
    content["model"] = {
        f"module.module.{name}": x.astype("float64") if name in own else x
        for name, x in expected.items()
        if name in own or "running" in name  # without counts, as before PyTorch 0.4.1
    }
    content["optimizer"], content["hyperparams"]["dropout"] = {}, 0.1
    content["hyperparams"]["tclip"] = 20
    monkeypatch.setattr(torch_file, "read", lambda path: content)
    from_checkpoint("parallel.pth", tmp_path / "run")
    assert "parallel.pth was left out: optimizer, hyperparams.dropout." in capsys.readouterr().out
    monkeypatch.undo()
    for name, array in to_content(tmp_path / "run")["model"].items():
        if name in own:
            np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("value, expected", [(np.nan, "finite.*nan"), (-1.0, "negative.*-1.0")])
def test_a_run_without_finite_weights_is_not_written(value, expected, tmp_path):
    config = load_config("cifar10")
    config.update({"ndf": 4, "nrkhs": 16, "ndepth": 1})
    model = build(config, 2, 1)
    variance = model.encoder.bn1.moving_variance
    variance.assign([*np.ones(15), value])
    run = RunDirectory(tmp_path / "run", config)
    write_json(run.path / "classes.json", ["a", "b"])
    run.save(model, 7)
    with pytest.raises(InputError) as error:
        to_content(run.path)
    pattern = f"{NORM}.running_var must .*{expected}.*workdir={run.path} at step 7$"
    assert re.search(pattern, str(error.value)), error.value


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"objective": "rotation"}, "a run of Encoder, rotation$"),
        ({"patch_size": 32, "image_size": 64}, "a run of PatchEncoder, tasks 1-3"),
    ],
)
def test_a_run_of_another_kind_is_not_written(fields, expected, tmp_path):
    config = load_config("cifar10")
    config.update({"ndf": 4, "nrkhs": 16, "ndepth": 1} | fields)
    run = RunDirectory(tmp_path / "run", config)
    write_json(run.path / "classes.json", [])
    run.save(build(config, 0, 1), 7)
    with pytest.raises(InputError, match=f"the encoder amdim and.*{expected}"):
        to_content(run.path)
