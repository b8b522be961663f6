"""Figures that compare methods; a method has the same colour in all of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from popjax import libraries
from popjax.host.report import statistics
from popjax.host.report.records import Curve, Group
from popjax.host.report.statistics import Estimate, Scores

# Okabe and Ito's palette for colour-blind readers, without its yellow; dashes when colours run out.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", ":", "-.")
STEPS = "environment steps per seed"
HOURS = "wall-clock hours, all seeds of a run together"
RETURN = "evaluation return (sum of rewards)"


class Style(NamedTuple):
    """Line style of a method."""

    color: str
    linestyle: str


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """Return a style for each method, the same in all figures."""
    count = len(_COLOURS)
    return {
        label: Style(_COLOURS[place % count], _DASHES[place // count % len(_DASHES)])
        for place, label in enumerate(labels)
    }


def learning_curves(
    task: str, groups: Sequence[Group], look: Mapping[str, Style], by_time: bool = False
) -> Any:
    """Draw the mean over seeds and one standard deviation around it against environment steps, or hours if
    ``by_time``; one line for each method."""
    figure, axes = canvas(f"{task}: return against {'time' if by_time else 'environment steps'}")
    for group in groups:
        steps, returns = aligned(group.curves, by_time)
        _band(axes, steps, returns, group, look[group.label])
    if not by_time:
        count_axis(axes.xaxis)
    axes.set(xlabel=HOURS if by_time else STEPS, ylabel=RETURN)
    axes.margins(x=0.01)
    legend(axes, _columns(groups))
    return figure


def anytime(task: str, groups: Sequence[Group], look: Mapping[str, Style]) -> Any:
    """Draw the best return so far, mean over seeds and one standard deviation around it, up to the point
    that all methods have reached: at equal environment steps and, if all are ``timed``, at equal time."""
    timed = all(group.timed for group in groups)
    figure, panels = canvas(f"{task}: best return so far", height=3.4 + 2.6 * timed, rows=1 + timed)
    for axes, by_time in zip(np.atleast_1d(panels), (False, True), strict=False):
        curves = [aligned(group.curves, by_time, best=True) for group in groups]
        end = min(places[-1] for places, _ in curves)
        for group, (places, returns) in zip(groups, curves, strict=True):
            kept = places <= end
            _band(axes, places[kept], returns[:, kept], group, look[group.label], stays=True)
        if not by_time:
            count_axis(axes.xaxis)
        axes.set(xlabel=HOURS if by_time else STEPS, ylabel="best return so far")
        axes.margins(x=0.01)
    legend(axes, _columns(groups))
    return figure


def interquartile_means(found: Mapping[str, Estimate], look: Mapping[str, Style], unit: str) -> Any:
    """Draw the point and interval of each method."""
    figure, axes = canvas("Interquartile mean of the scores", height=1.7 + 0.45 * len(found))
    _points(axes, list(found.values()), [_wrapped(x) for x in found], [look[label].color for label in found])
    axes.set(xlabel=unit, ylabel="method")
    legend(axes, 2)
    return figure


def improvements(found: Mapping[tuple[str, str], Estimate], look: Mapping[str, Style]) -> Any:
    """Draw the probability that one method beats another and its interval, for each pair."""
    figure, axes = canvas("Probability of improvement", height=1.7 + 0.7 * len(found))
    names = [f"{_wrapped(x)}\n> {_wrapped(y)}" for x, y in found]
    _points(axes, list(found.values()), names, [look[x].color for x, _ in found])
    axes.axvline(0.5, color="#777777", linewidth=1, linestyle="--", label="no difference")
    axes.set(xlabel="probability that a run of the first scores higher", ylabel="pair of methods")
    axes.set_xlim(-0.02, 1.02)
    legend(axes, 3)
    return figure


def profiles(scores: Mapping[str, Scores], look: Mapping[str, Style], unit: str) -> Any:
    """Draw the share of runs above each score, one curve for each method."""
    figure, axes = canvas("Performance profiles")
    runs = np.concatenate([x for found in scores.values() for x in found])
    margin = 0.05 * (np.ptp(runs) or 1.0)
    thresholds = np.linspace(runs.min() - margin, runs.max() + margin, 201)
    for label, found in scores.items():
        shares, style = statistics.estimate(lambda x: statistics.profile(x, thresholds), found), look[label]
        axes.plot(
            thresholds,
            shares.value,
            linewidth=2,
            label=_shown(label),
            drawstyle="steps-pre",
            **style._asdict(),
        )
        if shares.low is not None:
            band = (thresholds, shares.low, shares.high)
            axes.fill_between(*band, color=style.color, alpha=0.18, linewidth=0, step="pre")
    axes.set(xlabel=unit, ylabel="share of runs above the score")
    axes.set_ylim(-0.02, 1.02)
    legend(axes, _columns(scores))
    return figure


def canvas(title: str, height: float = 4.2, rows: int = 1) -> Any:
    """Return a figure and its axes in the common style."""
    with libraries.plotting():
        from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), dpi=120, layout="constrained")
    axes = figure.subplots(rows, squeeze=False)[:, 0]
    axes[0].set_title(textwrap.fill(title, 90), loc="left", fontsize=11)
    for one in axes:
        one.grid(alpha=0.25, linewidth=0.6)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes[0] if rows == 1 else axes


@contextmanager
def literal_text() -> Iterator[None]:
    """Draw text literally, dollar signs included, whatever matplotlib's configuration is."""
    with libraries.plotting():
        import matplotlib

    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
        yield


def _shown(label: str) -> str:
    """Return a label that a legend shows; matplotlib omits labels with a leading underscore."""
    return f" {label}" if label.startswith("_") else label


def count_axis(axis: Any) -> None:
    """Write large numbers as 20k and 1M."""
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter(sep=""))


def legend(axes: Any, columns: int) -> None:
    """Draw the legend of ``axes`` below the figure, where it covers nothing."""
    axes.figure.legend(
        *axes.get_legend_handles_labels(),
        frameon=False,
        fontsize=9,
        loc="outside lower center",
        ncols=columns,
    )


def _points(axes: Any, found: Sequence[Estimate], names: Sequence[str], colours: Sequence[str]) -> None:
    """Draw a row for each estimate, the first at the top."""
    rows = np.arange(len(found))[::-1]
    banded = [row for row, one in zip(rows, found, strict=True) if one.low is not None]
    for row, (value, low, high), colour in zip(rows, found, colours, strict=True):
        if low is not None:
            label = f"{statistics.LEVEL:.0%} bootstrap interval" if row == banded[0] else None
            axes.barh(row, high - low, left=low, height=0.5, color=colour, alpha=0.3, label=label)
        axes.plot(value, row, "o", color=colour, label="estimate" if row == rows[0] else None)
    axes.set_yticks(rows, names, fontsize=9)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.use_sticky_edges = False  # a bar that ends at the edge of the axes looks cut off
    axes.autoscale(axis="x")
    axes.grid(False, axis="y")


def _columns(labels: Sized) -> int:
    """Return the number of columns of a legend: few, since the names of methods may be long."""
    return min(len(labels), 2)


def _wrapped(label: str) -> str:
    """Return a label in lines short enough to leave room for the axes."""
    return textwrap.fill(label, 36)


def _band(
    axes: Any, places: np.ndarray, returns: np.ndarray, group: Group, style: Style, stays: bool = False
) -> None:
    """Draw the mean of returns [seeds, N] and, for several seeds, a band of one standard deviation.

    With ``stays``, each return is held until the next one; otherwise straight lines join them.
    """
    mean, seeds = returns.mean(0), f"{len(returns)} seed" + "s" * (len(returns) > 1)
    how = {"linewidth": 2, "drawstyle": "steps-post" if stays else "default", **style._asdict()}
    how |= {"marker": "o"} if len(places) == 1 else {}  # a line of one point is invisible
    axes.plot(places, mean, label=_shown(f"{group.label} ({seeds})"), **how)
    if len(returns) > 1:
        std = returns.std(0, ddof=1)
        how = {"color": style.color, "alpha": 0.18, "linewidth": 0, "step": "post" if stays else None}
        axes.fill_between(places, mean - std, mean + std, **how)


def aligned(
    curves: Sequence[Curve], by_time: bool = False, best: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the environment steps, or hours, [N] within the range of all seeds, and the returns [seeds, N]
    there, interpolated linearly; with ``best``, the highest returns so far, held until the next
    evaluation.

    By time, the last returns of seeds that reached ``stop_at_return`` are held until the others end.
    """
    places = [np.asarray(c.seconds) / 3600 if by_time else c.env_steps for c in curves]
    made = [c.returns[: len(place)] for place, c in zip(places, curves, strict=True)]
    going = [place[-1] for place, c in zip(places, curves, strict=True) if not (by_time and c.held)]
    start = max(place[0] for place in places)
    end = min(going) if going else max(place[-1] for place in places)
    shared = np.unique(np.concatenate(places))
    shared = shared[(shared >= start) & (shared <= end)]
    if best:
        so_far = [np.maximum.accumulate(y) for y in made]
        held = [y[np.searchsorted(x, shared, side="right") - 1] for x, y in zip(places, so_far, strict=True)]
        return shared, np.array(held)
    return shared, np.array([np.interp(shared, x, y) for x, y in zip(places, made, strict=True)])
