"""A method and environments of a user's own, as the tests name them on the command line."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from popjax import envs
from popjax.agents import sac
from popjax.core import Env, Spec, Timestep
from popjax.methods import independent
from popjax.recipe import Recipe, recorded
from tests.host import tiny

SECOND = Recipe(tiny.build, tiny.Config, lambda config: tiny.Hyper(rate=0.5))
NOT_A_RECIPE = 3
NO_NUMBERS = Recipe(tiny.build, tiny.Config, lambda config: None)
NO_CONFIG = Recipe(tiny.build, lambda **agents: agents, lambda config: tiny.Hyper())
CONFIG_AS_A_VALUE = Recipe(tiny.build, tiny.Config(), lambda config: tiny.Hyper())
NUMBERS_OF_NOTHING = Recipe(tiny.build, tiny.Config, lambda: tiny.Hyper())
AGENT_WITHOUT_A_FIELD = SECOND._replace(agents={"agent": {"sac": sac.Config()}})
AGENT_NOT_TAKEN = AGENT_WITHOUT_A_FIELD._replace(config=lambda: independent.Config())
NO_METHOD = Recipe(lambda env, config: 3, tiny.Config, lambda config: tiny.Hyper())
NO_METHOD_RECORDED = NO_METHOD._replace(build=recorded(NO_METHOD.build))


def make(size: int = 1, reward_axes: int = 0) -> Env:
    """Walk on a line of ``size`` dimensions for 20 steps."""

    def step(place, action):
        place = place + 0.1 * action[0]
        reward = jnp.sum(place).reshape((1,) * reward_axes)
        return place, Timestep(place, place, reward, jnp.bool_(False), jnp.bool_(False))

    def reset(key):
        place = jax.random.normal(key, (size,))
        return place, place

    return Env(reset, step, Spec("own/line", (size,), 1, 20))


def pendulum(max_torque: float = 2.0):
    """Make gymnax's pendulum with another torque."""
    from gymnax.environments.classic_control.pendulum import Pendulum

    game = Pendulum()
    return game, game.default_params.replace(max_torque=max_torque)


def cartpole():
    """Make gymnax's pole with its own parameters."""
    from gymnax.environments.classic_control.cartpole import CartPole

    return CartPole()


def nothing():
    """Make nothing."""
    return envs


LINE = make()


def heavy_pendulum(mass: float = 2.0) -> Env:
    """Make a task of the suites with other options."""
    return envs.make("gymnax/Pendulum-v1", m=mass)
