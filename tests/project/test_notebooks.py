"""The notebooks run from top to bottom, in small mode and without a network."""

import ast
import importlib
import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.reference import REFERENCE

ROOT = REFERENCE.parent.parent
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))

# `sitecustomize` of the kernel and of all programs that it starts.
OFFLINE = """
import socket

connect = socket.socket.connect

def connect_here(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
        raise OSError(f"Small mode fetches nothing. Asked for: {address}")
    return connect(self, address)

socket.socket.connect = connect_here
"""

# What a cell at the end prints, and what holds for it.
RESULTS = {
    "1_quickstart": (
        "[maps.shape, float(maps.sum((-2, -1)).max()), saliency.shape,"
        " [[entry[2] for entry in best] for best in predictions],"
        " [list(values.shape) for _, _, values in columns]]",
        lambda shape, largest, saliency, scores, of_classes: (
            shape == [3, 2, 4, 4, 4]
            and 0 < largest < 1
            and saliency == [3, 4, 4]
            and all(best == sorted(best, reverse=True) for best in scores)
            and of_classes == 3 * [[3, 4, 4]]
        ),
    ),
    "2_finetune": (
        "[history['loss'], float(accuracy), summary['top1'],"
        " float(difference), model.input_shape]",
        lambda losses, accuracy, larger, difference, shape: (
            losses[-1] < losses[0]
            and min(accuracy, larger) > 0.2
            and difference < 1e-6
            and shape == [None, 42, 42, 3]
        ),
    ),
    "3_deploy": (
        "[{row['name']: row['top1'] for row in rows},"
        " {row['name']: row['agreement'] for row in rows}, same]",
        lambda top1, agreement, same: (
            len(top1) == 4
            and min(top1.values()) > 0.4
            and min(agreement.values()) > 0.9
            and same == 5
        ),
    ),
    "4_study": (
        "[accuracies, losses, float(abs(gammas - GAMMA).max())]",
        lambda accuracies, losses, moved: (
            min(accuracies.values()) > 0.2
            and all(loss[-1] < loss[0] - 0.1 for loss in losses.values())
            and moved > 0.02
        ),
    ),
}


# All but the first train: a minute or more each, of commands that have tests of
# their own. The workflow runs them.
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.large] * (i > 0))
        for i, path in enumerate(NOTEBOOKS)
    ],
)
def test_runs_in_small_mode(path, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(OFFLINE)
    monkeypatch.setenv("KERAS_CAIT_SMALL", "1")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    asked, holds = RESULTS[path.stem]
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:  # in the kernel, which has TensorFlow already
        cell.source = cell.source.replace("!python -m", "%run -m")
    last = f"import json\nprint(json.dumps({asked}))"
    notebook.cells.append(nbformat.v4.new_code_cell(last))
    folder = tmp_path / "here"
    folder.mkdir()
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": folder}}
    )
    client.execute()
    (printed,) = notebook.cells[-1].outputs
    assert holds(*json.loads(printed.text)), printed.text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_clean(path):
    """No outputs, and of the project only what is public."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        assert cell.outputs == [] and cell.execution_count is None
        for module, name in imported(cell.source):
            assert not any(
                part.startswith("_") for part in (*module.split("."), name)
            )
            # Of the programs, a notebook has the commands.
            assert module.startswith("keras_cait")
            assert hasattr(importlib.import_module(module), name)


def test_install_cells_are_the_same():
    notebooks = [nbformat.read(path, as_version=4) for path in NOTEBOOKS]
    assert len({notebook.cells[1].source for notebook in notebooks}) == 1
    assert all(len(notebook.cells) <= 25 for notebook in notebooks)


def imported(source):
    """What a cell imports from the project: pairs of module and name.

    Lines for the shell and IPython are no Python.
    """
    lines = [
        f"{line[: len(line) - len(line.lstrip())]}pass"
        if line.lstrip().startswith(("!", "%"))
        else line
        for line in source.splitlines()
    ]
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(
            ("keras_cait", "training", "export")
        ):
            yield from ((node.module, alias.name) for alias in node.names)
