"""Playing environments: whole episodes, and fixed-length collection with automatic resets.

Both are written for one lane and lifted by ``vmap``. What a lane computes does not depend on its
neighbours, but the work is shared: a loop stops as soon as every lane of every ``vmap`` is done, and a
reset is computed only in a step in which some lane needs one, unless the branch would cost more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import tree
from popjax.contract import checked
from popjax.core import Env, Key, PyTree, Timestep

CHEAP = 128
"""Largest reset, in operations, that accelerators compute in every step. A reset with a callback, whose
effects would be seen, or a loop of unknown length counts as larger."""

Policy: TypeAlias = Callable[[PyTree, Array, Key], tuple[PyTree, Array]]
"""(carry, obs, key) -> (carry, action). The carry is noise or memory; ``()`` if there is none."""
Record: TypeAlias = Callable[[Array, Array, Timestep], PyTree]
"""(obs, action, timestep) -> what is kept of a step."""


@struct.dataclass
class Episode:
    """One episode of a lane.

    steps:  [T, ...]   rows that ``record`` kept; T is the time limit.
    valid:  bool [T]   which rows were played; these come first.
    total:  float32 [] undiscounted return.
    length: int32 []   environment steps played.
    carry:  the policy's carry after the last step of the episode.
    obs:    [...]      the observation after the last step.
    """

    steps: PyTree
    valid: Array
    total: Array
    length: Array
    carry: PyTree
    obs: Array


class _Playing(NamedTuple):
    env: PyTree
    obs: Array
    carry: PyTree
    total: Array
    length: Array
    done: Array


def _blank(obs: Array) -> Timestep:
    """Return an empty Timestep, to find the shapes and dtypes that ``record`` returns."""
    return Timestep(obs, obs, jnp.float32(0), jnp.bool_(False), jnp.bool_(False))


def _keep_all(obs: Array, action: Array, timestep: Timestep) -> PyTree:
    return obs, action, timestep


def _limited(timestep: Timestep, steps: Array, limit: int) -> Timestep:
    """Return ``timestep``, truncated at the time limit even if the environment does not truncate it."""
    return replace(timestep, truncated=timestep.truncated | (steps >= limit))


def episode(
    env: Env, policy: Policy, carry: PyTree, key: Key, *, record: Record = _keep_all, block: int = 25
) -> Episode:
    """Play one episode from a fresh reset to termination or time limit.

    Steps are scanned in blocks of ``block``; after each block the loop ends if every lane has ended, so a
    population of 40-step episodes does not pay for 1000 steps. ``carry`` advances on played steps only.
    """
    limit = env.spec.episode_length
    block = min(block, limit)
    blocks = -(-limit // block)
    key_reset, key_act = jax.random.split(key)

    def one(playing: _Playing, t: Array) -> tuple[_Playing, tuple[PyTree, Array]]:
        carry, action = policy(playing.carry, playing.obs, jax.random.fold_in(key_act, t))
        env_state, timestep = env.step(playing.env, action)
        timestep = _limited(timestep, playing.length + 1, limit)
        alive = ~playing.done
        after = _Playing(
            env=env_state,
            obs=timestep.obs,
            carry=carry,
            total=playing.total + timestep.reward,
            length=playing.length + 1,
            done=timestep.done,
        )
        # A finished lane keeps its state, so that physics after the end has no effect.
        return tree.where(alive, after, playing), (record(playing.obs, action, timestep), alive)

    def advance(loop: tuple[Array, _Playing, PyTree, Array]) -> tuple[Array, _Playing, PyTree, Array]:
        start, playing, steps, valid = loop
        playing, (new_steps, alive) = jax.lax.scan(one, playing, start + jnp.arange(block))

        def write(buffer: Array, rows: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(buffer, rows, start, 0)

        return start + block, playing, jax.tree.map(write, steps, new_steps), write(valid, alive)

    def unfinished(loop: tuple[Array, _Playing, PyTree, Array]) -> Array:
        start, playing, _, _ = loop
        return (start < limit) & tree.any_lane(~playing.done)

    env_state, obs = env.reset(key_reset)
    playing = _Playing(env_state, obs, carry, jnp.float32(0), jnp.int32(0), jnp.bool_(False))
    kept = jax.eval_shape(lambda: record(obs, policy(carry, obs, key_act)[1], _blank(obs)))
    empty = jax.tree.map(lambda s: jnp.zeros((blocks * block, *s.shape), s.dtype), kept)
    loop = (jnp.int32(0), playing, empty, jnp.zeros(blocks * block, jnp.bool_))
    _, playing, steps, valid = jax.lax.while_loop(unfinished, advance, loop)
    steps, valid = jax.tree.map(lambda x: x[:limit], (steps, valid))
    return Episode(steps, valid, playing.total, playing.length, playing.carry, playing.obs)


def autoreset(env: Env) -> Env:
    """Return the same environment, truncated at the time limit of its Spec and reset as soon as an episode
    ends.

    ``Timestep.obs`` is then the first observation of the next episode and ``Timestep.next_obs`` still the
    true successor. Under ``vmap`` the reset is a branch that is taken only when some lane has ended, not a
    computation that every step pays for; on an accelerator, only if it has more than ``CHEAP`` operations.

    Raises:
        ValueError: during tracing: a value that ``env`` returns does not fit its Spec.
    """
    env = limited(env)

    def step(carry: PyTree, action: Array) -> tuple[PyTree, Timestep]:
        return renewed(env, *env.step(carry, action))

    return env._replace(step=step)


def limited(env: Env) -> Env:
    """Return the same environment, truncated at the time limit of its Spec. This is ``autoreset`` without the
    reset, for a program that steps in several places but resets in one, by ``renewed``."""
    env = checked(env)

    def reset(key: Key) -> tuple[PyTree, Array]:
        key, key_reset = jax.random.split(key)
        state, obs = env.reset(key_reset)
        return (key, state, jnp.int32(0)), obs

    def step(carry: PyTree, action: Array) -> tuple[PyTree, Timestep]:
        key, state, steps = carry
        state, timestep = env.step(state, action)
        steps = steps + 1
        return (key, state, steps), _limited(timestep, steps, env.spec.episode_length)

    return env._replace(reset=reset, step=step)


def renewed(env: Env, carry: PyTree, timestep: Timestep) -> tuple[PyTree, Timestep]:
    """Reset lanes in which a step of a ``limited`` environment has ended the episode.

    A branch makes an accelerator wait for the host, and copy all lanes even if none is reset. A cheap reset
    is therefore computed in every step there.
    """
    going_on, reset = (carry, timestep.obs), jax.jit(env.reset)

    def chosen() -> tuple[PyTree, Array]:
        return tree.where(timestep.done, reset(carry[0]), going_on)

    def branch() -> tuple[PyTree, Array]:
        return jax.lax.cond(tree.any_lane(timestep.done), chosen, lambda: going_on)

    key = jax.ShapeDtypeStruct((), carry[0].dtype)
    if _operations(reset.trace(key).jaxpr) > CHEAP:
        carry, obs = branch()
    else:
        carry, obs = jax.lax.platform_dependent(cpu=branch, default=chosen)
    return carry, replace(timestep, obs=obs)


def _operations(program: Any) -> float:
    """Return the number of operations of a program, infinite with a callback or a loop of unknown length."""
    count = 0.0
    for each in program.eqns:
        name = each.primitive.name
        if name == "while" or "callback" in name:
            return math.inf
        parts = jax.tree.leaves(each.params, is_leaf=lambda x: hasattr(x, "eqns"))
        within = sum(_operations(part) for part in parts if hasattr(part, "eqns"))
        count += 1 + within * (each.params["length"] if name == "scan" else 1)
    return count


def truncated_next(env: Env, state: PyTree, which: Array) -> PyTree:
    """Return states [...] of an ``autoreset`` or ``limited`` environment, changed so that the next step
    truncates the episode where ``which`` bool [...] holds."""
    key, inner, steps = state
    return key, inner, jnp.where(which, env.spec.episode_length - 1, steps)


@struct.dataclass
class Lane:
    """A lane between two calls of ``collect``: environment state, observation to act on, policy carry."""

    env: PyTree
    obs: Array
    carry: PyTree


def start(env: Env, carry: PyTree, key: Key) -> Lane:
    """Return a lane at the beginning of an episode of an ``autoreset`` environment."""
    state, obs = env.reset(key)
    return Lane(state, obs, carry)


def collect(
    env: Env,
    policy: Policy,
    lane: Lane,
    key: Key,
    length: int,
    *,
    record: Record = _keep_all,
) -> tuple[Lane, Any]:
    """Play ``length`` steps of an ``autoreset`` environment, across episode ends; the policy's carry goes on.

    Returns the lane and the rows that ``record`` kept, [T, ...].
    """

    def one(lane: Lane, key: Key) -> tuple[Lane, PyTree]:
        carry, action = policy(lane.carry, lane.obs, key)
        state, timestep = env.step(lane.env, action)
        return Lane(state, timestep.obs, carry), record(lane.obs, action, timestep)

    return jax.lax.scan(one, lane, jax.random.split(key, length))
