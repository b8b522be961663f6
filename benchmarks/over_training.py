"""Metrics of a run over training, as in figure 11 of PDERL's paper and on the left of Collaborative
Exploration's figure 8.

    python benchmarks/reproduce.py pderl-figure11
    python benchmarks/over_training.py runs/pderl --metrics elite_rate selected_rate --out runs/rates.json

draws every metric against environment steps, mean over seeds and one standard deviation around it. The JSON
file has the means.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import record
from popjax.host.report import charts
from popjax.host.report.records import Curve, Group
from popjax.host.runs import log, rundir

POINTS = 200  # of a mean that the JSON file has, at most


@dataclass(frozen=True)
class Arguments:
    """Which run, and which of its metrics."""

    run: tyro.conf.Positional[Path]
    """Directory of a run."""
    metrics: tuple[str, ...]
    """Metrics of its method; of one with a component for each individual, such as fitness, use fitness/0."""
    out: Path
    """JSON file for the results; the figure has its name."""
    factor: float = 1.0
    """Factor by which every metric is multiplied, for the figure's unit."""
    seed: int | None = None
    """Only this seed; by default all."""


def curves(arguments: Arguments, name: str) -> tuple[Curve, ...]:
    """Return a metric of every seed.

    Raises:
        SystemExit: the run does not record it.
    """
    metric, _, place = name.partition("/")
    found: dict[int, list[tuple[int, float]]] = {}
    for line in log.each_line(rundir.RunDirectory(arguments.run).metrics):
        if metric not in line:
            raise SystemExit(f"{arguments.run} records no metric {metric!r}; use one of {', '.join(line)}")
        if arguments.seed in (None, line["seed"]):
            value = line[metric][int(place)] if place else line[metric]
            found.setdefault(line["seed"], []).append((line["env_steps"], arguments.factor * value))
    if not found:
        raise SystemExit(f"{arguments.run} has recorded nothing yet; train it first")
    return tuple(Curve(seed, *np.array(points).T) for seed, points in sorted(found.items()))


def main(arguments: Arguments) -> None:
    """Read, draw and write."""
    groups = [Group(name, arguments.run.name, (), curves(arguments, name)) for name in arguments.metrics]
    figure = charts.learning_curves(arguments.run.name, groups, charts.styles(arguments.metrics))
    (axes,) = figure.axes
    axes.set(ylabel="metric" if arguments.factor == 1 else f"metric x {arguments.factor:g}")
    axes.set_title(f"{arguments.run.name}: metrics over training", loc="left", fontsize=11)
    means = {}
    for group in groups:
        steps, values = charts.aligned(group.curves)
        kept = np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).astype(int)
        means[group.label] = np.stack([steps, values.mean(0)], -1)[kept].round(4).tolist()
    record.write(arguments.out, run=arguments.run.name, columns=["env_steps", "mean over seeds"], means=means)
    figure.savefig(arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
