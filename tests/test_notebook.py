"""examples/notebook.ipynb, run in a kernel as its reader would."""

import json
import shutil
from pathlib import Path

import pytest

from mmrag_batch import evaluate

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"


def test_what_is_committed_shows_no_result_of_another_day() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if "outputs" in cell]
    assert len(cells) >= 4
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs_and_its_figures_show_themselves(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="no nbclient: make check")
    nbformat = pytest.importorskip("nbformat")
    shutil.copytree(NOTEBOOK.parent, tmp_path / "examples")
    notebook = nbformat.read(tmp_path / "examples" / NOTEBOOK.name, as_version=4)
    place = {"metadata": {"path": str(tmp_path / "examples")}}
    nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()
    shown = {
        cell["id"]: output["data"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data" in output
    }
    assert shown["evaluate"]["text/html"].startswith('<iframe title="Figures of out.csv"')
    assert shown["evaluate"]["text/plain"].startswith("Evaluation(")
    output = tmp_path / "build" / "notebook" / "out.csv"
    accuracy = evaluate(output).overall.accuracy
    assert accuracy is not None
    assert accuracy.value > 0.9
    assert shown["accuracy"]["text/plain"] == f"({accuracy.correct}, 60)"
    assert shown["unsure"]["text/html"].count("<tr") == 1 + 5
    assert "image_missing" in shown["error"]["text/plain"]
