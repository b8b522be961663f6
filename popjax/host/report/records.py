"""Run directories read back, and grouped by task, method and seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from popjax.host.checkpoints import checkpoint
from popjax.host.errors import NoRun, NotRead, Refused
from popjax.host.runs import log, run_group, rundir
from popjax.host.runs.history import Evaluation
from popjax.host.scaling import sweep

_MOST_OPTIONS = 3  # maximum number of options in a label that distinguish methods of the same name


@dataclass(frozen=True)
class Record:
    """A run directory, or the part of it with one setting of the swept hyperparameters.

    summary: None while the run goes on or after it was interrupted.
    failed:  members with a non-finite metric, whose evaluations are left out, each with "member", "seed" and
             "reason"; for a run without a summary, those that its newest checkpoint records.
    swept:   hyperparameters of this setting by name, such as "hyper.actor_lr"; empty if only seeds differ.
    """

    root: Path
    config: dict[str, Any]
    summary: dict[str, Any] | None
    evaluations: tuple[Evaluation, ...]
    failed: tuple[Mapping[str, Any], ...] = ()
    swept: Mapping[str, float] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """The environment and its options."""
        options = ", ".join(f"{k}={v}" for k, v in self.config.get("env_options", {}).items())
        return self.config["env"] + (f" ({options})" if options else "")

    @property
    def name(self) -> str:
        """The method, and its agents if the method has a choice."""
        agents = self.config.get("agents") or {"agent": self.config.get("agent")}
        kinds = [kind for kind in agents.values() if kind and kind != "none"]
        return self.config["method"] + (f" ({', '.join(kinds)})" if kinds else "")

    @property
    def choices(self) -> dict[str, Any]:
        """Values of all options that define the method, by option."""
        chosen = {key: self.config.get(key) or {} for key in ("config", "hyper", "runs")}
        return {name: json.dumps(value) for name, value in [*rundir.flattened(chosen), *self.swept.items()]}

    def has(self, line: Mapping[str, Any]) -> bool:
        """Return whether a line of the run's records is of this setting."""
        return all(line.get(name) == value for name, value in self.swept.items())


@dataclass(frozen=True)
class Curve:
    """The evaluations of one seed.

    env_steps: int [N], ascending.
    returns:   float [N], means over episodes.
    seconds:   [N] of wall-clock time since the run began; None if the run did not record it.
    """

    seed: int
    env_steps: np.ndarray
    returns: np.ndarray
    seconds: np.ndarray | None = None

    def until(self, budget: int) -> np.ndarray:
        """Return the returns up to the first evaluation at or beyond ``budget`` environment steps."""
        return self.returns[: int(np.searchsorted(self.env_steps, budget)) + 1]


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
    """A method on a task: run directories that differ only in their seeds."""

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
    def reached(self) -> int:
        """Environment steps that every seed has trained for, at most the requested budget."""
        asked = min(record.config["options"]["env_steps"] for record in self.records)
        return min(asked, *(int(curve.env_steps[-1]) for curve in self.curves))


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
    summary = _summary(files.summary)
    failed = _failed_so_far(files, config) if summary is None else _failed(summary)
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


def _failed(summary: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    return tuple(row for row in summary.get("members", []) if row["status"] in rundir.FAILED)


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


def _summary(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError:
        raise Refused(f"{path} is not JSON: remove it, and popjax train --resume writes it again") from None


def spread(found: Sequence[Sequence[Record]], labels: Sequence[str]) -> list[str]:
    """Return one label for each record, from ``labels``, which has one for each directory of ``found``.

    Options in which records with the same label differ on a task are appended to it.

    Raises:
        Refused: there are not as many labels as directories.
    """
    if labels and len(labels) != len(found):
        raise Refused(f"--labels needs a label for each run: got {len(labels)} for {len(found)} runs")
    spelt = []
    for label, group in zip(labels, found, strict=bool(labels)):
        names = _told_apart(group)
        spelt += [_named(label, names, record) for record in group]
    return spelt


def grouped(records: Sequence[Record], labels: Sequence[str] = ()) -> list[Group]:
    """Return the records by task and method, in the given order.

    labels: one for each record; by default the method's name and the options that distinguish it.

    Raises:
        Refused: different methods on a task share a label, or a seed occurs twice.
    """
    members: dict[tuple[str, str], list[Record]] = {}
    for record, label in zip(records, labels or _labels(records), strict=True):
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
        different = _different([first, record])
        if different:
            name = different[0]
            values = f"{first.choices.get(name, 'unset')} and {record.choices.get(name, 'unset')}"
            raise Refused(
                f"{first.root} and {record.root} are not seeds of one method {label!r}: {name} is {values}"
            )
        for seed in sorted({evaluation.seed for evaluation in record.evaluations}):
            if seed in curves:
                raise Refused(f"seed {seed} of {label} on {record.task} is in {home[seed]} and {record.root}")
            curves[seed], home[seed] = curve(record.evaluations, seed), record.root
    return tuple(curves[seed] for seed in sorted(curves))


def _labels(records: Sequence[Record]) -> list[str]:
    """Return a label for each record: the method's name and the options in which methods of that name differ
    on a task or, if they are too many, the run directory's name and the options in which its settings
    differ."""
    found = []
    for record in records:
        rivals = [other for other in records if other.name == record.name]
        told = _told_apart(rivals)
        if not told:
            found.append(record.name)
        elif len(told) > _MOST_OPTIONS:
            twins = (r for r in rivals if r.task == record.task and r.choices == record.choices)
            first = next(twins)
            own = _told_apart([r for r in rivals if r.root == first.root])
            found.append(_named(first.root.name, own, first))
        else:
            found.append(_named(record.name, told, record))
    return found


def _named(label: str, names: Sequence[str], record: Record) -> str:
    """Return ``label`` with the record's values of some options."""
    return ", ".join([label, *(f"{_short(name)} {record.choices.get(name, 'unset')}" for name in names)])


def _told_apart(records: Sequence[Record]) -> list[str]:
    """Return the options in which records of the same task differ, for all tasks."""
    told: dict[str, None] = {}
    for task in dict.fromkeys(record.task for record in records):
        told |= dict.fromkeys(_different([record for record in records if record.task == task]))
    return list(told)


def _different(records: Sequence[Record]) -> list[str]:
    """Return the options in which records differ."""
    choices: list[Mapping[str, Any]] = [record.choices for record in records]
    names = sorted({name for chosen in choices for name in chosen})
    return [name for name in names if len({chosen.get(name) for chosen in choices}) > 1]


def _short(option: str) -> str:
    return option.rpartition(".")[2].replace("_", " ")
