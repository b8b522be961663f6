"""Distance of a step of ours from the library's own, for the suites whose libraries are written in JAX.

Used by the tests and by ``benchmarks/envs.py``.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import replace
from typing import NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from popjax import envs, rollout
from popjax.core import Env
from popjax.envs import dynamics
from popjax.envs.episodic import EpisodeState, episodic

LANES, STEPS = 16, 16
LIMIT = 12  # environment steps of an episode of gymnax, so that some end by it


class Errors(NamedTuple):
    """Each [states]: largest over the observation, of the reward, and whether the flags are the same.

    Errors are relative to the scale of what they are errors of: its root mean square over the states.
    """

    obs: np.ndarray
    reward: np.ndarray
    same_flag: np.ndarray


def relative(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.abs(ours - theirs) / np.maximum(np.sqrt(np.mean(theirs**2, axis=0)), 0.1)


def followed(env, step, play, count):
    """Errors ([states] of observations, [states] of rewards) of the last of ``count`` steps by ourselves from
    each state of ``play``, which meet the time limit with the last but one.

    ``play`` goes round: of its last states, and of those whose episode ends, the errors mean nothing.
    """
    state = EpisodeState(play.state, jnp.full(len(play.reward), env.spec.episode_length - count + 1))
    for t in range(count):
        state, timestep = step(state, np.roll(play.action, -t, axis=0))
        assert timestep.truncated.all() == (t >= count - 2)
    obs = relative(timestep.next_obs, np.roll(play.obs, 1 - count, axis=0)).max(axis=1)
    return obs, relative(timestep.reward, np.roll(play.reward, 1 - count))


def gymnax_original(env, task):
    """The library's functions as an ``Env``; its state is ours."""
    raw, params = gymnax.make(task)
    seen = raw.observation_space(params)
    params = params.replace(max_steps_in_episode=env.spec.episode_length)
    space = raw.action_space(params)

    def native(action):
        if isinstance(space, spaces.Discrete):
            return action
        return space.low + (space.high - space.low) * (action + 1) / 2

    def view(obs):
        return jnp.eye(seen.n)[obs] if isinstance(seen, spaces.Discrete) else obs

    def reset(key):
        key, key_reset = jax.random.split(key)
        obs, state = raw.reset_env(key_reset, params)
        return (key, state), view(obs)

    def step(state, action):
        key, key_step = jax.random.split(state[0])
        obs, state, reward, terminated, _ = raw.step_env(key_step, state[1], native(action), params)
        return (key, state), view(obs), reward, terminated

    counted = episodic(env.spec._replace(obs_dtype=jnp.float32), reset, step)

    def limited(state, action):  # the end of time as the library tells it
        state, timestep = counted.step(state, action)
        return state, replace(timestep, truncated=raw.is_truncated(state.inner[1], params))

    return counted._replace(step=limited), lambda state: state


def brax_original(env, task):
    """The library's functions as an ``Env``; its state is ours."""
    import brax.envs

    # Importing our adapter has mended what keeps the library's swimmer from compiling on this JAX.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backend = "generalized" if task == "swimmer" else "mjx"
        raw = brax.envs.get_environment(task, backend=backend)

    @dynamics.tracing()  # without it the library's own step of a deep body takes a thousand times as long
    def reset(key):
        state = raw.reset(key)
        return state, state.obs

    @dynamics.tracing()
    def step(state, action):
        state = raw.step(state, action)
        return state, state.obs, state.reward, state.done > 0

    return episodic(env.spec, reset, step), lambda state: state


def playground_original(env, task):
    """The library's functions as an ``Env``, and from its state, with the whole ``mjx.Data``, to ours."""
    from popjax.envs.playground import _carried

    with contextlib.redirect_stdout(io.StringIO()):
        from mujoco_playground import registry
    raw = registry.load(task, config_overrides={"impl": "jax"})

    @dynamics.tracing()
    def reset(key):
        state = raw.reset(jax.random.key_data(key))
        return state, state.obs

    @dynamics.tracing()
    def step(state, action):
        state = raw.step(state, action)
        return state, state.obs, state.reward, state.done > 0

    return episodic(env.spec, reset, step), _carried


ORIGINALS = {"gymnax": gymnax_original, "brax": brax_original, "playground": playground_original}


def random_action(spec, key):
    if spec.discrete:
        return jax.random.randint(key, (), 0, spec.action_dim)
    return jax.random.uniform(key, (spec.action_dim,), minval=-1)


def random_play(env: Env, key, length=STEPS):
    """(first obs, (states [T], actions [T], Timestep [T])) of random play with automatic resets."""

    def one(carry, key):
        action = random_action(env.spec, key)
        after, timestep = resetting.step(carry, action)
        return after, (carry[1], action, timestep)

    resetting = rollout.autoreset(env)
    carry, obs = resetting.reset(key)
    return obs, jax.lax.scan(one, carry, jax.random.split(key, length))[1]


def compared(suite, task, **options):
    """Ours, made with ``options``, and the library's (first observations [lanes, *obs], Timestep [states]) in
    random play of the library: our reset from the same keys, our step from the same states."""
    limit = {"max_steps_in_episode": LIMIT} if suite == "gymnax" else {}
    env = envs.make(f"{suite}/{task}", **limit, **options)
    original, ours = ORIGINALS[suite](env, task)

    def play(key):
        their_first, (states, actions, theirs) = random_play(original, key)
        _, first = env.reset(jax.random.split(key)[1])  # as `autoreset` draws the first episode
        _, timestep = jax.vmap(env.step)(EpisodeState(jax.vmap(ours)(states.inner), states.steps), actions)
        return (first, timestep), (their_first, theirs)

    pairs = jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(0), LANES))
    return [(first, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)) for first, steps in pairs]


def truth(suite, task, **options):
    """Our step from the states of the library's random play, compared with the library's."""
    (_, ours), (_, theirs) = compared(suite, task, **options)
    return errors(ours, theirs)


def errors(ours, theirs):
    obs = relative(ours.next_obs, theirs.next_obs).reshape(len(theirs.reward), -1)
    same = (ours.terminated == theirs.terminated) & (ours.truncated == theirs.truncated)
    return Errors(obs.max(axis=1), relative(ours.reward, theirs.reward), np.asarray(same))


def assert_equals_the_library(suite, task):
    """Same first observations, observations, rewards and flags, of the declared shape and finite."""
    (first, ours), (their_first, theirs) = compared(suite, task)
    found, spec = errors(ours, theirs), envs.make(f"{suite}/{task}").spec
    np.testing.assert_allclose(first, their_first, rtol=1e-5, atol=1e-5)
    assert len(found.same_flag) >= 200
    assert found.same_flag.all()
    for error in (found.obs, found.reward):
        assert np.median(error) <= 1e-5
        assert np.quantile(error, 0.99) <= 1e-3
    for obs in (first, ours.next_obs):
        assert obs.shape[1:] == spec.obs_shape
        assert obs.dtype == spec.obs_dtype
        assert jnp.isfinite(obs).all()


def assert_same_distribution(ours, theirs):
    """Mean and variance of every component of observations [count, D], equally many of both.

    Six standard errors; that of a variance follows from the fourth moment, as forces have long tails.
    """
    count = len(theirs)
    ours, mean = np.asarray(ours, np.float64), theirs.mean(axis=0)
    square = (theirs - mean) ** 2
    error = 6 * np.sqrt(2 / count)
    rounding = 1e-5 * np.maximum(1.0, np.abs(mean))
    assert (np.abs(ours.mean(axis=0) - mean) <= error * theirs.std(axis=0) + rounding).all()
    variance = ((ours - mean) ** 2).mean(axis=0)
    # An initial perturbation of 0.005 has a variance of 1e-5: no absolute tolerance but that of rounding.
    assert (np.abs(variance - square.mean(axis=0)) <= error * square.std(axis=0) + rounding**2).all()
