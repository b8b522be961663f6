"""The learning curve of one run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from popjax.arguments import typed
from popjax.host import paths
from popjax.host.errors import Refused
from popjax.host.report import charts, records
from popjax.host.runs.history import Evaluation

_COLOUR = "#1f5fa8"


@typed(Refused)
@charts.literal_text()
def learning_curve(
    evaluations: Sequence[Evaluation], path: str | Path, *, title: str, stop_at_return: float | None = None
) -> None:
    """Draw mean evaluation return against environment steps into ``path`` (PNG).

    For one seed, the range over its episodes is shaded. For several, there is a thin line per seed and a
    thick one for their mean, interpolated linearly where seeds were evaluated at different steps. In the
    mean, seeds that reached ``stop_at_return`` keep their last return until the others end.
    """
    figure, axes = charts.canvas(title)
    curves = [records.curve(evaluations, seed) for seed in sorted({made.seed for made in evaluations})]
    if len(curves) == 1:
        steps, ends = curves[0].env_steps, np.array([(min(e.returns), max(e.returns)) for e in evaluations])
        band = {"color": _COLOUR, "alpha": 0.15, "linewidth": 0, "label": "range over episodes"}
        axes.fill_between(steps, *ends.T, **band)
        label = f"seed {curves[0].seed}, mean over episodes"
        axes.plot(steps, curves[0].returns, color=_COLOUR, linewidth=2, label=label)
    elif curves:
        for place, curve in enumerate(curves):
            thin = {"color": _COLOUR, "alpha": 0.35, "linewidth": 0.9}
            axes.plot(curve.env_steps, curve.returns, **thin, label="" if place else "each seed")
        end = [max(int(curve.env_steps[-1]) for curve in curves)]
        held = [curve.hold(end) if curve.satisfies(stop_at_return) else curve for curve in curves]
        steps, returns = charts.aligned(held)
        if len(steps):
            label = f"mean of {len(curves)} seeds"
            axes.plot(steps, returns.mean(0), color=_COLOUR, linewidth=2.2, label=label)
    axes.set(xlabel=charts.STEPS, ylabel=charts.RETURN)
    axes.margins(x=0.01)
    charts.count_axis(axes.xaxis)
    charts.legend(axes, 2)
    with paths.replacing(paths.path(path)) as partial:
        figure.savefig(partial, format="png")
