"""Rows of a table of results: the scores of a row's seeds, and facts of the runs that trained them.

Seeds may be trained in several runs, at other times or on other machines; a row pools those that have the
same settings and length.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.registry import Cell, Table
from popjax.host.errors import Refused
from popjax.host.report import measures, records
from popjax.host.report.records import Group
from popjax.host.runs import log, rundir

STATISTICS = {
    "mean": np.mean,
    "median": np.median,
    "std": lambda x: np.std(x, ddof=1) if len(x) > 1 else None,
}
OF_A_RUN = (
    "run-dir",
    "resume",
    "seed",
    "seeds",
    "devices",
    "launcher",
    "launcher-option",
    "max-minutes",
    "checkpoint-every",
    "log-every",
)
"""Options that do not change what a seed learns."""


def groups(cell: Cell, runs: Path) -> list[Group]:
    """Return the records of the runs of a cell's row, each with its own seeds: only the longest runs, and
    only runs of which all seeds have been trained."""
    first = runs / replace(cell, seed=0).directory
    found = [_group(cell, root) for root in (first, *sorted(first.parent.glob(f"{first.name}-from-seed-*")))]
    begun = [group for group in found if group and group.reached]
    return [group for group in begun if group.reached == max(one.reached for one in begun)]


def _group(cell: Cell, root: Path) -> Group | None:
    """Return what a run has recorded; None if there is none."""
    try:
        (found,) = records.read(root).records
    except Refused:
        return None
    (group,) = records.grouped([found], [cell.row])
    return group


def build(
    table: Table, cell: Cell, found: Sequence[Group], there: Mapping[str, Mapping[str, Any]], runs: Path
) -> Iterator[dict[str, Any]]:
    """Yield a row of results for every measure, with the other seeds of the stored row, which ``there`` has
    by column. Minutes are those of one run with all of its seeds."""
    reached = found[0].reached
    said = table.paper.get(cell.task, {}).get(cell.row)
    for column, name in table.measures.items():
        old = there[column]["runs"] if column in there else []
        made = [with_remark(_run(group, table.factor, name, runs), old) for group in found]
        if name == "minutes":
            made, old = made[:1], []
        as_long = column in there and there[column]["env_steps"] == reached
        every = pool(made, old if as_long else [])
        scores = np.array([score for run in every for score in run["scores"]])
        theirs = said.get(column) if isinstance(said, Mapping) else said
        ours = {key: STATISTICS[key](scores) for key in table.statistics or ("mean", "std")}
        yield {
            "task": cell.task,
            "row": cell.row,
            "column": column,
            "ours": {key: None if value is None else round(float(value), 3) for key, value in ours.items()},
            "paper": dict(zip(table.statistics, theirs, strict=True)) if theirs else None,
            "env_steps": reached,
            "fraction_of_budget": round(min(reached / cell.full_steps, 1.0), 4),
            "seeds": len(scores),
            "seeds_of_paper": cell.paper.seeds if cell.paper.seeds_stated else None,
            "runs": every,
        }


def _run(group: Group, factor: float, name: str, runs: Path) -> dict[str, Any]:
    """Return the seeds of a run with their scores, and the facts of the run."""
    (run,) = group.records
    scores = factor * measures.measure(name).of(
        group, min(int(curve.env_steps[-1]) for curve in group.curves)
    )
    uses = json.dumps(run.config.get("runs") or None, sort_keys=True)
    return {
        "seeds": [curve.seed for curve in group.curves],
        "scores": np.round(scores, 3).tolist(),
        "wall_seconds": log.read_lines(rundir.RunDirectory(run.root).evaluations)[-1].get("wall_seconds"),
        **{key: run.config.get(key) for key in ("device", "git_commit", "git_dirty", "versions")},
        "command": portable(run.config.get("command"), runs),
        "built_on": None if uses == "null" else hashlib.sha256(uses.encode()).hexdigest()[:16],
    }


def portable(command: str | None, runs: Path) -> str | None:
    """Return the command of a run without this machine's paths of popjax and of the runs."""
    if command is None:
        return None
    program, script, *rest = shlex.split(command)
    script = f"scripts/{Path(script).name}" if Path(script).is_absolute() else script
    size = len(runs.parts)
    words = [
        str(Path("runs/reproduce", *parts[size:]))
        if (parts := Path(word).parts)[:size] == runs.parts
        else word
        for word in rest
    ]
    return shlex.join([program, script, *words])


def pool(found: Sequence[Mapping[str, Any]], stored: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs of a row by their seeds: ``found``, and those of ``stored`` with the same settings.

    A seed that several runs have is left to the first of them; the others lose it and their wall time.
    """
    runs: list[dict[str, Any]] = []
    for run in (*found, *(one for one in stored if _settings(one) == _settings(found[0]))):
        taken = {seed for one in runs for seed in one["seeds"]}
        pairs = [pair for pair in _scored(run) if pair[0] not in taken]
        if len(pairs) == len(run["seeds"]):
            runs.append({**run})
        elif pairs:
            seeds, scores = map(list, zip(*pairs, strict=True))
            runs.append({**run, "seeds": seeds, "scores": scores, "wall_seconds": None})
    return sorted(runs, key=lambda one: one["seeds"])


def with_remark(run: Mapping[str, Any], stored: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return ``run`` with the remark of the same run, or of a part of it, among ``stored``."""
    for one in stored:
        if "remark" in one and one["git_commit"] == run["git_commit"] and {*_scored(one)} & {*_scored(run)}:
            return {**run, "remark": one["remark"]}
    return {**run}


def lost(stored: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Return in words why ``row`` must not replace the stored one; "" if it may."""
    if stored["env_steps"] > row["env_steps"]:
        return "longer runs"
    missing = sorted(seeds(stored) - seeds(row))
    several = "s" * (len(missing) > 1)
    return f"seed{several} {', '.join(map(str, missing))} of other settings or steps" if missing else ""


def seeds(row: Mapping[str, Any]) -> set[int]:
    """Return the seeds of a row."""
    return {seed for run in row["runs"] for seed in run["seeds"]}


def named(row: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name of each run of a row: the row's own, with the seeds if there are several runs."""
    if len(runs) == 1:
        return [row]
    return [
        f"{row} (seed{'s' * (len(run['seeds']) > 1)} {', '.join(map(str, run['seeds']))})" for run in runs
    ]


def _scored(run: Mapping[str, Any]) -> list[tuple[int, float]]:
    return list(zip(run["seeds"], run["scores"], strict=True))


def _settings(run: Mapping[str, Any]) -> object:
    """Return what decides what a seed learns: the options of the run's command, and the runs that it builds
    on. A run whose command is not one of run.py, as with some launchers, equals only itself."""
    words = shlex.split(run["command"] or "")
    if "--env" not in words:
        return id(run)
    groups: list[list[str]] = [["method"]]
    for word in words[2:]:
        if word.startswith("--"):
            groups.append(word.split("=", 1))
        else:
            groups[-1].append(word)
    own = sorted(group for group in groups if group[0].removeprefix("--") not in OF_A_RUN)
    return own, run.get("built_on")
