"""Environments of Brax: its Hopper, and gymnax's Pendulum for trainers that know no other."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from brax import envs
from brax.envs import hopper
from brax.envs.base import Env, State
from gymnax.environments.classic_control import pendulum

from benchmarks.trainers import EPISODE, Cannot

HOPPER_EPISODE = 1_000
HOPPER_SIZES = 11, 3  # of observation and action; Brax would play an uncompiled reset to find them
HOPPER = "positional_hopper"  # the trainers that make it by name pass no backend
envs.register_environment(HOPPER, partial(hopper.Hopper, backend="positional"))


class Pendulum(Env):
    """gymnax's Pendulum with actions in [-1, 1]; only the wrapper that counts steps ends an episode."""

    def __init__(self) -> None:
        self._task = pendulum.Pendulum()
        self._params = self._task.default_params

    def reset(self, rng: Any) -> State:
        """Return the State of a new episode."""
        obs, state = self._task.reset_env(rng, self._params)
        return State(state, obs, jnp.float32(0), jnp.float32(0))

    def step(self, state: State, action: Any) -> State:
        """Return the State after a step."""
        obs, moved, reward, *_ = self._task.step_env(
            jax.random.key(0), state.pipeline_state, 2 * action, self._params
        )
        return state.replace(pipeline_state=moved, obs=obs, reward=jnp.float32(reward))

    @property
    def observation_size(self) -> int:
        """Components of an observation."""
        return 3

    @property
    def action_size(self) -> int:
        """Components of an action."""
        return 1

    @property
    def backend(self) -> str:
        """Name of the physics, which is none of Brax's."""
        return "gymnax"


def task(name: str) -> tuple[Env, int]:
    """Return a task of ``Work`` and its time limit.

    Raises:
        Cannot: it is neither of Brax nor Pendulum.
    """
    if name == "brax/hopper":
        return envs.get_environment(HOPPER), HOPPER_EPISODE
    if name == "Pendulum-v1":
        return Pendulum(), EPISODE
    raise Cannot("plays Brax's tasks, not those of gymnax")


class Still(Env):
    """A task in which nothing happens, with a task's sizes: evaluating in it costs nothing."""

    def __init__(self, observation_size: int, action_size: int) -> None:
        self._sizes = observation_size, action_size

    def reset(self, rng: Any) -> State:
        """Return the only State."""
        return State(None, jnp.zeros(self._sizes[0]), jnp.float32(0), jnp.float32(0))

    def step(self, state: State, action: Any) -> State:
        """Return the State as it was."""
        return state

    @property
    def observation_size(self) -> int:
        """Components of an observation."""
        return self._sizes[0]

    @property
    def action_size(self) -> int:
        """Components of an action."""
        return self._sizes[1]

    @property
    def backend(self) -> str:
        """Name of the physics; there is none."""
        return "none"
