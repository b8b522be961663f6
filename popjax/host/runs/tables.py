"""Records of a run as NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from popjax.arguments import typed
from popjax.host import paths
from popjax.host.errors import Refused
from popjax.host.runs import log, run_group, rundir


@dataclass(frozen=True)
class Recorded:
    """Records of a run directory; the run need not have finished.

    config:      content of ``config.json``.
    summary:     content of ``summary.json``; None before the end of the run.
    evaluations: columns [R] of ``eval.jsonl``, by name: ``member``, ``seed``, the swept hyperparameters,
                 ``generation``, ``env_steps``, ``train_seconds``, ``wall_seconds``, ``return``, and
                 ``returns`` and ``lengths`` [R, E].
    metrics:     columns [R] of ``metrics.jsonl``: the same up to ``wall_seconds``, and every metric [R, ...]
                 by its dotted name.
    """

    config: dict[str, Any]
    summary: dict[str, Any] | None
    evaluations: dict[str, np.ndarray]
    metrics: dict[str, np.ndarray]

    def frame(self, name: str = "evaluations") -> Any:
        """Return ``evaluations`` or ``metrics`` as a pandas DataFrame; columns with more axes become lists.

        Raises:
            Refused: pandas is not installed, or there is no such table.
        """
        tables = {"evaluations": self.evaluations, "metrics": self.metrics}
        if name not in tables:
            raise Refused(f"a run has no table {name!r}; use evaluations or metrics")
        try:
            import pandas
        except ImportError:
            raise Refused("a DataFrame needs pandas: pip install pandas") from None
        columns = tables[name].items()
        return pandas.DataFrame({key: x if x.ndim == 1 else x.tolist() for key, x in columns})


@typed(Refused)
def load(run_dir: str | Path) -> Recorded:
    """Return the records of the run in ``run_dir``.

    Raises:
        Refused: there is no run or several, or a record cannot be read.
    """
    root = paths.path(run_dir)
    if run_group.holds(root):
        names = ", ".join(entry.directory for entry in run_group.read(root))
        raise Refused(f"{root} holds several runs; load one of {names}")
    files, config = rundir.RunDirectory(root), rundir.read_config(root)
    evaluations, metrics = (_columns(log.read_lines(file)) for file in (files.evaluations, files.metrics))
    return Recorded(config, rundir.read_summary(root), evaluations, metrics)


def _columns(lines: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return lines with the same fields as columns; in JSON, NaN is null and an infinity a string."""
    names = lines[-1] if lines else {}
    return {name: _array([line.get(name) for line in lines]) for name in names}


def _array(values: list[Any]) -> np.ndarray:
    try:
        whole = np.array(values)
        if whole.dtype.kind in "biuf":
            return whole
    except ValueError:  # rows of several lengths
        pass
    try:
        return np.array(values, np.float64)
    except (TypeError, ValueError):
        rows = np.empty(len(values), object)
        rows[:] = values
        return rows
