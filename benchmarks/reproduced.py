"""Read reproduced results from run directories, and show them beside the papers' numbers.

``NAME.json`` has, for each row on each task, our numbers, the paper's, the shares of the paper's budget and
seeds that ours are based on, and the runs, each with seeds, scores, commit, hardware, versions and seconds;
and the evaluations of every seed. It grows run by run: a report keeps rows and seeds whose runs it does not
find. A run may have a ``remark``, written by hand. Documentation is generated from these files.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as Shown

from benchmarks import record, registry, table_rows
from benchmarks.registry import Cell, Table
from benchmarks.trained import origin
from popjax.host.checkpoints import checkpoint
from popjax.host.errors import FAILURES, Refused
from popjax.host.report import charts, measures
from popjax.host.report.records import Curve, Group
from popjax.host.runs import log, run_group, rundir
from popjax.host.scaling import sweep


def finished(cell: Cell, runs: Path) -> bool:
    """Return whether the run of a cell has its budget, with all of its seeds."""
    members = {member.identity for member in sweep.grid(cell.seed, cell.seeds, {})}
    return run_group.finished(runs / cell.directory, cell.env_steps, members)


def left(cell: Cell, runs: Path) -> str:
    """Return in words how much of a cell's run is left, and how long that takes at its pace so far."""
    if finished(cell, runs):
        return "finished"
    lines = log.read_lines(rundir.RunDirectory(runs / cell.directory).evaluations)
    reached: dict[int, int] = {line["member"]: line["env_steps"] for line in lines}
    done = sum(reached.values()) / (cell.seeds * cell.env_steps)
    if not done:
        return f"all of {cell.seeds} x {cell.env_steps:,} environment steps left"
    hours = lines[-1]["wall_seconds"] / done * (1 - done) / 3600
    return f"{done:.1%} of {cell.seeds} x {cell.env_steps:,} environment steps done, {hours:.1f} h left"


def estimate(cell: Cell, sample: Cell, runs: Path) -> str:
    """Return in words the time and memory that a whole cell takes, estimated from ``sample``, a shorter run
    of it that was trained below ``runs``."""
    summary = rundir.read_summary(runs / sample.directory)
    if summary is None:
        return "no estimate: its beginning was not trained"
    pace, memory = summary["steps_per_second"], summary["peak_memory_bytes"]
    if not pace:
        return "no estimate: its beginning was too short to be timed"
    hours = (cell.seeds * cell.env_steps / pace + summary["compile_seconds"]) / 3600
    needed = f"{memory / 1e9:.1f} GB" if memory else "unknown memory"
    return f"about {hours:.1f} h in all on {summary['hardware']}, {needed}"


@dataclass(frozen=True)
class Study:
    """A script to be run on a run: its command, from benchmarks/ on, and its file of results."""

    command: tuple[str, ...]
    file: Path
    run: Path

    @property
    def made(self) -> bool:
        """Return whether there are results of this run as far as it is trained."""
        return (origins := self._origins) is not None and origins[0] == origins[1]

    @property
    def longer(self) -> bool:
        """Return whether there are results of a run with more steps or more seeds."""
        if (origins := self._origins) is None:
            return False
        there, ours = (one["env_steps"] or [0] for one in origins)
        return max(there) > max(ours) or len(there) > len(ours)

    @property
    def _origins(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return the origin of the results, and of this run; None if one of them cannot be read."""
        try:
            (there,) = json.loads(self.file.read_text(encoding="utf-8"))["runs"]
            return there, origin(self.run)
        except (OSError, ValueError, KeyError, checkpoint.Damaged, *FAILURES):
            return None


def studies(name: str, cells: Sequence[Cell], runs: Path, out: Path) -> Iterator[Study]:
    """Yield the study of each run of ``cells`` that a table has one for."""
    _, table = registry.find(name)
    for cell in cells:
        if table.study and cell.row in (table.studied or table.rows):
            run, file = runs / cell.directory, out / f"{name}-{cell.task}-{cell.directory.name}.json"
            script, *options = [word.format(run=run, out=file) for word in shlex.split(table.study)]
            yield Study((f"benchmarks/{script}", *options), file, run)


def stored(file: Path) -> dict[str, Any]:
    """Return what a file of results has; no rows if there is none.

    Raises:
        Refused: it is something else, or an older version of this script wrote it.
    """
    if not file.exists():
        return {"rows": [], "figures": []}
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        old = any("runs" not in row for row in found["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        raise Refused(f"{file} is not a readable file of results: move it, or name another --out") from None
    if old:
        raise Refused(f"{file} has rows without runs, of an older version: move it, or name another --out")
    return found


def report(name: str, cells: Sequence[Cell], runs: Path, out: Path) -> int:
    """Print the table, and write it and the figures to ``out``; return 1 if there is nothing yet.

    Other rows in ``out``, and other seeds with the same settings, are kept; a row is not replaced by one that
    lacks a seed or is shorter. A remark stays with its run. A figure of rows whose curves were not stored is
    kept under another name.
    """
    _, table = registry.find(name)
    found = {
        (cell.task, cell.row): (cell, table_rows.groups(cell, runs))
        for cell in cells
        if cell.row in table.rows
    }
    found = {place: (cell, groups) for place, (cell, groups) in found.items() if groups}
    drawn = [study.file.with_suffix(".png") for study in studies(name, cells, runs, out) if study.made]
    if not found and not drawn:
        print(f"nothing of {name} has been evaluated yet")
        return 1
    file = out / f"{name}.json"
    before = stored(file)
    rows, curves = before["rows"], before.get("curves", {})
    drawable = {*curves, *(task for task, _ in found if not any(task == row["task"] for row in rows))}
    for (task, label), (cell, groups) in found.items():
        there = {row["column"]: row for row in rows if _place(row) == (task, label)}
        own = list(table_rows.build(table, cell, groups, _comparable(table, before, there), runs))
        pairs = [(there[row["column"]], row) for row in own if row["column"] in there]
        if why := [reason for old, row in pairs if (reason := table_rows.lost(old, row))]:
            print(f"{file} keeps {label} on {task}, which has {why[0]}; remove it first to replace it")
            continue
        rows = [row for row in rows if _place(row) != (task, label)] + own
        kept = {one["seed"]: one for one in curves.get(task, {}).get(label, ())}
        kept |= {curve.seed: _stored(curve) for group in groups[::-1] for curve in group.curves}
        curves.setdefault(task, {})[label] = [
            kept[seed] for seed in sorted(kept) if seed in table_rows.seeds(own[0])
        ]
    rows.sort(key=lambda row: (_index(table.tasks, row["task"]), _index(table.rows, row["row"])))
    out.mkdir(parents=True, exist_ok=True)
    _keep_figures(name, before, [task for task in curves if task not in drawable], out)
    figures = _draw(name, table, curves, out)
    figures += [path.name for path in drawn]
    figures = list(dict.fromkeys([*(one for one in before["figures"] if (out / one).exists()), *figures]))
    about = {"name": name, "where": table.where, "note": table.note, "measures": dict(table.measures)}
    record.write(file, **about, factor=table.factor, rows=rows, figures=figures, curves=curves)
    _show(name, table, rows)
    return 0


def _comparable(
    table: Table, before: Mapping[str, Any], there: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Return the rows, by column, whose scores have the table's present measure and factor."""
    measures, factor = before.get("measures", {}), before.get("factor", table.factor)
    now = {column for column, name in table.measures.items() if measures.get(column) == name}
    return {column: row for column, row in there.items() if column in now and factor == table.factor}


def _index(names: Sequence[str], name: str) -> int:
    """Return the place of a name; after all others if the table no longer has it."""
    return names.index(name) if name in names else len(names)


def _keep_figures(name: str, before: dict[str, Any], tasks: Sequence[str], out: Path) -> None:
    """Rename the figures of ``tasks``, which were drawn from curves that are not stored."""
    for task, kind in product(tasks, ("", "-time")):
        old, new = f"{name}-{task}{kind}.png", f"{name}-{task}-earlier{kind}.png"
        if old in before["figures"] and (out / old).exists():
            (out / old).rename(out / new)
            before["figures"] = [new if figure == old else figure for figure in before["figures"]]


def _place(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["task"], row["row"]


def _stored(curve: Curve) -> dict[str, Any]:
    """Return a curve for JSON."""
    seconds = None if curve.seconds is None else np.round(curve.seconds, 1).tolist()
    returns = np.round(curve.returns, 3).tolist()
    return {"seed": curve.seed, "env_steps": curve.env_steps.tolist(), "returns": returns, "seconds": seconds}


def _draw(name: str, table: Table, curves: Mapping[str, Mapping[str, Any]], out: Path) -> list[str]:
    """Draw the stored curves of every task against environment steps and time; return the names of files."""
    look, figures = charts.styles(table.rows), []
    for task in [task for task in table.tasks if task in curves]:
        labels = [row for row in table.rows if row in curves[task]]
        stored = [tuple(Curve(**curve) for curve in curves[task][label]) for label in labels]
        groups = [Group(label, task, (), seeds) for label, seeds in zip(labels, stored, strict=True)]
        for kind, by_time in (("", False), ("-time", True)):
            if shown := [group for group in groups if not by_time or group.timed]:
                figures.append(f"{name}-{task}{kind}.png")
                charts.learning_curves(task, shown, look, by_time).savefig(out / figures[-1])
    return figures


def _show(name: str, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    shown = Shown(title=f"{name}: {table.where}", caption=_scored(table.measures))
    header = ("task", "row", "ours", "the paper", "fraction of the budget")
    for place, title in enumerate(header):
        shown.add_column(title, justify="left" if place < 2 else "right")
    for cells in _cells(rows):
        shown.add_row(*cells)
    Console().print(shown)


def _scored(named: Mapping[str, str]) -> str:
    """Return a sentence that explains the scores of a seed, from measures by column."""
    words = {column: measures.measure(name).words for column, name in named.items()}
    each = [f"{column}: {told}" if column else told for column, told in words.items()]
    told = f"The score{'s' * (len(each) > 1)} of a seed {'are' if len(each) > 1 else 'is'} {'; '.join(each)}."
    evaluated = not any(name.startswith(measures.METRIC) for name in named.values())
    return told if evaluated else f"{told} Figures show its evaluations."


def _cells(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        label = f"{row['row']}, {row['column']}" if row["column"] else row["row"]
        ours, theirs = row["seeds"], row["seeds_of_paper"]
        of = f" of {theirs}" if theirs and ours < theirs else ""
        seeds = f" ({ours}{of} seed{'s' if of or ours > 1 else ''})"
        fraction = f"{row['fraction_of_budget']:.1%}"
        yield row["task"], label, _spelt(row["ours"]) + seeds, _spelt(row["paper"]), fraction


def _spelt(numbers: Mapping[str, float] | None) -> str:
    """Return mean, deviation and median as "mean ± deviation, median"."""
    if not numbers:
        return "-"
    parts = []
    if numbers.get("mean") is not None:
        std = numbers.get("std")
        parts.append(f"{numbers['mean']:,.4g}" + ("" if std is None else f" ± {std:,.3g}"))
    if numbers.get("median") is not None:
        parts.append(f"median {numbers['median']:,.4g}")
    return ", ".join(parts)


def page(results: Path, place: str = ".") -> str:
    """Return Markdown about everything in ``results``, which lie at ``place`` as seen from the page."""
    found = {name: results / f"{name}.json" for name in registry.names()}
    missing = [name for name, path in found.items() if not path.exists()]
    parts = [
        _section(name, json.loads(path.read_text(encoding="utf-8")), place)
        for name, path in found.items()
        if path.exists()
    ]
    if missing:
        parts.append(f"Not run yet: {', '.join(f'`{name}`' for name in missing)}.")
    return "\n\n".join(parts) + "\n"


def _section(name: str, found: Mapping[str, Any], place: str) -> str:
    rows = [
        "| task | row | ours | the paper | fraction of the budget |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in _cells(found["rows"])),
    ]
    origins = dict.fromkeys(
        (run["git_commit"] or "-", " with uncommitted changes" * bool(run.get("git_dirty")), run["device"])
        for row in found["rows"]
        for run in row["runs"]
    )
    trained = "; ".join(f"`{commit[:8]}`{changes} on {device}" for commit, changes, device in origins)
    paragraphs = [
        f"### {name}",
        f"{registry.names()[name].title}: {found['where']}.",
        *filter(None, [found["note"]]),
        _scored(found["measures"]),
        "\n".join(rows),
        *filter(None, [_unfinished(name, found["rows"])]),
        *_remarks(found["rows"]),
        f"Trained at {trained}.",
        *(f"![{figure}]({place}/{figure})" for figure in found["figures"]),
    ]
    return "\n\n".join(paragraphs)


def _unfinished(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return in words what of a table has not been run at all; "" if there is nothing."""
    _, table = registry.find(name)
    trained = {_place(row) for row in rows}
    begun = [task for task in table.tasks if any(there == task for there, _ in trained)]
    lacks = {task: [row for row in table.rows if (task, row) not in trained] for task in begun}
    parts = [f"{_listed(missing)} on {task}" for task, missing in lacks.items() if missing]
    if rest := [task for task in table.tasks if task not in begun]:
        parts.append(f"every row on {_listed(rest)}")
    return f"Not run yet: {'; '.join(parts)}." if parts else ""


def _remarks(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the remarks on runs, each with the tasks, or the rows of a task, that it is about."""
    trained: dict[str, dict[str, None]] = {}
    about: dict[str, dict[str, dict[str, None]]] = {}
    for row in rows:
        for run, label in zip(row["runs"], table_rows.named(row["row"], row["runs"]), strict=True):
            trained.setdefault(row["task"], {})[label] = None
            if remark := run.get("remark"):
                about.setdefault(remark, {}).setdefault(row["task"], {})[label] = None
    for remark, tasks in about.items():
        parts = [
            task if labels == trained[task] else f"{_listed(labels)} on {task}"
            for task, labels in tasks.items()
        ]
        yield remark if tasks == trained else f"{_listed(parts)}: {remark}"


def _listed(names: Iterable[str]) -> str:
    """Return names as a list in a sentence; with semicolons if a name has a comma."""
    *first, last = names
    if not first:
        return last
    mark = "; " if any("," in name for name in (*first, last)) else ", "
    return f"{mark.join(first)}{mark if mark == '; ' else ' '}and {last}"
