"""The tables and figures of the papers as data: ``papers/PAPER.toml``.

A file has the ``paper``, its common ``options`` and number of ``seeds`` (ours if ``seeds_stated`` is false);
``tasks``, each with its environment and budget; ``rows``, each a method with its options; and ``tables``,
each with rows, tasks, the measures of a seed, and the paper's numbers. A row may have:

least:   by task, the fewest environment steps that a run can have: one generation
tasks:   by task, further options
multiples: option -> multiple of the budget, for values that scale with it; rounded in the Config
needs:   name -> row whose run, on the same task, comes first; ``{name}`` in the options is its directory
instead: task of a table -> task on which the row is trained in its place
env_steps: a budget other than the task's
seeds:   a number of seeds below the paper's
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

PAPERS = Path(__file__).parent / "papers"


@dataclass(frozen=True)
class Task:
    """An environment, its options, and the paper's budget [environment steps]."""

    env: str
    env_steps: int
    env_options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A method with its options; see the top of this file."""

    method: str
    options: str = ""
    least: Mapping[str, int] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    multiples: Mapping[str, float] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)
    env_steps: int | None = None
    seeds: int | None = None


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper.

    where:     its place in the paper.
    rows:      labels, in the order in which they are trained: the most valuable first.
    tasks:     likewise; all rows of a task are trained before the next task.
    measures:  column -> measure of a seed, as in report.py; one without a name is called "".
    factor:    factor that brings measures to the paper's unit.
    statistics: statistics over seeds that the paper gives: mean, std, median.
    paper:     task -> row -> column -> these statistics, if the paper has any.
    study:     script of this folder that is run on a finished run, with its options; "" for none.
    studied:   rows to study, by default all of ``rows``; others are trained only for the study.
    note:      remark that is shown with the numbers.
    """

    where: str
    rows: tuple[str, ...]
    tasks: tuple[str, ...]
    measures: Mapping[str, str]
    statistics: tuple[str, ...]
    paper: Mapping[str, Any]
    factor: float = 1.0
    study: str = ""
    studied: tuple[str, ...] = ()
    note: str = ""

    @property
    def trained(self) -> tuple[str, ...]:
        """Return all rows, with those that are only studied at the end."""
        return (*self.rows, *(row for row in self.studied if row not in self.rows))


@dataclass(frozen=True)
class Paper:
    """A registry file."""

    name: str
    title: str
    options: str
    seeds: int
    seeds_stated: bool
    tasks: Mapping[str, Task]
    rows: Mapping[str, Row]
    tables: Mapping[str, Table]


@dataclass(frozen=True)
class Cell:
    """A run: a row on a task, in a directory that is shared by all tables with this run."""

    paper: Paper
    row: str
    task: str
    seeds: int
    fraction: float = 1.0
    seed: int = 0

    @property
    def directory(self) -> Path:
        """Return the directory, relative to that of all runs. Another first seed makes another run; so does a
        shorter budget, if options of this run or of one that it needs scale with the budget."""
        shorter = f" at {self.fraction:g}" if self._follows and self.fraction != 1 else ""
        later = f" from seed {self.seed}" if self.seed else ""
        return Path(self.paper.name, self.task, _file(self.row + shorter + later))

    @property
    def _follows(self) -> bool:
        """Return whether an option of this run, or of one that it needs, scales with the budget."""
        return bool(self._row.multiples) or any(cell._follows for cell in self.needs.values())

    @property
    def _row(self) -> Row:
        return self.paper.rows[self.row]

    @property
    def full_steps(self) -> int:
        """Return the paper's budget [environment steps]."""
        return self._row.env_steps or self.paper.tasks[self.task].env_steps

    @property
    def env_steps(self) -> int:
        """Return this fraction of the budget, at least a generation [environment steps]."""
        return max(round(self.full_steps * self.fraction), self._row.least.get(self.task, 1))

    @property
    def needs(self) -> dict[str, Cell]:
        """Return the runs that must come first, by their name in the options. Their first seed is 0, since
        every seed of this run uses the same policy of theirs."""
        return {
            name: cell_of(self.paper, label, self.task, self.seeds, self.fraction)
            for name, label in self._row.needs.items()
        }

    def arguments(self, runs: Path) -> list[str]:
        """Return the arguments of run.py for this run below ``runs``."""
        row, task = self._row, self.paper.tasks[self.task]
        needs = {name: str(runs / cell.directory) for name, cell in self.needs.items()}
        multiples = [_multiple(key, value * self.env_steps) for key, value in row.multiples.items()]
        texts = [self.paper.options, row.options, row.tasks.get(self.task, ""), *multiples]
        environment = [word for pair in task.env_options for word in ("--env-option", pair)]
        words = [word.format(**needs) for text in texts for word in shlex.split(text)]
        first = ["--seed", str(self.seed)] if self.seed else []
        size = ["--env-steps", str(self.env_steps), *first, "--seeds", str(self.seeds)]
        place = ["--run-dir", str(runs / self.directory), "--resume"]
        return [row.method, "--env", task.env, *environment, *size, *_last_of_each(words), *place]


def _last_of_each(words: Sequence[str]) -> list[str]:
    """Leave out options that are set again later, so that a row's options override the paper's."""
    options: dict[str, list[str]] = {}
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            groups.append([word])
        else:
            groups[-1].append(word)
    for place, group in enumerate(groups):
        key = group[0] if group[0] not in REPEATED else f"{group[0]} {place}"
        options.pop(key, None)
        options[key] = group
    return [word for group in options.values() for word in group]


def _multiple(option: str, value: float) -> str:
    return f"--{option} {round(value)}" if option.startswith("config.") else f"--{option} {value:g}"


REPEATED = ("--prior", "--teacher", "--alignment", "--teacher-env")
"""Options that are repeated, once for each of their values."""


def _file(label: str) -> str:
    return "-".join("".join(c if c.isalnum() or c in ".+" else " " for c in label).split())


@cache
def papers() -> dict[str, Paper]:
    """Return every paper by its name."""
    return {path.stem: _read(path) for path in sorted(PAPERS.glob("*.toml"))}


def names() -> dict[str, Paper]:
    """Return every table's and figure's name with its paper."""
    return {name: paper for paper in papers().values() for name in paper.tables}


def cells(
    name: str,
    tasks: Sequence[str] = (),
    rows: Sequence[str] = (),
    seeds: int | None = None,
    fraction: float = 1.0,
    seed: int = 0,
) -> list[Cell]:
    """Return the runs of a table, the most valuable first, each after those that it needs.

    tasks, rows: only these; in the table's order.
    seed:        the first of the seeds.

    Raises:
        ValueError: there is no such table, or it has no such task or row.
    """
    paper, table = find(name)
    for asked, known, what in ((tasks, table.tasks, "task"), (rows, table.trained, "row")):
        if unknown := [one for one in asked if one not in known]:
            raise ValueError(f"{name} has no {what} {unknown[0]!r}; it has {', '.join(map(repr, known))}")
    found: dict[Path, Cell] = {}
    for task in [task for task in table.tasks if not tasks or task in tasks]:
        for label in [row for row in table.trained if not rows or row in rows]:
            cell = cell_of(paper, label, task, seeds or paper.seeds, fraction, seed)
            found |= {one.directory: one for one in _in_order(cell) if one.directory not in found}
    return list(found.values())


def cell_of(paper: Paper, row: str, task: str, seeds: int, fraction: float, seed: int = 0) -> Cell:
    """Return the run of a row for a task of a table."""
    own = paper.rows[row]
    return Cell(paper, row, own.instead.get(task, task), min(seeds, own.seeds or seeds), fraction, seed)


def find(name: str) -> tuple[Paper, Table]:
    """Return a table and its paper.

    Raises:
        ValueError: there is none of this name.
    """
    paper = names().get(name)
    if paper is None:
        raise ValueError(f"there is no {name!r}; use one of {', '.join(names())}")
    return paper, paper.tables[name]


def _in_order(cell: Cell) -> Iterator[Cell]:
    for needed in cell.needs.values():
        yield from _in_order(needed)
    yield cell


def _read(path: Path) -> Paper:
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    tasks = {
        name: Task(task["env"], task["env_steps"], tuple(task.get("env_options", ())))
        for name, task in content["tasks"].items()
    }
    rows = {label: Row(**row) for label, row in content["rows"].items()}
    tables = {name: _table(table) for name, table in content["tables"].items()}
    seeds = content["seeds"], content.get("seeds_stated", True)
    paper = Paper(path.stem, content["paper"], content.get("options", ""), *seeds, tasks, rows, tables)
    _check(paper)
    return paper


def _table(content: Mapping[str, Any]) -> Table:
    measures = content.get("measures", content.get("measure", "last10"))
    measures = {"": measures} if isinstance(measures, str) else measures
    lists = {key: tuple(content.get(key, ())) for key in ("rows", "tasks", "statistics", "studied")}
    rest = {key: content[key] for key in ("where", "factor", "study", "note") if key in content}
    return Table(measures=measures, paper=content.get("paper", {}), **lists, **rest)


def _check(paper: Paper) -> None:
    """Check that all rows and tasks that are named exist."""
    for name, table in paper.tables.items():
        missing = [row for row in table.trained if row not in paper.rows]
        missing += [task for task in table.tasks if task not in paper.tasks]
        missing += [task for task in table.paper if task not in table.tasks]
        missing += [row for said in table.paper.values() for row in said if row not in table.rows]
        if missing:
            raise ValueError(f"{paper.name}.toml: {name} names {missing[0]!r}, which is not there")
    for label, row in paper.rows.items():
        if missing := [one for one in row.needs.values() if one not in paper.rows]:
            raise ValueError(f"{paper.name}.toml: {label} needs {missing[0]!r}, which is not there")
