"""Times at which teachers begin and end to teach: environment steps, or fractions of a budget.

A time is counted in the student's environment steps: below 1 as a fraction of the budget, rounded to whole
steps, else as a number of steps, so that 1 is the first step and not the whole budget; infinity is never.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax.core import Number

NEVER = math.inf
"""A time that no run reaches."""


class Due(NamedTuple):
    """Whether alignment networks and the student learn now, bool []."""

    align: Array
    distil: Array


class Times(NamedTuple):
    """When alignment networks begin to train, distillation begins, and both end; ``budget`` in environment
    steps. Each may be one number for each member of a sweep."""

    align_from: Number
    distil_from: Number
    distil_until: Number
    budget: Number

    def going_on(self, taken: Array) -> Array:
        """Return whether anything is still to be distilled after ``taken`` environment steps, bool []."""
        return ~reached(taken, self.distil_until, self.budget)

    def due(self, taken: Array) -> Due:
        """Return who learns after ``taken`` environment steps."""
        begun = (reached(taken, time, self.budget) for time in (self.align_from, self.distil_from))
        return Due(*(self.going_on(taken) & each for each in begun))


def reached(taken: Array, when: Number, budget: Number) -> Array:
    """Return bool []: whether ``taken`` environment steps are at or beyond the time ``when``."""
    # Rounded, because 0.3 of 100,000 is 30,000.002 in float32, which 30,000 steps would not have reached.
    return taken.astype(jnp.float32) >= jnp.where(when < 1, jnp.round(when * budget), when)


def remarks(times: Times, env_steps: int, *, aligns: bool) -> list[str]:
    """Return a line for each reason why nothing, or the wrong thing, is distilled in a run of ``env_steps``,
    in which alignment networks train if ``aligns``."""
    numbers = Times(*(np.asarray(time, float) for time in times))
    named = list(zip(Times._fields[:3], numbers[:3], strict=True))
    align_from, distil_from, distil_until = (_steps(time, numbers.budget) for _, time in named)
    wanted = np.isfinite(distil_from)
    told = [
        f"{name} 1 is the first environment step: a fraction of the budget is below 1, and inf is never"
        for name, time in named
        if np.any(time == 1)
    ]
    if late := _where(wanted & (distil_from > env_steps), distil_from):
        remedy = f"; --hyper.budget {env_steps} makes fractions those of this run"
        told.append(
            f"nothing is distilled: that begins at {late} environment steps and the run ends at {env_steps:,}"
            + (remedy if np.any(numbers.distil_from < 1) else "")
        )
    if ended := _where(wanted & (distil_until <= distil_from), distil_until):
        told.append(
            f"nothing is distilled: distil_until is at {ended} environment steps, distil_from not before"
        )
    early = _where(wanted & (distil_from < align_from), distil_from)
    if early and aligns:
        told.append(
            f"distillation begins at {early} environment steps, before alignment networks begin to train:"
            " until then it follows untrained ones; let distil_from be after align_from"
        )
    return told


def _steps(when: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """The time in environment steps, as many as there are values of it or of the budget."""
    return np.where(when < 1, np.round(np.minimum(when, 1) * budget), when)


def _where(which: np.ndarray, times: np.ndarray) -> str:
    """The times that ``which`` is true of; nothing where there are none."""
    which, times = np.broadcast_arrays(which, times)
    return ", ".join(f"{time:,.0f}" for time in np.unique(times[which]))
