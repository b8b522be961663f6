"""Agents of one kind side by side: the baseline of every population method.

Each agent acts in its own environment lanes and learns by itself, from its own replay or from one replay
that all fill and all sample. With one agent this is the plain single-agent algorithm. A ``drive`` may add a
reward for novelty or for skills to the task's.

An iteration: collect -> learn, both of ``population.offpolicy``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from popjax.agents import dqn
from popjax.core import Env, Method
from popjax.population import drives, offpolicy, schedules
from popjax.population.offpolicy import Config, Metrics, State
from popjax.population.schedules import FOLLOWED, Scheduled
from popjax.recipe import Preset, Recipe, recorded

__all__ = ["METHOD", "Config", "Hyper", "Metrics", "State", "build", "default_hyper"]

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
    return schedules.plain(offpolicy, env, config, schedule)


def preset(task: str) -> Preset | None:
    """Return the constants of DQN for a game such as "atari/pong" (Mnih et al., 2015): one gradient step on
    32 transitions for every four environment steps, after the first 50,000, and rewards clipped to [-1, 1];
    those of DrQ for a task from pixels; None for other tasks."""
    if from_pixels := offpolicy.from_pixels(lambda agent: Config(agent=agent), default_hyper, task):
        return from_pixels
    if not task.startswith("atari/"):
        return None
    config = Config(agent=dqn.Config(eval_exploration=0.001), steps=4, batch=32, warmup=50_000)
    return Preset(config, default_hyper(config), 10_000_000, offpolicy.CLIPPED)


METHOD = Recipe(
    build,
    Config,
    default_hyper,
    agents=offpolicy.AGENTS,
    runs={"schedule": FOLLOWED},
    preset=preset,
    remarks=schedules.remarks,
)
