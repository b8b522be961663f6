"""Remarks on hyperparameters that count steps and do not follow the length of a run."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from popjax import agents
from popjax.agents import a2c, dqn, ppo

ANNEALED = {a2c.Config: ("anneal_updates", "gradient steps"), ppo.Config: ("anneal_rollouts", "rollouts")}
"""The hyperparameter that says when an agent's rate is 0, and its unit, of which an iteration has one."""
EARLY = 0.9
"""Share of a run; a rate that is 0 before is worth a remark, one that is 0 a little before the end is not."""


def of_agents(config: Any, hyper: Any, env_steps: int, driven: Collection[str] = ()) -> list[str]:
    """Return remarks on the agents of ``offpolicy`` or ``onpolicy``, a line each, but none on the
    hyperparameters ``driven`` by something else than ``hyper``."""
    if isinstance(config.agent, dqn.Config):
        unknown = {"exploration_start", "exploration_steps"} & {*driven}
        return [] if unknown else exploration(hyper, env_steps, config.population)
    name, unit = ANNEALED.get(type(config.agent), ("", ""))
    if not name or name in driven:
        return []
    iteration = config.population * config.lanes * (config.steps or agents.default_rollout(config.agent))
    lengths = np.atleast_1d(np.asarray(getattr(hyper, name), np.float64))
    first = np.maximum(lengths[lengths > 0], 1).min(initial=math.inf)
    if first * iteration >= EARLY * env_steps:
        return []
    option, whole = f"--hyper.{name.replace('_', '-')}", math.ceil(env_steps / iteration)
    return [
        f"the rate is 0 after {first:,.0f} {unit}, which take {first * iteration:,.0f} of {env_steps:,}"
        f" environment steps, and nothing is learned from then on; set {option} {whole} to reach 0 at the"
        " end, or 0 for a constant rate"
    ]


def exploration(
    hyper: Any, env_steps: int, population: int = 1, field: str = "", start: float | None = None
) -> list[str]:
    """Return a line if the exploration of DQN is still falling at the end of a run.

    hyper:      of DQN, the method's ``field`` of that name, if it has one.
    env_steps:  of the run.
    population: agents that share these steps, if ``exploration_steps`` counts those of each agent.
    start:      largest exploration at the beginning; None: that of ``hyper``.
    """
    own = env_steps / population
    hyper = hyper if start is None else replace(hyper, exploration_start=start)
    left = np.asarray(dqn.annealed(hyper, jnp.float32(own)), np.float32)
    final, length = (np.asarray(x, np.float32) for x in (hyper.exploration, hyper.exploration_steps))
    left, final, length = np.broadcast_arrays(left, final, length)  # some may be those of each agent
    late = (length > np.float32(own)) & (left > final)
    if not late.any():
        return []
    option = ".".join(("--hyper", *([field] if field else []), "exploration-steps"))
    whose = " of each agent" if population > 1 else ""
    return [
        f"exploration falls over {np.max(length, where=late, initial=0):,.0f} environment steps{whose}, but"
        f" here there are {own:,.0f}: at the end actions are random with a probability of about"
        f" {np.max(left, where=late, initial=0):.2g}; lower {option} or raise --env-steps"
    ]
