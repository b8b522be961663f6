"""Environments of a user's own with gymnax's interface."""

from __future__ import annotations

import gymnasium
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces
from jax import Array


@struct.dataclass
class State(environment.EnvState):
    time: Array


@struct.dataclass
class Params(environment.EnvParams):
    max_steps_in_episode: int = 9


class Still(environment.Environment):
    """One picture for 9 steps."""

    def __init__(self, obs=None, seen=None, actions=None):
        self.obs = jnp.full((4, 4, 3), 255, jnp.uint8) if obs is None else obs
        self.seen = spaces.Box(0, 255, (4, 4, 3), jnp.uint8) if seen is None else seen
        self.actions = spaces.Discrete(2) if actions is None else actions

    @property
    def default_params(self):
        return Params()

    def step_env(self, key, state, action, params):
        return self.obs, State(state.time + 1), jnp.float32(1), self.is_terminated(state, params), {}

    def reset_env(self, key, params):
        return self.obs, State(jnp.int32(0))

    def is_terminated(self, state, params):
        return jnp.bool_(False)

    def action_space(self, params=None):
        return self.actions

    def observation_space(self, params):
        return self.seen


class Truncating(Still):
    def is_truncated(self, state, params):
        return state.time >= 5


class Counting(Still):
    """Shows its last action, from 1 to 3, which is the reward, too; 3 at first."""

    def __init__(self):
        space = gymnasium.spaces.Discrete(3, start=1)
        super().__init__(jnp.int32(3), space, space)

    def step_env(self, key, state, action, params):
        return action, State(state.time + 1), jnp.float32(action), jnp.bool_(False), {}


class Legacy(Still):
    """Its end includes the time limit, as before gymnax 1.0."""

    def is_terminal(self, state, params):
        return state.time >= params.max_steps_in_episode


def bytes_seen():
    return Still()


def bools_seen():
    return Still(jnp.ones((4, 4, 3), bool), spaces.Box(0, 1, (4, 4, 3), jnp.bool_))


def levels_seen():
    return Still(jnp.full((4, 4, 3), 3, jnp.uint8), spaces.Box(0, 3, (4, 4, 3), jnp.uint8))


def truncating():
    return Truncating()


def legacy():
    return Legacy()


def dict_observed():
    return Still({"a": jnp.zeros(3)}, spaces.Dict({"a": spaces.Box(0, 1, (3,))}))


def tuple_observed():
    return Still((jnp.zeros(3),), spaces.Tuple([spaces.Box(0, 1, (3,))]))


def dict_returned():
    return Still({"a": jnp.zeros(3)})


def dict_of_actions():
    return Still(actions=spaces.Dict({"a": spaces.Discrete(2)}))


def misshapen():
    return Still(seen=spaces.Box(0, 255, (5,), jnp.uint8))


def mistyped():
    return Still(seen=spaces.Box(0, 1, (4, 4, 3), jnp.bool_))


def counting():
    return Counting()
