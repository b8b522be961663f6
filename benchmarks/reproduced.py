"""Read what has been reproduced from run directories, and show it beside what the papers say.

``NAME.json`` has for each row on each task our numbers, the paper's, the share of the paper's budget and of
its seeds that they are of, and commit, hardware and seconds of the run. Documentation is made of these files.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as Shown

from benchmarks import record, registry
from benchmarks.registry import Cell, Table
from popjax.host.errors import Refused
from popjax.host.report import charts, measures, records
from popjax.host.report.records import Group
from popjax.host.runs import log, run_group, rundir
from popjax.host.scaling import sweep

STATISTICS = {
    "mean": np.mean,
    "median": np.median,
    "std": lambda x: np.std(x, ddof=1) if len(x) > 1 else None,
}


def finished(cell: Cell, runs: Path) -> bool:
    """Return whether the run of a cell has its budget, with all of its seeds."""
    members = {member.identity for member in sweep.grid(0, cell.seeds, {})}
    return run_group.finished(runs / cell.directory, cell.env_steps, members)


def left(cell: Cell, runs: Path) -> str:
    """Return in words how much of a cell's run is left, and for how long at its own pace so far."""
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
    """Return in words what all of a cell takes by the pace and the memory of ``sample``, its beginning, which
    was trained below ``runs``."""
    try:
        summary = json.loads(rundir.RunDirectory(runs / sample.directory).summary.read_text())
    except OSError:
        return "no estimate: its beginning was not trained"
    pace, memory = summary["steps_per_second"], summary["peak_memory_bytes"]
    if not pace:
        return "no estimate: its beginning was too short to be timed"
    hours = (cell.seeds * cell.env_steps / pace + summary["compile_seconds"]) / 3600
    needed = f"{memory / 1e9:.1f} GB" if memory else "unknown memory"
    return f"about {hours:.1f} h in all on {summary['hardware']}, {needed}"


def studies(name: str, cells: Sequence[Cell], runs: Path, out: Path) -> Iterator[list[str]]:
    """Yield the commands, from benchmarks/ on, of what a table does with the finished runs of ``cells``; the
    last word is the file of results."""
    _, table = registry.find(name)
    for cell in cells:
        if table.study and cell.row in table.rows:
            file = out / f"{name}-{cell.task}-{cell.directory.name}.json"
            given = {"run": str(runs / cell.directory), "out": str(file)}
            script, *options = [word.format(**given) for word in shlex.split(table.study)]
            yield [f"benchmarks/{script}", *options]


def report(name: str, cells: Sequence[Cell], runs: Path, out: Path) -> int:
    """Print the table, and write it and the figures to ``out``; return 1 where there is nothing yet."""
    _, table = registry.find(name)
    found = [(cell, group) for cell in cells if cell.row in table.rows and (group := _group(cell, runs))]
    if not found:
        print(f"nothing of {name} has been evaluated yet")
        return 1
    rows = [row for cell, group in found for row in _rows(table, cell, group)]
    out.mkdir(parents=True, exist_ok=True)
    look = charts.styles(table.rows)
    figures = []
    for task in dict.fromkeys(cell.task for cell, _ in found):
        groups = [group for cell, group in found if cell.task == task]
        for kind, by_time in (("", False), ("-time", True)):
            timed = [g for g in groups if not by_time or g.timed]
            if timed:
                figures.append(f"{name}-{task}{kind}.png")
                charts.learning_curves(task, timed, look, by_time).savefig(out / figures[-1])
    drawn = [Path(words[-1]).with_suffix(".png") for words in studies(name, [c for c, _ in found], runs, out)]
    figures += [path.name for path in drawn if path.exists()]
    about = {"name": name, "where": table.where, "note": table.note, "measures": dict(table.measures)}
    record.write(out / f"{name}.json", **about, rows=rows, figures=figures)
    _show(name, table, rows)
    return 0


def _group(cell: Cell, runs: Path) -> Group | None:
    """Return what a cell's run has recorded; None before all of its seeds have been trained at all."""
    try:
        (found,) = records.read(runs / cell.directory).records
    except Refused:
        return None
    (group,) = records.grouped([found], [cell.row])
    return group if group.reached else None


def _rows(table: Table, cell: Cell, group: Group) -> Iterator[dict[str, Any]]:
    """Yield a row of results for every measure."""
    (run,) = group.records
    reached = min(int(curve.env_steps[-1]) for curve in group.curves)
    said = table.paper.get(cell.task, {}).get(cell.row)
    for column, name in table.measures.items():
        scores = table.factor * measures.measure(name).of(group, reached)
        theirs = said.get(column) if isinstance(said, Mapping) else said
        ours = {key: STATISTICS[key](scores) for key in table.statistics or ("mean", "std")}
        yield {
            "task": cell.task,
            "row": cell.row,
            "column": column,
            "ours": {key: None if value is None else round(float(value), 3) for key, value in ours.items()},
            "scores": np.round(scores, 3).tolist(),
            "paper": dict(zip(table.statistics, theirs, strict=True)) if theirs else None,
            "env_steps": reached,
            "fraction_of_budget": round(min(reached / cell.full_steps, 1.0), 4),
            "seeds": len(group.curves),
            "seeds_of_paper": cell.paper.seeds,
            "wall_seconds": log.read_lines(rundir.RunDirectory(run.root).evaluations)[-1].get("wall_seconds"),
            "device": run.config.get("device"),
            "git_commit": run.config.get("git_commit"),
            "command": run.config.get("command"),
        }


def _show(name: str, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    shown = Shown(title=f"{name}: {table.where}")
    header = ("task", "row", "ours", "the paper", "fraction of the budget")
    for place, title in enumerate(header):
        shown.add_column(title, justify="left" if place < 2 else "right")
    for cells in _cells(rows):
        shown.add_row(*cells)
    Console().print(shown)


def _cells(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        label = f"{row['row']}, {row['column']}" if row["column"] else row["row"]
        of = f" of {row['seeds_of_paper']}" if row["seeds"] < row["seeds_of_paper"] else ""
        seeds = f" ({row['seeds']}{of} seeds)"
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
        _section(name, json.loads(path.read_text()), place) for name, path in found.items() if path.exists()
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
    origins = dict.fromkeys((row["git_commit"] or "-", row["device"]) for row in found["rows"])
    paragraphs = [
        f"### {name}",
        f"{registry.names()[name].title}: {found['where']}.",
        *filter(None, [found["note"]]),
        "\n".join(rows),
        f"Trained at {'; '.join(f'`{commit[:8]}` on {device}' for commit, device in origins)}.",
        *(f"![{figure}]({place}/{figure})" for figure in found["figures"]),
    ]
    return "\n\n".join(paragraphs)
