"""Ends of the training of a member, or of all, other than a signal or a failure."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from popjax.host.runs.run import Position, Run


def satisfied(run: Run, position: Position) -> set[int]:
    """Return the places of the members whose latest evaluation has the return that is asked for."""
    wanted = run.options.stop_at_return
    if wanted is None:
        return set()
    latest = {evaluation.member: evaluation.mean for evaluation in position.evaluations}
    return {place for place in position.living if latest.get(run.members[place].number, -np.inf) >= wanted}


def ended(run: Run, position: Position) -> set[int]:
    """Return the places of the members that are at the end of their budget or satisfied."""
    spent = {place for place in position.living if position.env_steps[place] >= run.options.env_steps}
    return spent | satisfied(run, position)


def standing(run: Run, position: Position) -> set[int]:
    """Return the places of the members that do not go on: ended or failed."""
    return ended(run, position) | position.failed.keys()


def over(run: Run, position: Position) -> bool:
    """Return whether no member goes on."""
    return len(standing(run, position)) == len(run.members)


def out_of_time(run: Run) -> bool:
    """Return whether this process has used up the minutes that the run may take."""
    minutes = run.options.max_minutes
    return minutes is not None and time.perf_counter() - run.begun >= 60 * minutes


def reasons(run: Run, position: Position, early: str | None) -> dict[int, str]:
    """Return why members stopped before their budget, by place; ``early`` is what ended the whole run."""
    met = satisfied(run, position)
    return {
        place: f"reached a return of {run.options.stop_at_return:g}" if place in met else str(early)
        for place in position.living
        if position.env_steps[place] < run.options.env_steps and (early or place in met)
    }


def sees_policy(sink: Callable[..., Any]) -> bool:
    """Return whether a sink takes the policy as its third argument: a positional one without a default, or
    any number of arguments."""
    try:
        parameters = inspect.signature(sink).parameters.values()
    except (TypeError, ValueError):  # of a builtin
        return False
    needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len([p for p in needed if p.default is p.empty]) == 3 or any(
        p.kind is p.VAR_POSITIONAL for p in parameters
    )


def says_stop(answer: Any) -> bool:
    """Return whether a sink has answered True."""
    return answer is True or (isinstance(answer, np.bool_) and bool(answer))
