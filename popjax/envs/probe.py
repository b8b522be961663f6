"""Tiny environments whose values and best actions are known: each tests one ability of a learner.

| task | an episode | value under the best policy |
|---|---|---|
| constant | one step, reward 1 | 1 |
| observation | one step; obs is -1 or 1, and so is the reward | obs |
| delay | two steps, obs 0 then 1; reward 0, then 1 | gamma, then 1 |
| action | one step; reward ``1 - (a - 0.5)^2`` | 1, at action 0.5 |
| context | one step; obs is -1 or 1; reward ``1 - (a - obs / 2)^2`` | 1, at action obs / 2 |
| endless | 5 steps of reward 1, then the time limit; obs is 1 | 1 / (1 - gamma): a time limit is not an end |
| corridor | walks from 0 by the action, ends beyond 1; reward is the step; at most 50 steps | 1 to 2 |

``action``, ``context`` and ``corridor`` have a discrete twin named ``...-discrete``: two actions that stand
for -0.5 and 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from popjax.core import Env, Key, Spec
from popjax.envs.episodic import episodic


class _Probe(NamedTuple):
    """A probe's time limit, first observation and step; its state is the observation."""

    length: int
    first: Callable[[Key], Array]
    step: Callable[[Array, Array], tuple[Array, Any, Any]]  # (obs, action) -> obs, reward, terminated


def _sign(key: Key) -> Array:
    return jnp.where(jax.random.bernoulli(key), jnp.float32(1), jnp.float32(-1))


def _at(value: float) -> Callable[[Key], Array]:
    return lambda key: jnp.float32(value)


_PROBES = {
    "constant": _Probe(1, _at(0), lambda obs, a: (obs, 1.0, True)),
    "observation": _Probe(1, _sign, lambda obs, a: (obs, obs, True)),
    "delay": _Probe(2, _at(0), lambda obs, a: (jnp.ones_like(obs), obs, obs > 0)),
    "action": _Probe(1, _at(0), lambda obs, a: (obs, 1 - (a - 0.5) ** 2, True)),
    "context": _Probe(1, _sign, lambda obs, a: (obs, 1 - (a - obs / 2) ** 2, True)),
    "endless": _Probe(5, _at(1), lambda obs, a: (obs, 1.0, False)),
    "corridor": _Probe(50, _at(0), lambda obs, a: (obs + a, a, obs + a > 1)),
}
_WITH_DISCRETE_TWIN = ("action", "context", "corridor")
_SUFFIX = "-discrete"


def tasks() -> Sequence[str]:
    """Return all probes."""
    return (*_PROBES, *(name + _SUFFIX for name in _WITH_DISCRETE_TWIN))


def make(task: str, **options: Any) -> Env:
    """Return the probe ``task``; probes have no options."""
    if options:
        raise ValueError(f"probe/{task} has no option {next(iter(options))!r}; probes have none")
    discrete = task.endswith(_SUFFIX)
    probe = _PROBES[task.removesuffix(_SUFFIX)]
    spec = Spec(
        name=f"probe/{task}",
        obs_shape=(1,),
        action_dim=2 if discrete else 1,
        episode_length=probe.length,
        discrete=discrete,
    )
    return episodic(spec, partial(_reset, probe), partial(_step, probe, discrete))


def _reset(probe: _Probe, key: Key) -> tuple[Array, Array]:
    obs = probe.first(key)
    return obs, obs[None]


def _step(probe: _Probe, discrete: bool, obs: Array, action: Array) -> tuple[Array, Array, Any, Any]:
    action = jnp.where(action > 0, 0.5, -0.5) if discrete else action[0]
    obs, reward, terminated = probe.step(obs, action)
    return obs, obs[None], reward, terminated
