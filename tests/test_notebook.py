"""The notebook: plain Python without outputs, which runs from the data to a boxed answer."""

import ast
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATH = ROOT / "docs" / "notebooks" / "quickstart.ipynb"
# What the tests look at, added as a last cell.
LAST_CELL = """
image.resize(shown.size).save("plain.png")
shown.save("shown.png")
assert prediction.boxes.shape == (len(prediction.boxes), 4)
"""


def read():
    return json.loads(PATH.read_text())


def sources(notebook):
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def test_the_notebook_is_stored_without_outputs_and_its_cells_are_python():
    notebook = read()
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse("".join(cell["source"]))
        for line in cell["source"]:
            assert len(line.rstrip("\n")) <= 120 and "/work" not in line
    (parameters,) = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    assert "".join(parameters["source"]).startswith("QUICK = False")


def test_the_notebook_has_the_format_of_jupyter():
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbformat.validate(read())


def quick():
    """Returns the notebook with few steps, and a last cell that saves what is looked at."""
    notebook = read()
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", ()):
            cell["source"] = ["QUICK = True\n"]
    last = {"cell_type": "code", "id": "last", "metadata": {}, "source": LAST_CELL}
    notebook["cells"].append(last | {"outputs": [], "execution_count": None})
    return notebook


def execute_with_jupyter(notebook, folder):
    """Executes a notebook as Jupyter does; returns the kinds of the outputs."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    node = nbformat.reads(json.dumps(notebook), as_version=4)
    client = nbclient.NotebookClient(
        node, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return {
        kind
        for cell in node.cells
        for out in cell.get("outputs", [])
        for kind in out.get("data", ())
    }


def has_jupyter():
    return all(importlib.util.find_spec(name) for name in ("nbclient", "nbformat", "ipykernel"))


@pytest.mark.slow
def test_the_notebook_goes_from_the_data_to_a_boxed_answer(tmp_path, monkeypatch):
    """With two steps of training; without Jupyter its cells are one program."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("OFA_DATA_DIR", raising=False)
    notebook = quick()
    if has_jupyter():
        assert "image/png" in execute_with_jupyter(notebook, tmp_path)
    else:
        (tmp_path / "program.py").write_text("\n\n".join(sources(notebook)))
        command = [sys.executable, "program.py"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ)
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "runs" / "notebook" / "checkpoints" / "2").is_dir()
    assert (tmp_path / "runs" / "notebook" / "metrics.csv").read_text().startswith("step,")
    plain, shown = (np.asarray(Image.open(tmp_path / name)) for name in ("plain.png", "shown.png"))
    drawn = {tuple(color) for color in shown[(shown != plain).any(-1)].tolist()}
    assert (0, 255, 0) in drawn and drawn <= {(0, 255, 0), (255, 0, 0)}
