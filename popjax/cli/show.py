"""Results on standard output: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from popjax.cli.building import Loaded
from popjax.host.numbers import plain
from popjax.host.scaling import sweep
from popjax.host.terminal import Lasting


def result(summary: Mapping[str, Any], root: Path) -> None:
    """Print the results of a run: each seed's final return, its cost, and where its files are."""
    table = Table(title=f"{summary['method']} on {summary['env']}", title_justify="left", show_header=False)
    table.add_column(style="bold", overflow="fold")
    table.add_column(justify="right")
    settings: dict[str, list[float]] = {}
    for member in summary["members"]:
        value, setting = member["final_return"], _setting(member)
        text = f"{value:.2f}" if value is not None else member["status"]
        table.add_row(f"final return, {setting}seed {member['seed']}", text)
        settings.setdefault(setting, []).extend([] if value is None else [value])
    for setting, values in settings.items():
        if len(values) > 1:
            table.add_row(f"final return, {setting}mean", f"{np.mean(values):.2f}")
    table.add_row("environment steps per seed", f"{summary['env_steps']:,}")
    table.add_row("generations", f"{summary['generations']:,}")
    if summary["steps_per_second"]:
        table.add_row("environment steps per second", f"{summary['steps_per_second']:,.0f}")
    table.add_row("compile time", f"{summary['compile_seconds']:.1f} s")
    table.add_row("wall time", f"{summary['wall_seconds']:.1f} s")
    spent = [f"{told} {share:.0%}" for told, share in summary.get("time_shares", {}).items()]
    if spent:
        table.add_row("of which", ", ".join(spent))
    table.add_row("hardware", summary["hardware"])
    console = _lasting()
    console.print(table)
    console.print(f"files: {root}", soft_wrap=True)


def results(rows: Sequence[Mapping[str, Any]], root: Path) -> None:
    """Print the results of several runs: one row per member, as in their directory's ``summary.json``."""
    table = _numbers("runs", "run", "member", "seed", "env steps", "final return")
    for row in rows:
        value = row["final_return"]
        final = f"{value:.2f}" if value is not None else row["status"]
        name = row["run"] + (f" {_setting(row)}" if row["numbers"] else "")
        steps = f"{row['env_steps']:,}" if row["env_steps"] is not None else ""
        table.add_row(name, str(row["member"]), str(row["seed"]), steps, final)
    console = _lasting()
    console.print(table)
    console.print(f"files: {root}", soft_wrap=True)


def _lasting() -> Console:
    """Return the console for results of training, which does not make a finished run fail if its reader is
    gone."""
    return _console(Lasting(sys.stdout))


def _console(file: Any = None) -> Console:
    """Return a console that reads no text as markup and, unless it is a terminal, never shortens a line."""
    file = sys.stdout if file is None else file
    width = None if file.isatty() else 10_000
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


def _setting(member: Mapping[str, Any]) -> str:
    return "".join(f"{name} {sweep.spell(float(value))}, " for name, value in member["numbers"].items())


def report(written: Any) -> None:
    """Print the table of results of a ``Report``, and where its page is."""
    header, rows = written.table.header, written.table.rows
    table = _numbers(written.caption, *header)
    table.columns[0].justify = "left"
    for place, cells in enumerate(rows):
        table.add_row(
            *(
                Text(cell, style="bold" if (place, i) in written.table.best else "")
                for i, cell in enumerate(cells)
            )
        )
    console = _console()
    console.print(table)
    for line in written.limits:
        console.print(line, soft_wrap=True)
    for line in written.missing:
        console.print(f"not begun yet: {line}", soft_wrap=True)
    for line in written.skipped:
        console.print(f"skipped: {line}", soft_wrap=True)
    console.print(f"{written.page}: {len(written.figures)} figures", soft_wrap=True)


def exported(directory: str, reason: str | None) -> None:
    """Print which files an export has written."""
    console = _console()
    files = "policy.stablehlo" + ("" if reason else ", policy.npz, policy.py")
    console.print(f"{directory}: {files}, policy.json, README.md", soft_wrap=True)
    if reason:
        console.print(f"no policy.npz: {reason}", soft_wrap=True)


class Played(NamedTuple):
    """Results of policies: undiscounted returns [S, E], lengths [S, E] in environment steps; ``where`` is the
    device or a library."""

    returns: np.ndarray
    lengths: np.ndarray
    where: str = "device"


def evaluation(run: Loaded, here: Played) -> None:
    """Print one row per member."""
    returns, lengths = here.returns, here.lengths
    who = run.saved["method"] + (f" (individual {run.individual})" if run.individual is not None else "")
    title = f"{who} on {run.saved['env']}, {_played(returns)} per seed"
    table = _numbers(title, "seed", "env steps", "return", "std", "min", "max", "length [steps]")
    for place, row in enumerate(returns):
        numbers = (row.mean(), row.std(), row.min(), row.max())
        table.add_row(
            run.members[place].name.removeprefix("seed"),
            f"{run.env_steps[place]:,}",
            *(f"{number:.2f}" for number in numbers),
            f"{lengths[place].mean():.1f}",
        )
    if len(returns) > 1:
        table.add_row("all", "", f"{returns.mean():.2f}", "", "", "", f"{lengths.mean():.1f}")
    _console().print(table)


def transfer(run: Loaded, here: Played, there: Played) -> None:
    """Print the returns of the same policies here and in the original library, one row per seed."""
    columns = ("seed", "on device", "std", f"in {there.where}", "std", "difference")
    table = _numbers(f"{run.saved['env']} compared with its original, {_played(here.returns)} each", *columns)
    for place, (ours, theirs) in enumerate(zip(here.returns, there.returns, strict=True)):
        numbers = (ours.mean(), ours.std(), theirs.mean(), theirs.std())
        seed = run.members[place].name.removeprefix("seed")
        table.add_row(seed, *(f"{number:.2f}" for number in numbers), _signed(_difference(ours, theirs)))
    if len(here.returns) > 1:
        means = (f"{here.returns.mean():.2f}", "", f"{there.returns.mean():.2f}", "")
        table.add_row("all", *means, _signed(_difference(here.returns, there.returns)))
    _console().print(table)


def film(facts: Mapping[str, Any]) -> None:
    """Print which policy a film shows."""
    _console().print(
        f"{facts['file']}: seed {facts['seed']}, return {facts['return']:.2f} in {facts['length']:,} steps, "
        f"{facts['frames_per_second']:.1f} frames per second",
        soft_wrap=True,
    )


def evaluation_json(
    root: Path, run: Loaded, here: Played, there: Played | None, video: Mapping[str, Any] | None
) -> None:
    """Print an evaluation as one JSON object, with the return and length of every episode."""
    seeds: list[dict[str, Any]] = [
        {
            "member": member.number,
            "seed": member.seed,
            "numbers": dict(member.numbers),
            "env_steps": int(run.env_steps[place]),
            **_episodes(here, place),
        }
        for place, member in enumerate(run.members)
    ]
    report = {
        "run_dir": str(root),
        "method": run.saved["method"],
        "env": run.saved["env"],
        "episodes": int(here.returns.shape[1]),
        "mean": float(here.returns.mean()),
        "seeds": seeds,
    }
    if run.individual is not None:
        report["individual"] = run.individual
    if there is not None:
        report["original"] = {
            "library": there.where,
            "mean": float(there.returns.mean()),
            "difference_percent": _difference(here.returns, there.returns),
        }
        for place, seed in enumerate(seeds):
            difference = _difference(here.returns[place], there.returns[place])
            seed["original"] = _episodes(there, place) | {"difference_percent": difference}
    if video is not None:
        report["video"] = dict(video)
    print(json.dumps(plain(report), indent=2, allow_nan=False))


def _played(returns: np.ndarray) -> str:
    """Return in words how many episodes ``returns`` [S, E] has for each policy."""
    count = returns.shape[1]
    return f"{count} episode{'s' if count > 1 else ''}"


def _episodes(played: Played, place: int) -> dict[str, Any]:
    row = played.returns[place]
    return {
        "mean": float(row.mean()),
        "std": float(row.std()),
        "min": float(row.min()),
        "max": float(row.max()),
        "returns": row.tolist(),
        "lengths": played.lengths[place].tolist(),
    }


def _difference(here: np.ndarray, there: np.ndarray) -> float | None:
    """Return by how many per cent the mean ``there`` exceeds the mean ``here``; None if the latter is 0."""
    ours = float(here.mean())
    return 100 * (float(there.mean()) - ours) / abs(ours) if ours else None


def _signed(percent: float | None) -> str:
    return "" if percent is None else f"{percent:+.1f} %"


def _numbers(title: str, *columns: str) -> Table:
    table = Table(*columns, title=title, title_justify="left")
    table.columns[0].overflow = "fold"  # the setting of a member may be long
    for column in table.columns:
        column.justify = "right"
    return table
