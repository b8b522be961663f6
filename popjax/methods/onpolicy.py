"""On-policy agents side by side, each with its own environment lanes; one is the plain algorithm.

The counterpart of ``independent``, whose agents have a replay. A ``drive`` may add a reward for novelty or
for skills to the task's.

An iteration: collect -> learn, both of ``population.onpolicy``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from popjax import agents
from popjax.core import Env, Key, Method, PyTree, chain
from popjax.population import drives, onpolicy, parts, schedules
from popjax.population.onpolicy import Config, Metrics, State
from popjax.population.schedules import FOLLOWED, Scheduled
from popjax.recipe import Recipe, recorded

__all__ = ["METHOD", "Config", "Hyper", "Metrics", "State", "build", "default_hyper"]

Hyper = Any
"""The ``Hyper`` of the agent, and the drive's in its field ``drive``; a leaf is [] for all agents or, of the
agent, [P] for one number each."""


def default_hyper(config: Config) -> PyTree:
    """Return the numbers of the kinds of agent and drive that there are."""
    return drives.with_numbers(agents.default_hyper(config.agent), config.drive)


@recorded
def build(env: Env, config: Config = Config(), schedule: Sequence[Scheduled] = ()) -> Method:
    """Return ``config.population`` agents of the kind ``config.agent`` in ``env``; their numbers follow the
    ``schedule`` of a search if there is one.

    Raises:
        ValueError: that is of another kind of agent.
    """
    base = onpolicy.build(env, config)

    def init(key: Key, hyper: PyTree) -> State:
        return State(**base.fields(key, hyper))

    method = parts.whole(base, default_hyper(config), init, chain(base.collect, base.learn))
    return schedules.follow(method, schedule, agents.kind(config.agent), base.steps // config.population)


METHOD = Recipe(build, Config, default_hyper, agents=onpolicy.AGENTS, runs={"schedule": FOLLOWED})
