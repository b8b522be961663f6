"""The notebooks run from top to bottom, in the default run with less to train."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


LESS = {
    "env_steps=28_000": "env_steps=2_800",
    "population=6": "population=3, batch=8",
    "length=6": "length=2",
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("less", [LESS, pytest.param({}, marks=pytest.mark.slow)], ids=["less", "whole"])
def test_notebook_runs_and_shows_what_is_committed(path, less, monkeypatch):
    if not less:
        monkeypatch.delenv("XLA_FLAGS", raising=False)  # it trains for longer than it compiles
    committed = nbformat.read(path, as_version=4)
    executed = nbformat.read(path, as_version=4)
    for long, short in less.items():
        assert sum(cell.source.count(long) for cell in executed.cells) == 1
        for cell in executed.cells:
            cell.source = cell.source.replace(long, short)
    NotebookClient(executed, timeout=900, kernel_name="python3").execute()
    for before, after in zip(committed.cells, executed.cells, strict=True):
        if after.cell_type == "code":
            kinds = [sorted(output.get("data", {})) for output in after.outputs]
            assert kinds == [sorted(output.get("data", {})) for output in before.outputs], after.source
