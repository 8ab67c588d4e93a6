"""The authors' checkpoints become runs, to export, measure and train further, and back."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from reference import GOLDEN, SIZES, Golden, relative_error

from amdim_tf import torch_file
from amdim_tf.convert import from_checkpoint, named_variables, to_checkpoint, to_content
from amdim_tf.errors import InputError
from amdim_tf.evaluate import evaluate
from amdim_tf.export import export
from amdim_tf.run_directory import load_model, read_class_names, run_config
from amdim_tf.train import train

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


@pytest.fixture(scope="module", params=SIZES)
def converted(request, tmp_path_factory):
    """Golden values of a size, and the run that its checkpoint became."""
    run = tmp_path_factory.mktemp("converted") / "run"
    from_checkpoint(GOLDEN / f"{request.param}.pth", run)
    return Golden(request.param), run


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


def test_bad_files_are_refused(tmp_path, monkeypatch):
    whole = (GOLDEN / "32.pth").read_bytes()
    path = tmp_path / "bad.pth"
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2], old_layout({})[:40]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="checkpoint must be a file of torch.save"):
            from_checkpoint(path, tmp_path / "run")
    with pytest.raises(InputError, match="No such file"):
        from_checkpoint(tmp_path / "none.pth", tmp_path / "run")
    path.write_bytes(old_layout({"weights": 1}))
    with pytest.raises(InputError, match="must be one of AMDIM, with model.* lacks 'model'"):
        from_checkpoint(path, tmp_path / "run")

    outside = torch_file.Tensor(("<f4", "0"), 2, (3,), (1,))
    with pytest.raises(ValueError, match="outside of its storage"):
        outside.array({"0": bytes(16)})
    content = torch_file.read(GOLDEN / "32.pth")
    content["hyperparams"]["ndf"] = 8
    monkeypatch.setattr(torch_file, "read", lambda path: content)
    with pytest.raises(InputError, match="conv.weight should be .3, 3, 3, 8..* .3, 3, 3, 16."):
        from_checkpoint("wide.pth", tmp_path / "run")
    assert not (tmp_path / "run").exists()
