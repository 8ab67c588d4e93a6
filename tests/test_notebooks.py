"""The notebooks run from start to end, with tiny configs."""

import made
import nbclient
import nbformat
import pytest
from golden_values import ROOT

NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    made.image_folder(tmp_path / "flowers", {"train": 70, "val": 10})
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests' / 'tiny'}:{ROOT}")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    pictures = [
        output for cell in codes for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert pictures or path.stem == "keras_backbone"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path):
    """So that none goes out of date, and no photograph is copied."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or not (cell.outputs or cell.execution_count)
