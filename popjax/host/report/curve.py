"""Learning curves as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from popjax.host.errors import Refused
from popjax.host.report import charts
from popjax.host.runs.history import Evaluation

_COLOUR = "#1f5fa8"


@charts.literal_text()
def learning_curve(evaluations: Sequence[Evaluation], path: Path, *, title: str, window: int = 1) -> None:
    """Draws mean evaluation return against environment steps into ``path`` (PNG).

    One thin line per seed and, for several seeds, a thick one for their mean, which is taken by linear
    interpolation where seeds were evaluated at different steps; for one seed the range over its episodes is
    shaded. ``window`` averages each seed over its last so many evaluations.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    if window < 1:
        raise Refused(f"a moving average needs a window of at least 1 evaluation, got {window}")
    figure = Figure(figsize=(7, 4.3), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    curves = [_curve(evaluations, seed, window) for seed in sorted({e.seed for e in evaluations})]
    if len(curves) == 1:
        _draw_one(axes, evaluations, curves[0], window)
    elif curves:
        _draw_many(axes, curves)
    axes.set_title(textwrap.fill(title, 80), loc="left", fontsize=11)
    axes.set_xlabel("environment steps per seed")
    axes.set_ylabel("evaluation return" + (f" (moving average of {window})" if window > 1 else ""))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    if curves:
        axes.legend(frameon=False, loc="best", fontsize=9)
    partial = path.with_suffix(".part")
    figure.savefig(partial, format="png")
    partial.replace(path)


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last ``window`` values at every place [N]; of fewer where there are not that many yet."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)


def _curve(evaluations: Sequence[Evaluation], seed: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    mine = [evaluation for evaluation in evaluations if evaluation.seed == seed]
    steps = np.array([evaluation.env_steps for evaluation in mine])
    return steps, moving_average(np.array([evaluation.mean for evaluation in mine]), window)


def _draw_one(axes, evaluations, curve, window) -> None:  # type: ignore[no-untyped-def]
    steps, means = curve
    if window == 1:
        low = [min(evaluation.returns) for evaluation in evaluations]
        high = [max(evaluation.returns) for evaluation in evaluations]
        axes.fill_between(
            steps, low, high, color=_COLOUR, alpha=0.15, linewidth=0, label="range over episodes"
        )
    axes.plot(
        steps, means, color=_COLOUR, linewidth=2, label=f"seed {evaluations[0].seed}, mean over episodes"
    )


def _draw_many(axes, curves) -> None:  # type: ignore[no-untyped-def]
    for place, (steps, means) in enumerate(curves):
        label = "each seed" if place == 0 else None
        axes.plot(steps, means, color=_COLOUR, alpha=0.35, linewidth=0.9, label=label)
    start, end = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    grid = np.unique(np.concatenate([steps for steps, _ in curves]))
    grid = grid[(grid >= start) & (grid <= end)]
    mean = np.mean([np.interp(grid, steps, means) for steps, means in curves], axis=0)
    axes.plot(grid, mean, color=_COLOUR, linewidth=2.2, label=f"mean of {len(curves)} seeds")
