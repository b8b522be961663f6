"""Records of a run as scalars by name, for TensorBoard and Weights & Biases: those that training makes now,
and those that lie in the run's files, for a tracker that begins when the run has come some way.

A metric that has axes is there as its mean and maximum.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from popjax.host.runs import log, rundir
from popjax.host.runs.history import Evaluation, History, Recorded, named
from popjax.host.scaling.sweep import Member


def of_history(history: History, numbers: Sequence[int]) -> Iterator[Recorded]:
    """Yield what ``history`` recorded of the members that go on, ``numbers`` [S] being everyone's: every
    generation, then every evaluation."""
    series = list(_series(history))
    for row in range(history.generation.shape[1]):
        for place in history.living:
            values = {name: float(rows[place, row]) for name, rows in series}
            yield Recorded(numbers[place], int(history.env_steps[place, row]), values)
    yield from map(_of_evaluation, history.evaluations)


def _series(history: History) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every scalar by its name, [S, C]."""
    for name, values in named(history.metrics).items():
        if values.ndim == 2:
            yield f"metrics/{name}", values
        elif values.size:
            flat = values.reshape(*values.shape[:2], -1)
            yield f"metrics/{name}/mean", flat.mean(-1)
            yield f"metrics/{name}/max", flat.max(-1)


def _of_evaluation(made: Evaluation) -> Recorded:
    values = {"eval/return": made.mean, "eval/length": float(np.mean(made.lengths))}
    return Recorded(made.member, made.env_steps, values)


def recorded(files: rundir.RunDirectory, members: Sequence[Member]) -> Iterator[Recorded]:
    """Yield what the files hold of ``members``; of each member in the order of its environment steps."""
    waiting: defaultdict[int, deque[Recorded]] = defaultdict(deque)
    for made in log.read_evaluations(files.evaluations):
        waiting[made.member].append(_of_evaluation(made))
    known = {
        member.number: {"member", "seed", "generation", "env_steps", *log.TIMES, *member.numbers}
        for member in members
    }
    for row in _rows(files):
        number, steps = row.get("member"), row.get("env_steps")
        if number not in known or steps is None:
            continue
        while waiting[number] and waiting[number][0].env_steps < steps:
            yield waiting[number].popleft()
        metrics = {name: value for name, value in row.items() if name not in known[number]}
        yield Recorded(number, steps, dict(_named(metrics)))
    for number in known:
        yield from waiting[number]


def _rows(files: rundir.RunDirectory) -> Iterator[dict[str, Any]]:
    """Yield the lines of ``metrics.jsonl`` one by one; all of them may not fit into memory."""
    if not files.metrics.exists():
        return
    with files.metrics.open(errors="replace") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:  # being written, or half written by a process that was killed
                continue


def _named(metrics: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        for suffix, scalar in log.scalars(np.asarray(value, np.float64)):
            yield f"metrics/{name}{suffix}", scalar
