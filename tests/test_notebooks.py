"""The notebooks run from top to bottom and show what is committed; the default run has the cheapest."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LESS = {
    "first_population": {
        "env_steps=28_000": "env_steps=2_800",
        "population=6": "population=3, batch=8",
        "length=6": "length=2",
    }
}


def kinds(cell):
    """Return the kinds of what a cell shows; how often it prints is the kernel's affair."""
    return {kind for output in cell.outputs for kind in output.get("data", {output.output_type: None})}


def run(path, less):
    committed = nbformat.read(path, as_version=4)
    executed = nbformat.read(path, as_version=4)
    for long, short in less.items():
        assert sum(cell.source.count(long) for cell in executed.cells) == 1
        for cell in executed.cells:
            cell.source = cell.source.replace(long, short)
    NotebookClient(executed, timeout=900, kernel_name="python3").execute()
    for before, after in zip(committed.cells, executed.cells, strict=True):
        if after.cell_type == "code":
            assert kinds(after) == kinds(before), after.source


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LESS))
def test_notebook_runs_with_less_to_train(name):
    run(next(path for path in NOTEBOOKS if path.stem == name), LESS[name])


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_what_is_committed(path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # it trains for longer than it compiles
    run(path, {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_as_it_ran(path):
    """Every cell has run, in order and without an error."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
