"""A directory of runs, as made by a sweep of more than one program.

index.json    the runs, one directory each, and the command that made them
summary.json  at the end, a row per member of every run
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popjax.host.errors import Refused
from popjax.host.runs import rundir
from popjax.host.scaling.sweep import Member, of_config, of_row


@dataclass(frozen=True)
class Entry:
    """One run of an index.

    directory: its name below the index.
    argv:      its arguments except --run-dir and --resume.
    """

    directory: str
    argv: tuple[str, ...]


def holds(root: Path) -> bool:
    """Return whether ``root`` is a directory of runs."""
    return rundir.RunDirectory(root).index.exists()


def write(root: Path, command: str, entries: Sequence[Entry]) -> None:
    """Write the index that makes ``root`` a directory of the runs ``entries``."""
    root.mkdir(parents=True, exist_ok=True)
    runs = [{"directory": entry.directory, "argv": list(entry.argv)} for entry in entries]
    path = rundir.RunDirectory(root).index
    rundir.write_json(path, {"id": rundir.identity(path), "command": command, "runs": runs})


def read(root: Path) -> tuple[Entry, ...]:
    """Return the runs of an index.

    Raises:
        Refused: the index cannot be read.
    """
    path = rundir.RunDirectory(root).index
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return tuple(Entry(run["directory"], tuple(run["argv"])) for run in runs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{path} cannot be read: {type(error).__name__}: {error}") from None


def started(root: Path) -> bool:
    """Return whether ``root``, or a directory below it in its index, holds a run that can be resumed."""
    if holds(root):
        return any(started(root / entry.directory) for entry in read(root))
    return rundir.RunDirectory(root).config.exists()


def finished(root: Path, env_steps: int, members: Set[str] = frozenset()) -> bool:
    """Return whether a run, or every run of a directory, has results for ``env_steps`` environment steps of
    all ``members``, given by identity; a failed member need not have reached them."""
    try:
        rows = list(results(root)) if holds(root) else (rundir.read_summary(root) or {})["members"]
        there = {of_row(row).identity for row in rows}
        return members <= there and all(
            row["status"] in rundir.FAILED or (row["env_steps"] or 0) >= env_steps for row in rows
        )
    except (ValueError, KeyError):
        return False


def summarize(root: Path) -> None:
    """Write ``summary.json`` of a directory of runs."""
    rundir.write_json(rundir.RunDirectory(root).summary, {"members": list(results(root))})


def results(root: Path) -> Iterator[dict[str, Any]]:
    """Yield a row per member of every run, in order: its entry in the run's summary, and ``run``, the run's
    directory below ``root``.

    A run without results has one row with ``status`` "unfinished".
    """
    for entry in read(root):
        below = root / entry.directory
        if holds(below):
            yield from (row | {"run": f"{entry.directory}/{row['run']}"} for row in results(below))
            continue
        try:
            rows = (rundir.read_summary(below) or {})["members"]
        except (Refused, KeyError):
            nothing: dict[str, Any] = dict.fromkeys(("member", "seed", "env_steps", "final_return"))
            rows = [nothing | {"numbers": {}, "status": "unfinished"}]
        yield from ({"run": entry.directory} | row for row in rows)


def run_of(root: Path, member: int | None) -> Path:
    """Return the run in ``root`` or, if that holds a sweep in slices, the slice with ``member``.

    Raises:
        Refused: ``root`` holds several runs and ``member`` does not select one.
    """
    if not holds(root):
        return root
    below = [root / entry.directory for entry in read(root)]
    sliced = [run for run in below if not holds(run) and rundir.RunDirectory(run).config.exists()]
    having = [run for run in sliced if member in {m.number for m in of_config(rundir.read_config(run))}]
    if len(having) == 1:
        return having[0]
    raise Refused(f"{root} holds several runs: name one, such as {below[0]}")


def place_of(root: Path, members: Sequence[Member], number: int) -> int:
    """Return the place in ``members`` of the member with this number.

    Raises:
        Refused: there is no such member.
    """
    for place, member in enumerate(members):
        if member.number == number:
            return place
    raise Refused(f"--member must be in {members[0].number} to {members[-1].number} of {root}, got {number}")
