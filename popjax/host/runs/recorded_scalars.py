"""The records of a run read back as scalars, for a tracker that begins when the run has come some way: a run
that was copied from another one, or that was not tracked before."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from popjax.host.runs import log, rundir
from popjax.host.runs.history import Recorded
from popjax.host.scaling.sweep import Member


def recorded(files: rundir.RunDirectory, members: Sequence[Member]) -> Iterator[Recorded]:
    """Yield what the files hold of ``members``; of each member in the order of its environment steps.

    Names are those of TensorBoard: a metric that has axes is there as its mean and maximum.
    """
    waiting: defaultdict[int, deque[Recorded]] = defaultdict(deque)
    for made in log.read_evaluations(files.evaluations):
        values = {"eval/return": made.mean, "eval/length": float(np.mean(made.lengths))}
        waiting[made.member].append(Recorded(made.member, made.env_steps, values))
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
    """The lines of ``metrics.jsonl``, one by one, as they may be more than fits into memory."""
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
