"""On-policy agents side by side, each with its own environment lanes; one is the plain algorithm.

The counterpart of ``independent``, whose agents have a replay. A ``drive`` may add a reward for novelty or
for skills to the task's.

An iteration: collect -> learn, both of ``population.onpolicy``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from popjax.core import Env, Method
from popjax.population import drives, onpolicy, schedules
from popjax.population.onpolicy import Config, State
from popjax.population.parts import Metrics as Metrics
from popjax.population.schedules import FOLLOWED, Scheduled
from popjax.recipe import Recipe, recorded

__all__ = ["METHOD", "Config", "Hyper", "State", "build", "default_hyper"]

Hyper = Any
"""The agents' ``Hyper``, with the drive's in its field ``drive``. A leaf is [], one value for all agents; a
leaf of the agents' own may be [P], one value for each."""

default_hyper = drives.hyper_of


@recorded
def build(env: Env, config: Config = Config(), schedule: Sequence[Scheduled] = ()) -> Method:
    """Return ``config.population`` agents of the kind ``config.agent`` in ``env``; their hyperparameters
    follow the ``schedule`` of a search if there is one.

    Raises:
        ValueError: the schedule is of another kind of agent.
    """
    return schedules.plain(onpolicy, env, config, schedule)


METHOD = Recipe(
    build,
    Config,
    default_hyper,
    agents=onpolicy.AGENTS,
    runs={"schedule": FOLLOWED},
    remarks=schedules.remarks,
)
