"""The notebooks run from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_what_is_committed(path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # it trains for longer than it compiles
    committed = nbformat.read(path, as_version=4)
    executed = nbformat.read(path, as_version=4)
    NotebookClient(executed, timeout=900, kernel_name="python3").execute()
    for before, after in zip(committed.cells, executed.cells, strict=True):
        if after.cell_type == "code":
            kinds = [sorted(output.get("data", {})) for output in after.outputs]
            assert kinds == [sorted(output.get("data", {})) for output in before.outputs], after.source
