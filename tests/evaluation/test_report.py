"""A run's page holds what the run has, and can be read in a browser."""

import re
import shutil

import pytest
from browser import look
from disk.keep import HERE

from amdim_tf.errors import InputError
from amdim_tf.evaluation.evaluation import evaluate
from amdim_tf.evaluation.report import report
from amdim_tf.training.run_files import read_result, run_config


@pytest.fixture
def unpacked(tmp_path):
    """A function that unpacks the run of a name, which an earlier version made."""

    def unpack(name):
        shutil.unpack_archive(HERE / f"{name}.tar.xz", tmp_path)
        return tmp_path / name

    return unpack


def check_alone(page):
    """Nothing is fetched and nothing is run."""
    assert "<script" not in page and "http-equiv" not in page
    for address in re.findall(r"(?:src|url|srcset)\s*[=(]\s*[\"']?([^\"')\s>]*)", page):
        assert address.startswith("data:image/png;base64,")


@pytest.mark.long
def test_a_finished_run(unpacked):
    run = unpacked("mixture")
    evaluate(run, run_config(run), ("knn",))
    path = report(run, run_config(run))
    assert path == run / "report.html"
    page = path.read_text()
    check_alone(page)
    accuracy = read_result(run)["accuracy"]["frozen"]["linear"]
    (low, high) = re.search(rf"{accuracy:.3f} \((\S+) to (\S+)\)", page).groups()
    assert 0 < float(low) < accuracy < float(high) < 1
    for width in (400, 1400):
        found = look(path, width)
        assert found.pop("width") <= width
        # Retrieval, views, mixtures, map, curves, and a confusion matrix.
        assert found == {"missing": [], "images": 6}


def test_a_run_that_is_not_finished(unpacked, monkeypatch):
    monkeypatch.setattr("amdim_tf.evaluation.report.visualize", _no_data)
    run = unpacked("stopped")
    (run / "metrics.jsonl").write_text('{"step": 1, "nce_1-5": 5.0}\n{"step": 2, "nc')
    page = report(run, run_config(run)).read_text()
    assert "Not finished: 3 updates so far" in page
    assert "Not measured." in page and "No pictures of images: none" in page
    assert page.count("<img") == 1  # curves, up to the line that was cut off


def _no_data(*_):
    raise InputError("none")


def test_a_run_without_its_data(unpacked, tmp_path):
    run = unpacked("converted")
    (run / "bad_images.txt").write_bytes(b"<b>\xff.png\tcut & off\n" * 25)
    path = report(run, run_config(run), tmp_path / "none", tmp_path / "page.html")
    page = path.read_text()
    check_alone(page)
    assert re.search("No pictures of images: .*Received: .*none", page)
    assert "&lt;b&gt;\\xff.png: cut &amp; off" in page and "25 images could not be used" in page
    assert "the first 20 are" in page and page.count("cut &amp; off") == 20


def test_a_page_that_cannot_be_written(unpacked, tmp_path):
    run = unpacked("converted")
    for output in (tmp_path, tmp_path / "none" / "page.html"):
        with pytest.raises(
            InputError, match="output must be a file in an existing folder.*Received: output"
        ):
            report(run, run_config(run), output=output)
