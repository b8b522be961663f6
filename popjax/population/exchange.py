"""Handing policies over between individuals: PDERL's sync, CSPC's transfer and PBT's exploit are one gather
over P."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from popjax import tree
from popjax.core import Agent, OnPolicyAgent, Params, PyTree


def take_over(agent: Agent | OnPolicyAgent, states: PyTree, source: Array) -> PyTree:
    """Return agents [P] each of which acts by the policy of ``source`` int32 [P]; its own index changes
    nothing.

    Critics and moments stay the taker's, targets follow as ``agent.adopt`` defines.
    """
    own = jnp.arange(source.shape[0])
    return adopt(agent, states, tree.take(jax.vmap(agent.policy)(states), source), source != own)


def adopt(agent: Agent | OnPolicyAgent, states: PyTree, policies: Params, which: Array) -> PyTree:
    """Return agents [P] that act by ``policies`` [P] where ``which`` bool [P]."""
    return tree.where(which, jax.vmap(agent.adopt)(states, policies), states)


def replace_by(members: Any, source: Array) -> Any:
    """Return a population [P] in which slot i holds a copy of all that ``source[i]`` has: parameters,
    moments, memory."""
    return tree.take(members, source)


def insert(members: Any, slot: Array, newcomer: Any, when: Array | bool = True) -> Any:
    """Return a population [P] with a ``newcomer`` in ``slot`` int32 [], if ``when``."""
    count = jax.tree.leaves(members)[0].shape[0]
    return tree.put(members, jnp.where(when, slot, count), newcomer)


def transfers(source: Array) -> Array:
    """Return int32 [P, P]: 1 where the row's individual took over from the column's."""
    count = source.shape[0]
    taken = source[:, None] == jnp.arange(count)
    return (taken & ~jnp.eye(count, dtype=jnp.bool_)).astype(jnp.int32)


def parents(source: Array) -> Array:
    """Return int32 [P, 2]: the individual that each slot stems from, and -1 for a second parent."""
    return jnp.stack([source, jnp.full_like(source, -1)], 1)
