"""On-policy agents side by side, each with its own environment lanes; one is the plain algorithm.

What ``independent`` is to agents with a replay. A ``drive`` may add a reward for novelty or for skills to the
task's.

An iteration: collect -> learn, both of ``population.onpolicy``.
"""

from __future__ import annotations

from typing import Any

from popjax import agents
from popjax.core import Env, Key, Method, PyTree, chain
from popjax.population import drives, onpolicy, parts
from popjax.population.onpolicy import Config, Metrics, State
from popjax.recipe import Recipe, recorded

__all__ = ["METHOD", "Config", "Hyper", "Metrics", "State", "build", "default_hyper"]

Hyper = Any
"""The ``Hyper`` of the agent, and the drive's in its field ``drive``; a leaf is [] for all agents or, of the
agent, [P] for one number each."""


def default_hyper(config: Config) -> PyTree:
    """Return the numbers of the kinds of agent and drive that there are."""
    return drives.with_numbers(agents.default_hyper(config.agent), config.drive)


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return ``config.population`` agents of the kind ``config.agent`` in ``env``."""
    base = onpolicy.build(env, config)

    def init(key: Key, hyper: PyTree) -> State:
        return State(**base.fields(key, hyper))

    return parts.whole(base, default_hyper(config), init, chain(base.collect, base.learn))


METHOD = Recipe(build, Config, default_hyper, agents=onpolicy.AGENTS)
