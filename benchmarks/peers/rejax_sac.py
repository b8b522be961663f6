"""rejax's SAC: one environment step and one gradient step per iteration, as its ``train`` runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from gymnax.environments.classic_control.pendulum import Pendulum
from rejax import SAC


class FiveValuePendulum(Pendulum):
    """Pendulum with the step of gymnax 0.0: rejax 0.1 unpacks five values, gymnax 1.0 returns six."""

    def step(self, key: Any, state: Any, action: Any, params: Any = None) -> Any:
        """(obs, state, reward, done, info)."""
        obs, state, reward, terminated, truncated, info = super().step(key, state, action, params)
        return obs, state, reward, terminated | truncated, info


def build(
    population: int, *, batch: int, hidden: tuple[int, ...], capacity: int
) -> tuple[Callable, Callable]:
    """(init, iterate): ``init(key)`` makes ``population`` agents, one iteration steps and updates each once.

    A single agent is not vmapped, which is the faster of the two ways for rejax.
    """
    algorithm = SAC.create(
        env=FiveValuePendulum(),
        hidden_layer_sizes=hidden,
        buffer_size=capacity,
        fill_buffer=batch,
        batch_size=batch,
        num_envs=1,
        num_epochs=1,
        skip_initial_evaluation=True,
    )
    if population == 1:
        return algorithm.init_state, algorithm.train_iteration
    return (
        lambda key: jax.vmap(algorithm.init_state)(jax.random.split(key, population)),
        jax.vmap(algorithm.train_iteration),
    )
