"""Figures of a population, from metrics in ``metrics.jsonl``.

Any method may record these metrics; each recorded one has a figure:

    fitness:   [P]     fitness of each individual, or of each slot if individuals replace one another.
    parents:   [P, 2]  slots of this generation that each slot of the next descends from; -1 for none, for
                       example if an outsider such as a learner enters the slot.
    transfers: [P, P]  number of policies that each individual (row) took over from each other (column) in
                       this generation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from popjax.host.report import charts
from popjax.host.report.record import Record
from popjax.host.runs import log, rundir

_GENERATIONS = 40  # maximum number of generations in a lineage
_GREY, _BLUE, _ORANGE, _GREEN = "#BBBBBB", "#0072B2", "#D55E00", "#009E73"


@dataclass(frozen=True)
class Rows:
    """Records of one seed: generation int [C], ascending, and each metric [C, ...] by its name."""

    seed: int
    generation: np.ndarray
    metrics: dict[str, np.ndarray]

    @property
    def population(self) -> int:
        """Number of individuals; 0 if no fitness was recorded."""
        return self.metrics["fitness"].shape[1] if "fitness" in self.metrics else 0

    @property
    def consecutive(self) -> bool:
        """Return whether every generation from the first to the last was recorded."""
        return bool((np.diff(self.generation) == 1).all())


def rows(record: Record) -> Rows | None:
    """Return the records of the population of a run's first seed, or None if there are none."""
    lines = log.read_lines(rundir.RunDirectory(record.root).metrics)
    first = min(evaluation.seed for evaluation in record.evaluations)
    mine = [line for line in lines if line["seed"] == first and record.has(line)]
    if not mine:
        return None
    names = [name for name in ("fitness", "parents", "transfers") if name in mine[0]]
    metrics: dict[str, np.ndarray] = {name: np.array([line[name] for line in mine]) for name in names}
    return Rows(first, np.array([line["generation"] for line in mine]), metrics)


def figures(label: str, found: Rows, fates: bool = True) -> Iterator[tuple[str, Any, str]]:
    """Yield (kind, figure, caption) for each recorded view of a population of two or more.

    fates: whether to draw lineage and transfers; for a search, its schedule shows them.
    """
    who = f"{label}, seed {found.seed}"
    if found.population < 2 or len(found.generation) < 2:
        return
    yield (
        "fitness",
        fitness(who, found),
        f"Fitness of each of the {found.population} individuals of {who}: above, the best, the mean and the "
        "worst; below, all of them. Where a method replaces individuals, a row is a slot of the population.",
    )
    if not fates:
        return
    if "parents" in found.metrics and found.consecutive:
        yield (
            "lineage",
            lineage(who, found),
            f"Lineage of {who}, in the last {min(len(found.generation), _GENERATIONS)} generations: lines "
            "join a slot with the slots of its individual's parents.",
        )
    if "transfers" in found.metrics:
        some = "all" if found.consecutive else "the recorded"
        yield (
            "transfers",
            transfers(who, found),
            f"Policies that individuals of {who} took over from each other, summed over {some} generations.",
        )


def missing(found: Rows | None) -> str | None:
    """Return the reason why parents were recorded but no lineage is drawn, or None."""
    if found is not None and "parents" in found.metrics and not found.consecutive:
        spacing = int(np.diff(found.generation).max())
        return f"Only one generation in {spacing} was recorded, too few for a lineage: lower --log-every."
    return None


def fitness(who: str, found: Rows) -> Any:
    """Draw best, mean and worst fitness over generations and, below, every individual's fitness in colour."""
    values, generation = found.metrics["fitness"], found.generation
    height = 4.2 + min(0.12 * found.population, 3.0)
    figure, (above, below) = charts.canvas(f"{who}: fitness", height=height, rows=2)
    above.plot(generation, values.max(1), color=_ORANGE, linewidth=1.6, label="best")
    above.plot(generation, values.mean(1), color=_BLUE, linewidth=1.6, linestyle="--", label="mean")
    above.plot(generation, values.min(1), color="#000000", linewidth=1.2, linestyle=":", label="worst")
    above.set(xlabel="generation", ylabel="fitness (return)", xlim=(generation[0], generation[-1]))
    charts.legend(above, 3)
    slots = np.arange(found.population)
    image = below.pcolormesh(generation, slots, values.T, shading="nearest", cmap="viridis", rasterized=True)
    below.set(xlabel="generation", ylabel="individual", ylim=(found.population - 0.5, -0.5))
    below.grid(False)
    for axes in (above, below):
        charts.count_axis(axes.xaxis)
    _whole(below.yaxis)
    figure.colorbar(image, ax=below, label="fitness (return)")
    return figure


def lineage(who: str, found: Rows) -> Any:
    """Draw slots over generations, joined to their parents, and highlight the ancestors of the final best."""
    from matplotlib.collections import LineCollection

    start = max(len(found.generation) - _GENERATIONS, 0)
    parents, generation = found.metrics["parents"][start:], found.generation[start:]
    best = found.metrics["fitness"][start:].argmax(1)
    figure, axes = charts.canvas(f"{who}: lineage", height=2.4 + min(0.25 * found.population, 5.0))
    kinds: dict[str, list[Any]] = {"clone": [], "child": [], "ancestor": []}
    traced = {int(best[-1])}
    for step in reversed(range(len(generation) - 1)):
        ancestors = set()
        for slot, (one, other) in enumerate(parents[step]):
            for parent in {int(one), int(other)} - {-1}:
                line = [(generation[step], parent), (generation[step + 1], slot)]
                kinds["clone" if other < 0 else "child"].append(line)
                if slot in traced:
                    kinds["ancestor"].append(line)
                    ancestors.add(parent)
        traced = ancestors
    looks = {
        "clone": (_GREY, 0.8, "-", "survived or cloned"),
        "child": (_GREEN, 0.8, "--", "child of two"),
        "ancestor": (_BLUE, 2.4, "-", "ancestors of the last best"),
    }
    for kind, (colour, width, dashes, text) in looks.items():
        lines = LineCollection(kinds[kind], colors=colour, linewidths=width, linestyles=dashes, label=text)
        axes.add_collection(lines)
    axes.plot(generation, best, "o", color=_ORANGE, markersize=4, label="best of its generation")
    _entries(axes, parents, generation)
    axes.set(xlabel="generation", ylabel="slot", ylim=(found.population - 0.5, -0.5))
    axes.grid(False)
    _whole(axes.xaxis)
    _whole(axes.yaxis)
    charts.legend(axes, 3)
    return figure


def transfers(who: str, found: Rows) -> Any:
    """Draw the number of policies that each individual gave to each other, over all recorded generations."""
    count = found.metrics["transfers"].sum(0).T  # [giver, taker]
    size = len(count)
    figure, axes = charts.canvas(f"{who}: transfers", height=2.4 + min(0.4 * size, 5.0))
    image = axes.imshow(count, cmap="viridis", aspect="auto", vmin=0, vmax=max(count.max(), 1))
    for giver, taker in np.ndindex(*count.shape):
        dark = count[giver, taker] < 0.6 * count.max() or not count.max()
        text = {"ha": "center", "va": "center", "color": "white" if dark else "black"}
        axes.text(taker, giver, str(count[giver, taker]), **text)
    axes.set(xlabel="individual that took over", ylabel="individual that gave")
    axes.grid(False)
    _whole(axes.xaxis)
    _whole(axes.yaxis)
    bar = figure.colorbar(image, ax=axes, label="policies (count)")
    _whole(bar.ax.yaxis)
    return figure


def _entries(axes: Any, parents: np.ndarray, generation: np.ndarray) -> None:
    """Mark the slots that outsiders enter, one generation after the record."""
    step, slot = np.nonzero((parents[:-1] < 0).all(-1))
    if step.size:
        label = "an outsider enters"
        axes.plot(generation[1:][step], slot, "*", color="black", markersize=9, label=label)


def _whole(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))
