"""Figures of searches over hyperparameters, from ``schedule.json``, which has every ready point even if
``metrics.jsonl`` records few generations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from popjax.host.report import charts
from popjax.host.report.record import Record
from popjax.host.runs import rundir

STEPS = "environment steps of an individual"
_TURNS = 40  # maximum number of ready points in a lineage
_TRUNK = 0.6  # fraction of an interval before a lineage forks
_BLACK, _GREY, _BLUE, _ORANGE = "#000000", "#AAAAAA", "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Scale:
    """Scale of the axis of a hyperparameter.

    name: its name.
    top:  bound, if the distance to it is drawn, such as 1 for 1 - discount; None to draw the value itself.
    log:  whether the axis is logarithmic.
    """

    name: str
    top: float | None
    log: bool

    @property
    def label(self) -> str:
        """Label of the axis."""
        return self.name if self.top is None else f"{self.top:g} - {self.name}"

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return the values as they are drawn."""
        return values if self.top is None else self.top - values


@dataclass(frozen=True)
class Search:
    """The R ready points of one seed, including the start, of P slots with F hyperparameters.

    env_steps: int [R]          environment steps of an individual.
    source:    int [R, P]       slot that a slot took its individual from, its own if kept; -1 for a newcomer.
    fitness:   float [R, P]     fitness at the decision, non-finite if diverged; row 0 is unused.
    numbers:   float [R, P, F]  hyperparameters with which a slot continued.
    winner:    slot of the best individual at the end.
    line:      int [L]          environment steps at the points of the winner's line of descent.
    chosen:    float [L, F]     hyperparameters at these points.
    """

    seed: int
    scales: tuple[Scale, ...]
    env_steps: np.ndarray
    source: np.ndarray
    fitness: np.ndarray
    numbers: np.ndarray
    winner: int
    line: np.ndarray
    chosen: np.ndarray

    @property
    def descent(self) -> np.ndarray:
        """Slot of the winner's line of descent at every ready point, int [R]; -1 before it began."""
        slots, slot = np.full(len(self.source), -1), self.winner
        for row in reversed(range(len(self.source))):
            slots[row] = slot
            slot = self.source[row, slot] if row else -1
            if slot < 0:
                break
        return slots


def read(record: Record) -> list[Search]:
    """Return the searches of all seeds of a run, if it has finished and its method has a schedule."""
    path = rundir.RunDirectory(record.root).schedule
    if not path.exists():
        return []
    schedule = json.loads(path.read_text(encoding="utf-8"))
    return [_search(told) for told in schedule["members"] if record.has(told)]


def _search(told: Mapping[str, Any]) -> Search:
    made = told["selections"]
    scales = []
    for prior in told["priors"]:
        top = prior["top"] if prior["log"] else None
        scales.append(Scale(prior["name"], top, prior["log"]))
    return Search(
        seed=told["seed"],
        scales=tuple(scales),
        env_steps=np.array(made["env_steps"]),
        source=np.array(made["source"]),
        fitness=np.array([[np.nan if x is None else float(x) for x in row] for row in made["fitness"]]),
        numbers=np.array(made["numbers"], float),
        winner=told["winner"],
        line=np.array([row["env_steps"] for row in told["line"]]),
        chosen=np.array([[row["numbers"][name] for name in told["names"]] for row in told["line"]]),
    )


def figures(label: str, searches: Sequence[Search]) -> Iterator[tuple[str, Any, str]]:
    """Yield (kind, figure, caption) for each view of a method's ``searches``, one for each seed."""
    first, seeds = searches[0], len(searches)
    who = f"{label}, seed {first.seed}"
    turns = min(len(first.source) - 1, _TURNS)
    yield (
        "numbers",
        numbers(who, first),
        f"Hyperparameters of all {first.source.shape[1]} individuals of {who}: a line for each, coloured "
        "by its fitness at the next ready point, grey if it diverged. A line forks where its individual is "
        "taken over and ends where it is replaced.",
    )
    yield (
        "takeovers",
        lineage(who, first),
        f"Takeovers in {who}, in the last {turns} intervals between ready points: colours are the "
        "hyperparameters with which a slot continued, slanted lines takeovers, broad lines the winner's line "
        "of descent.",
    )
    middle = ", their median and the range of their middle half" if seeds > 1 else ""
    yield (
        "schedules",
        schedules(f"{label}: schedules of the best", searches),
        f"Schedules of the best individuals of {seeds} seed{'s' * (seeds > 1)} of {label}{middle}, each from "
        "the beginning of its line of descent.",
    )


def table(search: Search) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table of the winner's line of descent: the ready points at which a
    hyperparameter changed."""
    header = ["ready point", STEPS, "slot", "took over", "its fitness"]
    made, winner, before = [], search.descent, None
    for row in np.flatnonzero(winner >= 0):
        slot, parent = winner[row], search.source[row, winner[row]]
        own = search.numbers[row, slot].tolist()
        if own == before:
            continue
        taken = "" if row == 0 or parent == slot else "newcomer" if parent < 0 else str(parent)
        fitness = "" if row == 0 or parent < 0 else f"{search.fitness[row, parent]:.1f}"
        made.append([str(row), f"{search.env_steps[row]:,}", str(slot), taken, fitness])
        made[-1] += [f"{value:.4g}" for value in own]
        before = own
    return [*header, *(scale.name for scale in search.scales)], made


def rows(search: Search) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``lineage.csv``: every slot at every ready point, the start included."""
    for row, slot in np.ndindex(*search.source.shape):
        yield {
            "seed": search.seed,
            "ready": row,
            "env_steps": int(search.env_steps[row]),
            "slot": slot,
            "source": int(search.source[row, slot]),
            "fitness": float(search.fitness[row, slot]),
            **{
                scale.name: float(x)
                for scale, x in zip(search.scales, search.numbers[row, slot], strict=True)
            },
        }


def numbers(who: str, search: Search) -> Any:
    """Draw every individual's hyperparameters over environment steps, coloured by fitness."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    figure, panels = _panels(f"{who}: hyperparameters of all individuals", search.scales, 2.3)
    known = search.fitness[1:][np.isfinite(search.fitness[1:])]
    norm = Normalize(*((known.min(), known.max()) if known.size else (0, 1)))
    winner = search.descent
    for place, (axes, scale) in enumerate(zip(panels, search.scales, strict=True)):
        values = scale.of(search.numbers[..., place])
        strokes, fitness = _spans(search, values)
        lines = LineCollection(strokes, norm=norm, linewidths=1.0)
        lines.set_array(np.ma.masked_invalid(fitness))
        lines.set_cmap(lines.get_cmap().with_extremes(bad=_GREY))
        axes.add_collection(lines)
        began = int(np.argmax(winner >= 0))
        own = values[range(began, len(values)), winner[began:]]
        line = {"color": _BLACK, "linewidth": 1.4, "label": "descent of the best at the end"}
        axes.step(search.env_steps[began:], own, where="post", **line)
        axes.autoscale()
        _scaled(axes, scale)
    figure.colorbar(lines, ax=panels, label="fitness at the next ready point (return)", aspect=40)
    charts.legend(panels[-1], 2)
    return figure


def lineage(who: str, search: Search) -> Any:
    """Draw the slots over the ready points, joined with the slots they took over, coloured by their
    hyperparameters."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LogNorm, Normalize

    start = max(len(search.source) - 1 - _TURNS, 0)
    steps, source = search.env_steps[start:], search.source[start:]
    population = source.shape[1]
    figure, panels = _panels(f"{who}: lineage", search.scales, 1.0 + min(0.11 * population, 3.2))
    paths = _paths(steps, source, search.descent[start:])
    row, slot = np.nonzero(source[1:] < 0)
    for place, (axes, scale) in enumerate(zip(panels, search.scales, strict=True)):
        values = scale.of(search.numbers[start:, :, place])
        norm = (LogNorm if scale.log else Normalize)(values.min(), values.max())
        for chosen, width in (paths, 1.0), ([path for path in paths if path.best], 3.5):
            lines = LineCollection([path.points for path in chosen], norm=norm, linewidths=width)
            lines.set_array([values[path.row, path.slot] for path in chosen])
            axes.add_collection(lines)
        if row.size:
            axes.plot(steps[1:][row], slot, "*", color=_ORANGE, markersize=6, label="a newcomer begins")
        axes.autoscale()
        axes.set(ylim=(population - 0.5, -0.5), ylabel="slot", title="", yscale="linear")
        axes.grid(False)
        bar = figure.colorbar(lines, ax=axes, label=scale.label, aspect=12)
        _ticks(bar.ax.yaxis, scale)
    if row.size:
        charts.legend(panels[-1], 1)
    return figure


def schedules(title: str, searches: Sequence[Search]) -> Any:
    """Draw the schedule of every seed's best individual and, for several seeds, their median and middle
    half."""
    figure, panels = _panels(title, searches[0].scales, 2.2)
    grid = np.unique(np.concatenate([search.line for search in searches]))
    grid = grid[grid <= min(search.line[-1] for search in searches)]
    for place, (axes, scale) in enumerate(zip(panels, searches[0].scales, strict=True)):
        each = []
        for number, search in enumerate(searches):
            label = "each seed" if number == 0 else None
            values = scale.of(search.chosen[:, place])
            axes.step(search.line, values, where="post", color=_GREY, linewidth=1.0, label=label)
            each.append(values[np.searchsorted(search.line, grid, side="right") - 1])
        if len(searches) > 1:
            low, middle, high = np.quantile(each, [0.25, 0.5, 0.75], 0)
            axes.step(grid, middle, where="post", color=_BLUE, linewidth=2, label="median")
            band = {"step": "post", "color": _BLUE, "alpha": 0.2, "linewidth": 0}
            axes.fill_between(grid, low, high, label="middle half", **band)
        _scaled(axes, scale)
    charts.legend(panels[-1], 3)
    return figure


class Path(NamedTuple):
    """A line of a lineage that starts in ``slot`` at ready point ``row``; ``best`` on the winner's line."""

    row: int
    slot: int
    points: list[tuple[float, int]]
    best: bool


def _paths(steps: np.ndarray, source: np.ndarray, winner: np.ndarray) -> list[Path]:
    """Return the lines of a lineage: each slot continues for most of an interval and then joins all slots
    that take it over."""
    found = []
    for row, (begin, end) in enumerate(pairwise(steps)):
        fork = begin + _TRUNK * (end - begin)
        for slot in range(source.shape[1]):
            found.append(Path(row, slot, [(begin, slot), (fork, slot)], slot == winner[row]))
        for slot, parent in enumerate(source[row + 1]):
            if parent >= 0:
                best = parent == winner[row] and slot == winner[row + 1]
                found.append(Path(row, parent, [(fork, parent), (end, slot)], best))
    return found


def _spans(search: Search, values: np.ndarray) -> tuple[list[Any], list[float]]:
    """Return the lines of all individuals between ready points at their ``values`` [R, P], and their fitness.

    A change of hyperparameters at a ready point adds a vertical line.
    """
    lines, fitness = [], []
    for row, (begin, end) in enumerate(pairwise(search.env_steps)):
        for slot, parent in enumerate(search.source[row + 1]):
            lines.append([(begin, values[row, slot]), (end, values[row, slot])])
            fitness.append(search.fitness[row + 1, slot])
            if parent >= 0 and values[row, parent] != values[row + 1, slot]:
                lines.append([(end, values[row, parent]), (end, values[row + 1, slot])])
                fitness.append(search.fitness[row + 1, parent])
    return lines, fitness


def _panels(title: str, scales: Sequence[Scale], height: float) -> tuple[Any, list[Any]]:
    """Return a figure with a panel for each hyperparameter over environment steps."""
    figure, panels = charts.canvas(title, height=1.0 + height * len(scales), rows=len(scales))
    panels = list(np.atleast_1d(panels))
    for axes in panels:
        charts.count_axis(axes.xaxis)
    panels[-1].set_xlabel(STEPS)
    figure.align_ylabels()
    return figure, panels


def _scaled(axes: Any, scale: Scale) -> None:
    """Set the label and scale of a hyperparameter's axis."""
    axes.set(ylabel=scale.label, yscale="log" if scale.log else "linear")
    axes.margins(x=0.01)
    _ticks(axes.yaxis, scale)


def _ticks(axis: Any, scale: Scale) -> None:
    """Write powers of ten as plain text, like all text of the figures."""
    from matplotlib.ticker import LogFormatter

    if scale.log:
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.4)))
