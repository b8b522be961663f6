"""Acting for a population: one closure ``(memory, obs, key) -> Choice`` over all lanes ``[P, N]``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from popjax import tree
from popjax.core import Act, Choice, Key, Params, PyTree, Spec
from popjax.population.lanes import ActAll


def everyone(act: Act, params: Params, scale: Array | float) -> ActAll:
    """Return how every individual acts in its own lanes.

    act:    of one policy and one observation, such as ``Agent.act``.
    params: [P] policies.
    scale:  [], [P] or [P, N] multiplies the exploration.
    """

    def act_all(memory: PyTree, obs: Array, key: Key) -> Choice:
        shape = jax.tree.leaves(obs)[0].shape[:2]
        scales = jnp.broadcast_to(tree.align(scale, jnp.zeros(shape)), shape)
        over_lanes = jax.vmap(act, (None, 0, 0, 0, 0))
        return jax.vmap(over_lanes)(params, memory, obs, jax.random.split(key, shape), scales)

    return act_all


def randomly(act: ActAll, spec: Spec, random: Array) -> ActAll:
    """Return ``act`` with uniformly random actions where ``random`` bool [], [P] or [P, N]: warm-up."""

    def act_all(memory: PyTree, obs: Array, key: Key) -> Choice:
        key_act, key_random = jax.random.split(key)
        choice = act(memory, obs, key_act)
        shape = choice.log_prob.shape
        chance = jnp.broadcast_to(tree.align(random, choice.log_prob), shape)
        action = tree.where(chance, uniform(spec, key_random, shape), choice.action)
        return choice._replace(action=action)

    return act_all


def uniform(spec: Spec, key: Key, shape: tuple[int, ...]) -> Array:
    """Return uniformly random actions ``[*shape]`` (discrete) or ``[*shape, A]`` in [-1, 1]."""
    if spec.discrete:
        return jax.random.randint(key, shape, 0, spec.action_dim, jnp.int32)
    return jax.random.uniform(key, (*shape, spec.action_dim), minval=-1.0, maxval=1.0)
