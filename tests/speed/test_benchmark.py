import json
import math
import re
import subprocess
import sys

import matplotlib.image
import pytest

from amdim_tf.errors import InputError
from amdim_tf.speed.benchmark import read_earlier

TINY = ["--config.ndf=4", "--config.nrkhs=16", "--config.ndepth=1", "--config.batch_size=8"]


@pytest.mark.long
def test_every_part_is_measured_and_compared(tmp_path):
    product = "step, float32, XLA off, product of 2048x2048 matrices beside it, rate"
    earlier = {"rows": {product: {"value": 1.0, "unit": "GFLOP/s", "low": None, "high": None}}}
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    flags = ["--precisions=float32", "--xla=off", "--nce_batches=8,16", "--runs=1"]
    flags += ["--compare=earlier.json", "--output=now.json"]
    done = subprocess.run(
        [sys.executable, "-m", "amdim_tf.benchmark", *TINY, *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "now.json").read_text())
    rows = result["rows"]
    assert "hardware" in result and all(math.isfinite(row["value"]) for row in rows.values())
    for part in (
        "step, float32, XLA off",
        "step, float32, XLA off, of the product's rate",
        "step, float32, XLA off, views included, speed",
        "step, float32, XLA off, its convolutions one by one, gradients of kernels",
        "step, float32, XLA off, outside of products, part",
        "step, float32, XLA off, outside of products, memory's rate at most",
        "step, float32, XLA off, peak memory",
        "NCE of batch 16, scores in blocks",
        "NCE of batch 16, scores in blocks, peak memory",
        "views of 32 pixels from patches, one core, speed",
        "views of 128 pixels from JPEGs of 500x375, one core, speed",
        "exported encoder, batch of 64, speed",
        "the same in Keras, batch of 1, speed",
    ):
        assert rows[part]["value"] > 0, part
    assert rows["step, float32, XLA off, outside of products, part"]["value"] < 1
    assert rows["step, float32, XLA off"]["low"] <= rows["step, float32, XLA off"]["value"]
    ratio = re.search(rf"\| {product} \| .* \| x (\S+) \|", done.stdout)[1]
    assert float(ratio) == pytest.approx(rows[product]["value"], abs=0.01)
    picture = matplotlib.image.imread(tmp_path / "now.png")
    assert picture.shape[:2] == (420, 1080) and picture.std() > 0.05


def test_an_earlier_benchmark_that_is_none_is_refused(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "missing.json"):
        with pytest.raises(InputError, match=f"earlier benchmark. Received: compare=.*{name}"):
            read_earlier(tmp_path / name)
