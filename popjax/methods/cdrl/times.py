"""What somebody who starts a run should know of the times at which teachers begin and end to teach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popjax.core import Env
from popjax.methods.cdrl.config import Config, Hyper

TIMES = ("align_from", "distil_from", "distil_until")


def remarks(
    env: Env,
    config: Config,
    hyper: Hyper,
    env_steps: int,
    teachers: Sequence[Any] = (),
    teacher_envs: Sequence[Env] = (),
    alignments: Sequence[Any] = (),
) -> list[str]:
    """Times of a run of ``env_steps`` at which nothing is distilled, or the wrong thing, a line each. Numbers
    of ``hyper`` may be one for each seed."""
    if not (teachers or teacher_envs):
        return []
    align_from, distil_from, distil_until = (_resolved(hyper, name) for name in TIMES)
    wanted = np.isfinite(distil_from)
    told = [
        f"{name} 1 is the first environment step: a fraction of the budget is below 1, and inf is never"
        for name in TIMES
        if np.any(np.asarray(getattr(hyper, name)) == 1)
    ]
    if late := _where(wanted & (distil_from > env_steps), distil_from):
        remedy = f"; --hyper.budget {env_steps} makes fractions those of this run"
        fractions = np.any(np.asarray(hyper.distil_from) < 1)
        told.append(
            f"nothing is distilled: that begins at {late} environment steps and the run ends at {env_steps:,}"
            + (remedy if fractions else "")
        )
    if ended := _where(wanted & (distil_until <= distil_from), distil_until):
        told.append(
            f"nothing is distilled: distil_until is at {ended} environment steps, distil_from not before"
        )
    early = _where(wanted & (distil_from < align_from), distil_from)
    if early and config.align == "online":
        told.append(
            f"distillation begins at {early} environment steps, before alignment networks begin to train:"
            " until then it follows untrained ones; let distil_from be after align_from"
        )
    return told


def _resolved(hyper: Hyper, name: str) -> np.ndarray:
    """A time in environment steps, as many as there are values of it or of the budget."""
    when, budget = np.asarray(getattr(hyper, name), float), np.asarray(hyper.budget, float)
    return np.where(when < 1, np.round(np.minimum(when, 1) * budget), when)


def _where(which: np.ndarray, times: np.ndarray) -> str:
    """The times that ``which`` is true of; nothing where there are none."""
    which, times = np.broadcast_arrays(which, times)
    return ", ".join(f"{time:,.0f}" for time in np.unique(times[which]))
