"""The notebooks: committed with their outputs, and still running from top to bottom."""

from __future__ import annotations

import asyncio
import re
import warnings
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE_PATH = re.compile(r"/tmp\b|/work\b|/root\b|/home/|site-packages|[A-Z]:\\Users")
LARGEST = 1_500_000  # bytes
SECONDS_A_CELL = 900

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def errors(notebook):
    return [
        f"{output.ename}: {output.evalue}"
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "error"
    ]


def texts(notebook):
    """Source, and every textual output, of every cell; pictures are left out."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield from output.get("traceback", [])
            yield from (str(data) for kind, data in output.get("data", {}).items() if kind != "image/png")


def test_there_are_notebooks():
    assert NOTEBOOKS


@notebooks
def test_committed_executed(path):
    """In order, in one go, without an error or a warning, and with pictures."""
    notebook = read(path)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert errors(notebook) == []
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []


@notebooks
def test_names_no_machine_path(path):
    assert [found.group() for text in texts(read(path)) for found in MACHINE_PATH.finditer(text)] == []


@notebooks
def test_small(path):
    assert path.stat().st_size < LARGEST


@pytest.mark.slow
@notebooks
def test_runs(path, tmp_path):
    with warnings.catch_warnings():
        # Jupyter's own: its choice of event loop, transport and zmq sockets is no business of ours.
        warnings.simplefilter("ignore")
        from nbclient import NotebookClient

        notebook = read(path)
        client = NotebookClient(
            notebook,
            timeout=SECONDS_A_CELL,
            kernel_name="python3",
            resources={"metadata": {"path": str(tmp_path)}},
        )
        asyncio.run(client.async_execute())
    assert errors(notebook) == []
