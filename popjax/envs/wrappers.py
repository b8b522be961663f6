"""Options that every task takes: repeated actions, stacked frames, scaled and clipped rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from popjax import tree
from popjax.core import Env, Key, PyTree, Timestep
from popjax.envs.options import check

OPTIONS: dict[str, Any] = {
    "action_repeat": int,
    "frame_stack": int,
    "reward_scale": float,
    "reward_clip": float,
}


def seen(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``options`` of a task without those that change only the rewards that are learned from."""
    return {name: value for name, value in options.items() if name not in ("reward_scale", "reward_clip")}


def wrapped(env: Env, options: Mapping[str, Any]) -> Env:
    """Return ``env`` changed by ``options``; an environment step is then one choice of an action.

    action_repeat: environment steps that an action is repeated for, their rewards summed.
    frame_stack:   latest observations that are joined along the last axis, oldest first; an episode begins
                   with its first one repeated.
    reward_scale:  factor of every reward that is learned from.
    reward_clip:   rewards, once scaled, are clipped to [-reward_clip, reward_clip]. Evaluations use the
                   task's own rewards.

    Raises:
        ValueError: an option is of the wrong kind or out of range.
    """
    given = check(env.spec.name, options, OPTIONS)
    for name, value in given.items():
        if name == "reward_scale":
            if abs(value) == jnp.inf:
                raise ValueError(f"{env.spec.name}: option {name} must be finite, got {value}")
        elif not value > 0:
            raise ValueError(f"{env.spec.name}: option {name} must be above 0, got {value}")
    if given.get("action_repeat", 1) > 1:
        env = repeated(_limited(env), given["action_repeat"])
    if given.get("frame_stack", 1) > 1:
        env = stacked(env, given["frame_stack"])
    if "reward_scale" in given or "reward_clip" in given:
        env = rewarded(env, given.get("reward_scale", 1.0), given.get("reward_clip", jnp.inf))
    return env


def _limited(env: Env) -> Env:
    """Return ``env`` truncated at the time limit of its Spec, even if its own step does not do so: the limit
    may come during the repetitions of an action."""

    def reset(key: Key) -> tuple[PyTree, Array]:
        state, obs = env.reset(key)
        return (state, jnp.int32(0)), obs

    def step(carry: tuple[PyTree, Array], action: Array) -> tuple[PyTree, Timestep]:
        state, timestep = env.step(carry[0], action)
        steps = carry[1] + 1
        truncated = timestep.truncated | (steps >= env.spec.episode_length)
        return (state, steps), replace(timestep, truncated=truncated)

    return env._replace(reset=reset, step=step, scored=env.scored and _limited(env.scored))


def repeated(env: Env, times: int) -> Env:
    """Return ``env`` with every action played ``times`` times, or until the episode ends or is cut.

    If observations are stacks, each then has more than one frame that the one before it lacks, so a replay
    stores stacks whole.
    """
    spec = env.spec

    def step(state: PyTree, action: Array) -> tuple[PyTree, Timestep]:
        def again(carry: tuple[PyTree, Timestep], _: None) -> tuple[tuple[PyTree, Timestep], None]:
            state, timestep = carry
            after, latest = env.step(state, action)
            summed = replace(latest, reward=timestep.reward + latest.reward)
            return tree.where(timestep.done | timestep.cut, carry, (after, summed)), None

        # Begin the loop without a first step outside it, so that the program has the physics step only once.
        nothing = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(env.step, state, action)[1]
        )
        return jax.lax.scan(again, (state, nothing), length=times)[0]

    return env._replace(
        step=step,
        scored=env.scored and repeated(env.scored, times),
        spec=spec._replace(
            episode_length=-(-spec.episode_length // times),
            dt=None if spec.dt is None else spec.dt * times,
            stack=1 if times > 1 else spec.stack,
        ),
    )


def stacked(env: Env, count: int) -> Env:
    """Return ``env`` with its latest ``count`` observations as one, joined along the last axis; after a cut,
    the next observation is repeated, as at the beginning of an episode."""
    spec = env.spec
    shape = (*spec.obs_shape[:-1], spec.obs_shape[-1] * count) if spec.obs_shape else (count,)

    def joined(frames: Array) -> Array:
        return jnp.moveaxis(frames, 0, -2 if spec.obs_shape else -1).reshape(shape)

    def reset(key: Key) -> tuple[PyTree, Array]:
        state, obs = env.reset(key)
        frames = tree.repeat(obs, count)
        return (state, frames), joined(frames)

    def step(carry: PyTree, action: Array) -> tuple[PyTree, Timestep]:
        state, frames = carry
        state, timestep = env.step(state, action)
        followed = jnp.concatenate([frames[1:], timestep.next_obs[None]])
        frames = tree.where(jnp.asarray(timestep.cut), tree.repeat(timestep.obs, count), followed)
        return (state, frames), replace(timestep, obs=joined(frames), next_obs=joined(followed))

    return env._replace(
        reset=reset,
        step=step,
        spec=spec._replace(obs_shape=shape, stack=count),
        scored=env.scored and stacked(env.scored, count),
    )


def rewarded(env: Env, scale: float, clip: float) -> Env:
    """Return ``env`` with rewards times ``scale``, clipped to [-clip, clip]; evaluations use the task's own
    rewards."""

    def step(state: PyTree, action: Array) -> tuple[PyTree, Timestep]:
        state, timestep = env.step(state, action)
        return state, replace(timestep, reward=jnp.clip(timestep.reward * scale, -clip, clip))

    spec = env.spec._replace(highest_return=None)
    return env._replace(step=step, spec=spec, scored=env.scored or env)
