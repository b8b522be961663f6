"""Measures, the one number by which a seed is judged, and statistics over seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from popjax.host.errors import Refused
from popjax.host.report import statistics
from popjax.host.report.records import Curve, Group, Record
from popjax.host.runs import rundir
from popjax.host.runs.log import scalars

LAST = 10
"""Evaluations that ``last10`` averages."""
METRIC = "metric:"
Statistic: TypeAlias = Literal["mean", "median", "iqm"]


class Measure(NamedTuple):
    """A number by which a seed is judged.

    name:  as on the command line.
    words: the same in a sentence: "a seed counts by ...".
    unit:  of an axis.
    of:    (group, environment steps) -> float [seeds], as of so many environment steps; NaN of a seed that
           has not recorded it.
    """

    name: str
    words: str
    unit: str
    of: Callable[[Group, int], np.ndarray]


def measure(name: str) -> Measure:
    """Return the measure of this name: last10, last, best, area, or metric:NAME, the last recorded value of
    a metric of the method. Of one with axes it is metric:NAME/mean or NAME/max; of one [P], NAME/2 is the
    third component and NAME/first:2 whether that is the largest, 1 or 0. "minutes" are those on the clock.

    Raises:
        Refused: there is none.
    """
    if name in _OF_CURVES:
        words, of = _OF_CURVES[name]
        scores = lambda group, budget: np.array([of(c, budget) for c in group.curves])  # noqa: E731
        return Measure(name, words, "minutes" if name == "minutes" else "return (sum of rewards)", scores)
    metric = name.removeprefix(METRIC)
    if metric == name or not metric:
        raise Refused(f"there is no measure {name!r}: use {', '.join(_OF_CURVES)} or {METRIC}NAME")
    return Measure(name, f"the last value of its metric {metric}", metric, partial(_last_metric, metric))


def last(curve: Curve, budget: int, count: int = LAST) -> float:
    """Return the mean return of the last ``count`` evaluations as of ``budget`` environment steps."""
    return float(curve.until(budget)[-count:].mean())


def area(curve: Curve, budget: int) -> float:
    """Return the area under a curve over its length up to ``budget`` environment steps: the mean return over
    training."""
    end = min(budget, int(curve.env_steps[-1]))
    steps = np.append(curve.env_steps[curve.env_steps < end], end)
    if len(steps) == 1:
        return float(curve.returns[0])
    returns = np.interp(steps, curve.env_steps, curve.returns)
    return float(np.trapezoid(returns, steps) / (steps[-1] - steps[0]))


def minutes(curve: Curve, budget: int) -> float:
    """Return the minutes on the clock from the beginning of the run to the last evaluation as of ``budget``
    environment steps; NaN of a run that did not record them."""
    if curve.seconds is None:
        return float("nan")
    return float(curve.seconds[len(curve.until(budget)) - 1]) / 60


_OF_CURVES: dict[str, tuple[str, Callable[[Curve, int], float]]] = {
    "last10": (f"the mean of its last {LAST} evaluations", last),
    "last": ("its last evaluation alone", lambda curve, budget: last(curve, budget, 1)),
    "best": ("its best evaluation", lambda curve, budget: float(curve.until(budget).max())),
    "minutes": ("the minutes on the clock until its last evaluation", minutes),
    "area": ("the area under its curve over the steps, its mean return over training", area),
}


def _last_metric(metric: str, group: Group, budget: int) -> np.ndarray:
    name, slash, kind = metric.partition("/")
    found: dict[int, float] = {}
    for record in group.records:
        for row in _rows(record, budget):
            values = _scalars(np.asarray(row.get(name, []), np.float64))
            if slash + kind in values:
                found[row["seed"]] = values[slash + kind]
    if not found:
        known = sorted({name for record in group.records for row in _rows(record, 0) for name in row})
        raise Refused(
            f"{group.label} on {group.task} records no metric {metric!r}; of one with axes say NAME/mean,"
            f" NAME/max, NAME/0 or NAME/first:0. It records {', '.join(known) or 'none'}"
        )
    return np.array([found.get(curve.seed, np.nan) for curve in group.curves])


def _scalars(value: np.ndarray) -> dict[str, float]:
    """Return what a metric may be called by, behind its name, and its numbers."""
    found = dict(scalars(value))
    if value.ndim == 1:
        found |= {f"/{place}": float(x) for place, x in enumerate(value)}
        found |= {f"/first:{place}": float(place == np.argmax(value)) for place in range(len(value))}
    return found


def _rows(record: Record, budget: int) -> Iterator[dict[str, Any]]:
    """Yield what ``metrics.jsonl`` has of a setting as of ``budget``, of each seed at least the first row."""
    seen: set[int] = set()
    path = rundir.RunDirectory(record.root).metrics
    if not path.exists():
        return
    with path.open(errors="replace") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            row = json.loads(line)
            if record.has(row) and (row["env_steps"] <= budget or row["seed"] not in seen):
                seen.add(row["seed"])
                yield row


def summary(scores: np.ndarray, statistic: Statistic) -> str:
    """Return a cell of a table: the statistic of scores [seeds] with what says how far they scatter."""
    if statistic == "median":
        spread = f" [{scores.min():.1f}, {scores.max():.1f}]" if len(scores) > 1 else ""
        return f"{np.median(scores):.1f}{spread}"
    if statistic == "iqm":
        found = statistics.estimate(statistics.interquartile_mean, [scores])
        ends = [float(x) for x in (found.low, found.high) if x is not None]
        spread = f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else ""
        return f"{float(found.value):.1f}{spread}"
    spread = f" ± {scores.std(ddof=1):.1f}" if len(scores) > 1 else ""
    return f"{scores.mean():.1f}{spread}"


def centre(scores: np.ndarray, statistic: Statistic) -> float:
    """Return the statistic of scores [seeds] alone."""
    if statistic == "iqm":
        return float(statistics.interquartile_mean([scores]))
    return float(np.median(scores) if statistic == "median" else scores.mean())


WORDS = {
    "mean": "mean ± standard deviation over seeds",
    "median": "median and range over seeds",
    "iqm": f"interquartile mean over seeds and its {statistics.LEVEL:.0%} bootstrap interval",
}
"""Statistics in words, as a cell shows them."""
