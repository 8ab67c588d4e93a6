"""ONNX: the guide's command makes of an export what onnxruntime runs to the same values."""

import re
import shlex
import sys

import numpy as np
import pytest
import tensorflow as tf
from golden_values import ROOT
from test_export import small_config

from amdim_tf.serving.saved_model import export
from amdim_tf.training.building import build_model

GUIDE = ROOT / "docs" / "serving.md"


@pytest.mark.long
def test_the_readmes_command(tmp_path, monkeypatch):
    convert = pytest.importorskip("tf2onnx.convert", reason="the extra onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    config = small_config()
    folder = export(build_model(config, 0), config, tmp_path / "DIR")
    (command,) = re.findall(r"-m (tf2onnx\.convert .*)", GUIDE.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    convert.main()
    session = onnxruntime.InferenceSession("encoder.onnx")
    images = np.random.default_rng(0).normal(size=(5, 64, 64, 3)).astype("float32")
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, {"images": images}), strict=True))
    served = tf.saved_model.load(str(folder)).signatures["normalized"]
    expected = served(images=tf.constant(images))
    assert set(outputs) == set(expected) == {"f1", "f5", "f7", "r1", "r5", "r7"}
    for name, values in outputs.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-4)
