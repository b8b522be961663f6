"""Run directories read back, and grouped by task, method and seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from popjax.host.checkpoints import checkpoint
from popjax.host.errors import NoRun, NotRead, Refused
from popjax.host.report.labels import default_labels, differing_options, spelt
from popjax.host.report.record import Record
from popjax.host.runs import log, run_group, rundir
from popjax.host.runs.history import Evaluation
from popjax.host.scaling import sweep


@dataclass(frozen=True)
class Curve:
    """The evaluations of one seed.

    env_steps: int [N], ascending.
    returns:   float [N], means over episodes.
    seconds:   [N - held] of wall-clock time since the run began; None if the run did not record it.
    held:      number of returns at the end that were not made but repeat the last one, since the seed had
               reached ``stop_at_return``; 0 for other seeds.
    """

    seed: int
    env_steps: np.ndarray
    returns: np.ndarray
    seconds: np.ndarray | None = None
    held: int = 0

    def until(self, budget: int) -> np.ndarray:
        """Return the returns up to the first evaluation at or beyond ``budget`` environment steps."""
        return self.returns[: int(np.searchsorted(self.env_steps, budget)) + 1]

    def satisfies(self, stop_at_return: float | None) -> bool:
        """Return whether the seed stopped since its last evaluation reached ``stop_at_return``, if any."""
        return stop_at_return is not None and bool(self.returns[-1] >= float(stop_at_return))

    def hold(self, env_steps: Iterable[int]) -> Curve:
        """Return the curve with its last return repeated at those of ``env_steps`` that are beyond its
        end."""
        later = np.array([steps for steps in env_steps if steps > self.env_steps[-1]], self.env_steps.dtype)
        returns = np.append(self.returns, np.full(len(later), self.returns[-1]))
        return replace(
            self, env_steps=np.append(self.env_steps, later), returns=returns, held=self.held + len(later)
        )


def curve(evaluations: Sequence[Evaluation], seed: int) -> Curve:
    """Return the curve of one seed."""
    own = [evaluation for evaluation in evaluations if evaluation.seed == seed]
    times = [evaluation.seconds.wall for evaluation in own if evaluation.seconds is not None]
    return Curve(
        seed,
        np.array([evaluation.env_steps for evaluation in own]),
        np.array([evaluation.mean for evaluation in own]),
        np.array(times) if len(times) == len(own) else None,
    )


@dataclass(frozen=True)
class Group:
    """A method on a task: run directories that differ only in their seeds.

    A seed that reached ``stop_at_return`` keeps its last return up to its budget, at the environment steps at
    which it would have been evaluated.
    """

    label: str
    task: str
    records: tuple[Record, ...]
    curves: tuple[Curve, ...]

    @property
    def timed(self) -> bool:
        """Return whether all seeds recorded times and these overlap; the times of seeds that were added to a
        finished run do not."""
        spans = [curve.seconds for curve in self.curves if curve.seconds is not None]
        if len(spans) < len(self.curves):
            return False
        return bool(max(span[0] for span in spans) <= min(span[-1] for span in spans))

    @property
    def overlapping(self) -> bool:
        """Return whether some environment steps lie between the first and the last evaluation of every
        seed."""
        spans = [curve.env_steps for curve in self.curves]
        return bool(max(span[0] for span in spans) <= min(span[-1] for span in spans))

    @property
    def reached(self) -> int:
        """Environment steps that every seed has trained for, at most the requested budget; seeds that reached
        ``stop_at_return`` count as trained for all of it."""
        asked = min(record.config["options"]["env_steps"] for record in self.records)
        return min(asked, *(int(curve.env_steps[-1]) for curve in self.curves))

    @property
    def furthest(self) -> int:
        """Environment steps of the last evaluation of any seed, at most the largest requested budget."""
        asked = max(record.config["options"]["env_steps"] for record in self.records)
        made = (curve.env_steps[: len(curve.env_steps) - curve.held] for curve in self.curves)
        return min(asked, max(int(env_steps[-1]) for env_steps in made))


class Found(NamedTuple):
    """The records of a directory, and descriptions of the runs and members still missing."""

    records: list[Record]
    missing: list[str]


def read(root: Path) -> Found:
    """Return the run in ``root``, or all runs below it, by setting; they need not have finished.

    Raises:
        NoRun: there is no run, or no evaluation yet.
    """
    if rundir.RunDirectory(root).config.exists():
        return Found(_read(root), _members_missing(root))
    runs = sorted(path.parent for path in root.rglob("config.json"))
    begun = [run for run in runs if log.read_lines(rundir.RunDirectory(run).evaluations)]
    if not begun:
        return Found(_read(runs[0] if runs else root), [])  # raises NoRun with the reason
    missing = [f"run {run}" for run in sorted({*runs, *_planned(root)} - set(begun))]
    missing += [line for run in begun for line in _members_missing(run)]
    return Found([record for run in begun for record in _read(run)], missing)


def _planned(root: Path) -> Iterator[Path]:
    """Yield the runs named by the indices at and below ``root``, begun or not."""
    for path in [root / "index.json", *root.glob("*/**/index.json")]:
        if path.exists():
            for entry in run_group.read(path.parent):
                if not run_group.holds(path.parent / entry.directory):
                    yield path.parent / entry.directory


def _members_missing(root: Path) -> list[str]:
    """Return descriptions of the members of a run that have not been evaluated yet."""
    seen = {line["member"] for line in log.each_line(rundir.RunDirectory(root).evaluations)}
    members = sweep.of_config(rundir.read_config(root))
    return [f"member {m.number} ({m.name}) of {root}" for m in members if m.number not in seen]


def _read(root: Path) -> list[Record]:
    files = rundir.RunDirectory(root)
    config = rundir.read_config(root)
    missing = [key for key in ("method", "env", "options") if key not in config]
    if missing:
        raise NoRun(f"{files.config} lacks {', '.join(missing)}: it does not describe a run")
    lines = log.read_lines(files.evaluations)
    if not lines:
        raise NoRun(f"{root} has no evaluations yet: nothing is in {files.evaluations}")
    summary = rundir.read_summary(root)
    failed = _failed_so_far(files, config) if summary is None else rundir.failed(summary)
    # A member that failed early would cut the curves of all seeds at its failure.
    gone = {row["member"] for row in failed}
    lines = [line for line in lines if line["member"] not in gone] or lines
    settings: dict[tuple[tuple[str, float], ...], list[Evaluation]] = {}
    for line in lines:
        swept = tuple((name, value) for name, value in line.items() if name.startswith("hyper."))
        settings.setdefault(swept, []).append(log.evaluation(line))
    return [
        Record(root, config, summary, tuple(made), failed, dict(swept)) for swept, made in settings.items()
    ]


def _failed_so_far(files: rundir.RunDirectory, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the failed members of a run without a summary, from its newest readable checkpoint."""
    for generation in checkpoint.generations(files.checkpoints):
        try:
            failures = checkpoint.facts(files.checkpoints / str(generation)).get("failed", {})
        except (checkpoint.Damaged, NotRead):  # or just removed by a run in progress
            continue
        members = sweep.of_config(config)
        return tuple(
            {"member": members[place].number, "seed": members[place].seed, "reason": failure["reason"]}
            for place, failure in sorted((int(place), failure) for place, failure in failures.items())
        )
    return ()


def grouped(records: Sequence[Record], labels: Sequence[str] = ()) -> list[Group]:
    """Return the records by task and method, in the given order.

    labels: one for each record; by default the method's name and the options that distinguish it.

    Raises:
        Refused: different methods on a task share a label, or a seed occurs twice.
    """
    members: dict[tuple[str, str], list[Record]] = {}
    for record, label in zip(records, labels or default_labels(records), strict=True):
        members.setdefault((record.task, label), []).append(record)
    return [
        Group(label, task, tuple(found), _pooled(label, found)) for (task, label), found in members.items()
    ]


def tasks(groups: Sequence[Group]) -> list[str]:
    """Return every task once, in order."""
    return list(dict.fromkeys(group.task for group in groups))


def methods(groups: Sequence[Group]) -> list[str]:
    """Return every label once, in order."""
    return list(dict.fromkeys(group.label for group in groups))


def common_tasks(groups: Sequence[Group]) -> list[str]:
    """Return the tasks on which all methods have runs.

    Raises:
        Refused: there is no such task.
    """
    on = {label: [group.task for group in groups if group.label == label] for label in methods(groups)}
    common = [task for task in tasks(groups) if all(task in found for found in on.values())]
    if not common:
        told = "; ".join(f"{label} on {', '.join(found)}" for label, found in on.items())
        raise Refused(
            f"the runs are on different tasks and cannot be compared: {told}; report them separately"
        )
    return common


def budget(groups: Sequence[Group], task: str) -> int:
    """Return the environment steps at which methods are compared on a task: the most that all have
    reached."""
    return min(group.reached for group in groups if group.task == task)


def _pooled(label: str, records: Sequence[Record]) -> tuple[Curve, ...]:
    curves: dict[int, Curve] = {}
    home: dict[int, Path] = {}
    first = records[0]
    for record in records:
        if options := differing_options([first, record]):
            name = options[0]
            values = f"{spelt(first.choice(name))} and {spelt(record.choice(name))}"
            raise Refused(
                f"{first.root} and {record.root} are not seeds of one method {label!r}: {name} is {values}"
            )
        for seed in sorted({evaluation.seed for evaluation in record.evaluations}):
            if seed in curves:
                raise Refused(f"seed {seed} of {label} on {record.task} is in {home[seed]} and {record.root}")
            curves[seed], home[seed] = _held(curve(record.evaluations, seed), record), record.root
    return tuple(curves[seed] for seed in sorted(curves))


def _held(curve: Curve, record: Record) -> Curve:
    """Return the curve up to the budget if the seed has reached its goal, else as it is."""
    options = record.config["options"]
    if not curve.satisfies(options.get("stop_at_return")):
        return curve
    every, budget = options["eval_every"], options["env_steps"]
    begin = (int(curve.env_steps[-1]) // every + 1) * every
    return curve.hold([*range(begin, budget, every), budget])
