"""Records of a run as named scalars for TensorBoard and Weights & Biases.

They come from training, or from the run's files when tracking begins in the middle of a run. A metric with
axes is given as its mean and maximum.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from popjax import tree
from popjax.host.runs import log, rundir
from popjax.host.runs.history import Evaluation, History, Scalars
from popjax.host.scaling.sweep import Member


def of_history(history: History, numbers: Sequence[int]) -> Iterator[Scalars]:
    """Yield the records of active members in ``history``, generations first, then evaluations; ``numbers``
    [S] are the numbers of all members."""
    series = list(_series(history))
    for row in range(history.generation.shape[1]):
        for place in history.active:
            values = {name: float(rows[place, row]) for name, rows in series}
            yield Scalars(numbers[place], int(history.env_steps[place, row]), values)
    yield from map(_of_evaluation, history.evaluations)


def _series(history: History) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every scalar by its name, [S, C]."""
    for name, values in tree.named(history.metrics):
        if values.ndim == 2:
            yield f"metrics/{name}", values
        elif values.size:
            flat = values.reshape(*values.shape[:2], -1)
            yield f"metrics/{name}/mean", flat.mean(-1)
            yield f"metrics/{name}/max", flat.max(-1)


def _of_evaluation(made: Evaluation) -> Scalars:
    values = {"eval/return": made.mean, "eval/length": float(np.mean(made.lengths))}
    return Scalars(made.member, made.env_steps, values)


def recorded(files: rundir.RunDirectory, members: Sequence[Member]) -> Iterator[Scalars]:
    """Yield the records of ``members`` in the files, each member's in the order of environment steps."""
    waiting: defaultdict[int, deque[Scalars]] = defaultdict(deque)
    for made in log.read_evaluations(files.evaluations):
        waiting[made.member].append(_of_evaluation(made))
    known = {member.number: {*log.FACTS, *member.numbers} for member in members}
    for row in log.each_line(files.metrics):
        number, steps = row["member"], row["env_steps"]
        if number not in known:
            continue
        while waiting[number] and waiting[number][0].env_steps < steps:
            yield waiting[number].popleft()
        metrics = {name: value for name, value in row.items() if name not in known[number]}
        yield Scalars(number, steps, dict(_named(metrics)))
    for number in known:
        yield from waiting[number]


def _named(metrics: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        for suffix, scalar in scalars(np.asarray(value, np.float64)):
            yield f"metrics/{name}{suffix}", scalar


def scalars(value: np.ndarray) -> list[tuple[str, float]]:
    """Return a metric of one generation as pairs of suffix and number: itself, or its mean and maximum.

    An empty metric, such as one of prior actors in a run without any, gives no pair.
    """
    if np.ndim(value) == 0:
        return [("", float(value))]
    if np.size(value) == 0:
        return []
    return [("/mean", float(np.mean(value))), ("/max", float(np.max(value)))]
