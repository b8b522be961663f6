"""From a library's bare dynamics to an ``Env``: time limit, action bounds, float32 throughout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from popjax.arguments import INT32_MAX
from popjax.core import Env, Key, PyTree, Spec, Timestep


@struct.dataclass
class EpisodeState:
    """inner: the library's own state; steps: int32 [] environment steps since the reset."""

    inner: PyTree
    steps: Array


def episodic(
    spec: Spec,
    reset: Callable[[Key], tuple[PyTree, Array]],
    step: Callable[[PyTree, Array], tuple[PyTree, Array, Array, Array]],
    truncates: Callable[[PyTree], Array] | None = None,
) -> Env:
    """Make an ``Env`` of two functions, which truncates episodes at the time limit of ``spec``.

    reset:     key -> (state, obs)
    step:      (state, action) -> (state, obs, reward, terminated), the state in the structure and shapes of
               ``reset``
    truncates: state after a step -> whether the episode is truncated there, too; None: only at the time limit

    JAX traces both only once in a process, however many programs contain them: tracing a physics step takes
    seconds.
    """

    if not 1 <= spec.episode_length <= INT32_MAX:
        raise ValueError(
            f"{spec.name}: episode_length must be from 1 to {INT32_MAX:,}, got {spec.episode_length}"
        )

    def start(key: Key) -> tuple[EpisodeState, Array]:
        inner, obs = reset(key)
        # Libraries reset with Python numbers, too, whose weak types no scan would keep.
        inner = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), inner)
        return EpisodeState(inner, jnp.int32(0)), obs.astype(spec.obs_dtype)

    def advance(state: EpisodeState, action: Array) -> tuple[EpisodeState, Timestep]:
        inner, obs, reward, terminated = step(state.inner, action)
        inner = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.result_type(old)), inner, state.inner)
        obs = obs.astype(spec.obs_dtype)
        steps = state.steps + 1
        truncated = steps >= spec.episode_length
        if truncates is not None:
            truncated |= jnp.asarray(truncates(inner), jnp.bool_).reshape(())
        timestep = Timestep(
            obs=obs,
            next_obs=obs,
            reward=jnp.asarray(reward, jnp.float32).reshape(()),
            terminated=jnp.asarray(terminated, jnp.bool_).reshape(()),
            truncated=truncated,
            cut=jnp.bool_(False),
        )
        return EpisodeState(inner, steps), timestep

    return Env(reset=jax.jit(start), step=jax.jit(advance), spec=spec)


def rescale(low: Any, high: Any) -> Callable[[Array], Array]:
    """Return the affine map from [-1, 1] to the box [low, high].

    Raises:
        ValueError: a bound, or the sum or difference of two, is no finite float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # overflow and inf - inf are refused below
        low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        centre, half = (high + low) / 2, (high - low) / 2
    if not (np.isfinite(centre).all() and np.isfinite(half).all()):
        raise ValueError(
            "actions need finite bounds, less than 3.4e38 apart, to be rescaled from [-1, 1],"
            f" got {low} to {high}"
        )
    return lambda action: centre + half * action
