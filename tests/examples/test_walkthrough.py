"""The notebook, run from top to bottom on the model that comes along, as a reader would run it."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

NOTEBOOK = Path(__file__).parents[2] / "examples" / "walkthrough.ipynb"


def kinds(notebook: Any) -> list[list[list[str]]]:
    """For each cell, what its outputs are: the name of a stream, or the media types of a value."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            found = [sorted(out.get("data", {})) or [out["name"]] for out in cell.outputs]
            # What is printed slowly comes in parts.
            cells.append([kind for kind, _ in itertools.groupby(found)])
    return cells


@pytest.mark.nightly
def test_walkthrough_reproduces_committed_output_types(tmp_path: Path) -> None:
    committed = nbformat.read(NOTEBOOK, as_version=4)
    assert sum(map(len, kinds(committed))) > 15
    # In a process of its own: the client's event loop is none of pytest's business.
    command = [sys.executable, "-m", "jupyter", "execute", f"--output={tmp_path / 'run.ipynb'}"]
    done = subprocess.run(
        [*command, "--timeout=120", str(NOTEBOOK)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(NOTEBOOK.parents[1])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    executed = nbformat.read(tmp_path / "run.ipynb", as_version=4)
    assert kinds(executed) == kinds(committed)


def test_walkthrough_chooses_model_in_one_line() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    assert sources[0] == 'MODEL = "demo"'
    assert sum("demo" in source for source in sources) == 1
