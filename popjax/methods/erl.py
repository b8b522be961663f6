"""Evolutionary RL: a population of actors evolves beside a learner that trains on their experience and whose
actor joins them from time to time. Khadka & Tumer, NeurIPS 2018.

This is PDERL with n-point crossover and Gaussian mutation: ``popjax.methods.pderl`` describes a generation
and all differences. The constants of a task are those of ERL's own code, with which PDERL's paper compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from popjax.core import Env, Method
from popjax.methods import pderl, pderl_config
from popjax.methods.pderl_config import Hyper, family
from popjax.recipe import Preset, recorded


@dataclass(frozen=True)
class Config(pderl_config.Config):
    """``pderl_config.Config`` with ERL's operators."""

    crossover: Literal["distil", "n_point"] = "n_point"  # operator that makes children: PDERL's or ERL's
    mutation: Literal["proximal", "gaussian"] = "gaussian"  # operator that mutates slots: PDERL's or ERL's


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return ``pderl.build`` with ERL's operators unless ``config`` has others."""
    return pderl.build(env, config)


# Elite fraction, trials, sync period, env steps.
_TASKS = {
    "swimmer": (0.1, 1, 10, 2_000_000),
    "halfcheetah": (0.1, 1, 10, 2_000_000),
    "hopper": (0.3, 5, 1, 4_000_000),
    "walker2d": (0.2, 3, 10, 8_000_000),
    "ant": (0.3, 1, 1, 6_000_000),
    "reacher": (0.2, 5, 10, 2_000_000),
}


def preset(task: str) -> Preset | None:
    """Return ERL's constants for a task such as "brax/hopper" or "gym/Walker2d-v4"; None if it has none."""
    row = _TASKS.get(family(task))
    if row is None:
        return None
    elite_fraction, trials, sync_period, env_steps = row
    config = Config(elite_fraction=elite_fraction, trials=trials, sync_period=sync_period)
    return Preset(config, Hyper(), env_steps)


METHOD = pderl.METHOD._replace(build=build, config=Config, preset=preset)
