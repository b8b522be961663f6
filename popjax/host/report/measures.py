"""Measures, each giving one score per seed, and statistics over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from popjax.host.errors import Refused
from popjax.host.report import statistics
from popjax.host.report.record import Record
from popjax.host.report.records import Curve, Group
from popjax.host.runs import log, rundir
from popjax.host.runs.recorded_scalars import scalars

LAST = 10
"""Evaluations that ``last10`` averages."""
METRIC = "metric:"
Statistic: TypeAlias = Literal["mean", "median", "iqm"]


class Measure(NamedTuple):
    """A score of a seed.

    name:  as on the command line.
    words: the same as the end of a sentence: "the score of a seed is ...".
    unit:  label of an axis.
    of:    (group, environment steps) -> float [seeds], the scores at that number of environment steps; NaN
           for a seed that did not record it.
    evaluations: number of evaluations that ``words`` mention; 1 if they mention none.
    higher_is_better: whether a higher score is known to be better.
    """

    name: str
    words: str
    unit: str
    of: Callable[[Group, int], np.ndarray]
    evaluations: int = 1
    higher_is_better: bool = True


def measure(name: str) -> Measure:
    """Return the measure of this name: last10, last, best, area, minutes, or metric:NAME.

    "minutes" are wall-clock time. metric:NAME is the last recorded value of a metric of the method; for a
    metric with axes, use NAME/mean or NAME/max, and for one [P] also NAME/2, its third component, and
    NAME/first:2, which is 1 if that component is the largest (the first of equal ones), otherwise 0.

    Raises:
        Refused: there is no such measure.
    """
    if name in _OF_CURVES:
        words, of = _OF_CURVES[name]
        scores = lambda group, budget: np.array([of(c, budget) for c in group.curves])  # noqa: E731
        timed = of is minutes
        unit = "minutes" if timed else "return (sum of rewards)"
        return Measure(name, words, unit, scores, LAST if of is last else 1, higher_is_better=not timed)
    metric = name.removeprefix(METRIC)
    if metric == name or not metric:
        raise Refused(f"there is no measure {name!r}: use {', '.join(_OF_CURVES)} or {METRIC}NAME")
    words = f"the last value of its metric {metric}"
    return Measure(name, words, metric, partial(_last_metric, metric), higher_is_better=False)


def last(curve: Curve, budget: int, count: int = LAST) -> float:
    """Return the mean return of the last ``count`` evaluations up to ``budget`` environment steps."""
    return float(curve.until(budget)[-count:].mean())


def area(curve: Curve, budget: int) -> float:
    """Return the mean return over training up to ``budget`` environment steps: the area under the curve
    divided by its length."""
    end = min(budget, int(curve.env_steps[-1]))
    steps = np.append(curve.env_steps[curve.env_steps < end], end)
    if len(steps) == 1:
        return float(curve.returns[0])
    returns = np.interp(steps, curve.env_steps, curve.returns)
    return float(np.trapezoid(returns, steps) / (steps[-1] - steps[0]))


def minutes(curve: Curve, budget: int) -> float:
    """Return the wall-clock minutes from the start of the run to its last evaluation up to ``budget``
    environment steps; NaN if the run did not record times."""
    if curve.seconds is None:
        return float("nan")
    return float(curve.seconds[: len(curve.until(budget))][-1]) / 60


_OF_CURVES: dict[str, tuple[str, Callable[[Curve, int], float]]] = {
    "last10": (f"the mean of its last {LAST} evaluations", last),
    "last": ("its last evaluation alone", lambda curve, budget: last(curve, budget, 1)),
    "best": ("its best evaluation", lambda curve, budget: float(curve.until(budget).max())),
    "minutes": ("the wall-clock minutes until its last evaluation", minutes),
    "area": ("the area under its curve over the steps, its mean return over training", area),
}


def _last_metric(metric: str, group: Group, budget: int) -> np.ndarray:
    found: dict[int, float] = {}
    for record in group.records:
        for row in _rows(record, budget):
            if (value := number(metric, row)) is not None:
                found[row["seed"]] = value
    if not found:
        known = {name: x for record in group.records for row in _rows(record, 0) for name, x in row.items()}
        raise Refused(f"{group.label} on {group.task} {lacking(metric, known, METRIC)}")
    return np.array([found.get(curve.seed, np.nan) for curve in group.curves])


def number(metric: str, row: Mapping[str, Any]) -> float | None:
    """Return the number that ``metric`` names, as in ``measure``, in a row of ``metrics.jsonl``; None if the
    row has none."""
    name, slash, kind = metric.partition("/")
    return by_suffix(np.asarray(row.get(name, []), np.float64)).get(slash + kind)


def lacking(metric: str, row: Mapping[str, Any], prefix: str = "") -> str:
    """Return why ``metric`` names no number in a row like ``row``, and the names that do, each with
    ``prefix``."""
    name = metric.partition("/")[0]
    if name not in row:
        known = sorted(x for x in row if x not in log.FACTS and not x.startswith("hyper."))
        return f"records no metric {metric!r}; it records {', '.join(known) or 'none'}"
    shape = np.shape(row[name])
    if not shape:
        return f"records {name!r} as one number: name {prefix}{name}"
    if 0 in shape:
        return f"records {name!r} without any entry, since its axes are {list(shape)}; name another metric"
    kinds = [f"{prefix}{name}/mean", "/max"]
    if len(shape) == 1:
        last = shape[0] - 1
        kinds += [f"/0 to /{last}", f"/first:0 to /first:{last}"] if last else ["/0", "/first:0"]
    told = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
    return f"records {name!r} with axes {list(shape)}: name one of its numbers, {told}"


def by_suffix(value: np.ndarray) -> dict[str, float]:
    """Return the scalars of a metric by the suffix of their names."""
    found = dict(scalars(value))
    if value.ndim == 1:
        found |= {f"/{place}": float(x) for place, x in enumerate(value)}
        found |= {f"/first:{place}": float(place == np.argmax(value)) for place in range(len(value))}
    return found


def _rows(record: Record, budget: int) -> Iterator[dict[str, Any]]:
    """Yield the rows in ``metrics.jsonl`` of the record's setting, for each seed up to the first at or beyond
    ``budget``."""
    reached: dict[int, int] = {}
    for row in log.each_line(rundir.RunDirectory(record.root).metrics):
        if record.has(row) and reached.get(row["seed"], -1) < budget:
            reached[row["seed"]] = row["env_steps"]
            yield row


def summary(scores: np.ndarray, statistic: Statistic) -> str:
    """Return a cell of a table: the statistic of scores [seeds] and their spread."""
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
    """Return the statistic of scores [seeds] as a number."""
    if statistic == "iqm":
        return float(statistics.interquartile_mean([scores]))
    return float(np.median(scores) if statistic == "median" else scores.mean())


WORDS = {
    "mean": "mean ± standard deviation over seeds",
    "median": "median and range over seeds",
    "iqm": f"interquartile mean over seeds and its {statistics.LEVEL:.0%} bootstrap interval",
}
"""Description of a cell, by statistic."""
