"""Photographs at 224 pixels, from a folder to a server: trained, measured, exported, served."""

import sys

import double
import numpy as np
import pytest
import tensorflow as tf
from golden_values import ROOT

from amdim_tf import load_encoder, load_preprocess
from amdim_tf.config import load_config
from amdim_tf.evaluation.evaluation import evaluate
from amdim_tf.runs.training import train
from amdim_tf.training.run_files import evaluation_config

sys.path.append(str(ROOT / "export"))
import client  # noqa: E402

FLOWERS = ROOT.parent / "shared" / "data" / "image_folder"


@pytest.mark.long
def test_flowers_at_224(tmp_path):
    if not FLOWERS.is_dir():
        pytest.skip("the photographs of flowers are not there")
    for split, count in (("train", 8), ("val", 4)):
        for flower in sorted((FLOWERS / split).iterdir()):
            (tmp_path / "data" / split / flower.name).mkdir(parents=True)
            for path in sorted(flower.iterdir())[:count]:
                (tmp_path / "data" / split / flower.name / path.name).symlink_to(path)
    config = load_config("image_folder")
    config.update({"encoder": "mobilenetv3small", "image_size": 224, "nrkhs": 64, "batch_size": 8})
    config.update({"steps": 3, "log_every": 1})
    run, data = tmp_path / "run", tmp_path / "data"
    result = train(config, run, data, baselines=False, strategy="none", xla="off")
    assert not result["missing"] and result["test_images"] == 20
    assert set(result["accuracy"]["frozen"]) == {"linear", "mlp", "knn"}
    measured = evaluate(run, evaluation_config(run), ("knn",), data)
    assert measured["knn"]["accuracy"]["top1"] == result["accuracy"]["frozen"]["knn"]

    files = sorted(data.glob("val/*/*"))[::8]
    contents = [path.read_bytes() for path in files]
    preprocess, encoder = load_preprocess(run), load_encoder(run, "f1")
    pixels = [tf.io.decode_jpeg(each, 3)[None] for each in contents]
    expected = np.concatenate([encoder(preprocess(image)) for image in pixels])
    with double.serve(run / "export", {}) as (by_grpc, *_):
        found = client.embed_grpc(by_grpc, contents)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
