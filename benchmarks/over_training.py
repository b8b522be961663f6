"""Metrics of a run over training, as in figure 11 of PDERL's paper.

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
from benchmarks import record, trained
from popjax.host.errors import Refused
from popjax.host.report import charts, measures
from popjax.host.report.records import Curve, Group

POINTS = 200  # maximum number of points of a mean in the JSON file


@dataclass(frozen=True)
class Arguments:
    """Which run, and which of its metrics."""

    run: tyro.conf.Positional[Path]
    """Directory of a run."""
    metrics: tuple[str, ...]
    """Metrics of its method; of one with axes, such as fitness, name fitness/mean, /max or /0."""
    out: Path
    """JSON file for the results; the figure has its name."""
    factor: float = 1.0
    """Factor by which every metric is multiplied, for the figure's unit."""


def curves(arguments: Arguments, name: str) -> tuple[Curve, ...]:
    """Return a metric of every seed.

    Raises:
        Refused: the run does not record it.
    """
    found: dict[int, list[tuple[int, float]]] = {}
    for line in trained.metrics(arguments.run):
        if (value := measures.number(name, line)) is None:
            raise Refused(f"{arguments.run} {measures.lacking(name, line)}")
        found.setdefault(line["seed"], []).append((line["env_steps"], arguments.factor * value))
    return tuple(Curve(seed, *np.array(points).T) for seed, points in sorted(found.items()))


@trained.in_one_line()
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
    runs = [trained.origin(arguments.run)]
    record.write(arguments.out, runs=runs, columns=["env_steps", "mean over seeds"], means=means)
    figure.savefig(arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
