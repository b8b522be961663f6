"""Conditions, other than signals and failures, that end the training of a member or of all members."""

from __future__ import annotations

import time

import numpy as np

from popjax.host.runs.run import Position, Run


def satisfied(run: Run, position: Position) -> set[int]:
    """Return the places of active members whose latest evaluation reached ``stop_at_return``."""
    wanted = run.options.stop_at_return
    if wanted is None:
        return set()
    latest = {evaluation.member: evaluation.mean for evaluation in position.evaluations}
    return {place for place in position.active if latest.get(run.members[place].number, -np.inf) >= wanted}


def ended(run: Run, position: Position) -> set[int]:
    """Return the places of active members that have spent their budget or are satisfied."""
    spent = {place for place in position.active if position.env_steps[place] >= run.options.env_steps}
    return spent | satisfied(run, position)


def stopped(run: Run, position: Position) -> set[int]:
    """Return the places of the members that have ended or failed."""
    return ended(run, position) | position.failed.keys()


def over(run: Run, position: Position) -> bool:
    """Return whether all members have stopped."""
    return len(stopped(run, position)) == len(run.members)


def out_of_time(run: Run) -> bool:
    """Return whether this process has spent ``max_minutes``."""
    minutes = run.options.max_minutes
    return minutes is not None and time.perf_counter() - run.begun >= 60 * minutes


def reasons(run: Run, position: Position, early: str | None) -> dict[int, str]:
    """Return why members stopped before their budget, by place; ``early`` is why the whole run did."""
    met = satisfied(run, position)
    return {
        place: f"reached a return of {run.options.stop_at_return:g}" if place in met else str(early)
        for place in position.active
        if position.env_steps[place] < run.options.env_steps and (early or place in met)
    }
