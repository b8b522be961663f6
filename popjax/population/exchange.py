"""Transfer of policies between individuals: a gather over P, as in PDERL's sync and PBT's exploit.

Agents of different kinds, as in CSPC, exchange the networks of their mean actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax import nets, tree
from popjax.core import Agent, Key, OnPolicyAgent, Params, PyTree, Spec, as_arrays
from popjax.evolution.ranking import comparable
from popjax.population import learning
from popjax.replay.ring import Ring


def take_over(agent: Agent | OnPolicyAgent, states: PyTree, source: Array) -> PyTree:
    """Return agents [P] that act by the policies of the individuals ``source`` int32 [P]; an agent with its
    own index is unchanged.

    Each agent keeps its critics and moments; targets follow as ``agent.adopt`` defines.
    """
    chex.assert_rank(source, 1)
    chex.assert_type(source, int)
    own = jnp.arange(source.shape[0])
    return adopt(agent, states, tree.take(jax.vmap(agent.policy)(states), source), source != own)


def adopt(agent: Agent | OnPolicyAgent, states: PyTree, policies: Params, which: Array) -> PyTree:
    """Return agents [P] that act by ``policies`` [P] where ``which`` bool [P]."""
    chex.assert_rank(which, 1)
    chex.assert_type(which, bool)
    return tree.where(which, jax.vmap(agent.adopt)(states, policies), states)


def copy_replays(replays: Ring, source: Array, due: Array | int) -> Ring:
    """Return replays [P] copied from the individuals ``source`` int32 [P] where ``due`` [] is 1; unchanged
    where it is 0.

    They are copied in place, part by part, so that the replays never need twice their memory.
    """
    chex.assert_rank([source, due], [1, 0])

    def copied(x: Array) -> Array:
        count = x.shape[1]
        length = -(-count // 64)
        whole = count // length

        def part(x: Array, start: Array | int, size: int) -> Array:
            own = jax.lax.dynamic_slice_in_dim(x, start, size, 1)
            return jax.lax.dynamic_update_slice_in_dim(x, own[source], start, 1)

        def last(_: Array, x: Array) -> Array:
            return part(x, whole * length, count - whole * length)

        x = jax.lax.fori_loop(0, due * whole, lambda i, x: part(x, i * length, length), x)
        return jax.lax.fori_loop(0, due, last, x)

    taken = jnp.where(due, source, jnp.arange(len(source)))
    rows = jax.tree.map(copied, replays.rows)
    return Ring(rows, replays.position[taken], replays.size[taken])


def insert(individuals: Any, slot: Array, newcomer: Any, when: Array | bool = True) -> Any:
    """Return a population [P] with a ``newcomer`` in ``slot`` int32 [], if ``when``."""
    chex.assert_rank([slot, when], 0)
    count = jax.tree.leaves(individuals)[0].shape[0]
    return tree.put(individuals, jnp.where(when, slot, count), newcomer)


def transfers(source: Array) -> Array:
    """Return int32 [P, P]: 1 where the row's individual took over from the column's."""
    chex.assert_rank(source, 1)
    count = source.shape[0]
    taken = source[:, None] == jnp.arange(count)
    return (taken & ~jnp.eye(count, dtype=jnp.bool_)).astype(jnp.int32)


def parents(source: Array) -> Array:
    """Return int32 [P, 2]: the individual that each slot stems from, and -1 for a second parent."""
    chex.assert_rank(source, 1)
    return jnp.stack([source, jnp.full_like(source, -1)], 1)


def ahead(scores: Array, gap: Array | float) -> Array:
    """Return bool [P, P]: whether the column's individual scores higher than the row's by more than ``gap``.
    A score that is not finite counts as minus infinity."""
    chex.assert_rank(scores, 1)
    known = comparable(scores)
    return known[None, :] - known[:, None] > gap


class MeanNetwork(NamedTuple):
    """The network of the mean action, which policies of different kinds have in common.

    blank:  its parameters, all 0.
    greedy: (parameters, obs [*obs]) -> action
    """

    blank: Params
    greedy: Callable[[Params, Array], Array]


def mean_network(agent: Agent | OnPolicyAgent, hyper: PyTree) -> MeanNetwork:
    """Return the network of an agent's mean action.

    Raises:
        ValueError: the policy holds more than a network, see ``nets.mean_of``, or has a memory.
    """

    def fresh(key: Key) -> Params:
        return agent.policy(agent.init(key, as_arrays(hyper)))

    policy = learning.zeros(jax.eval_shape(fresh, jax.random.key(0)))
    blank, outputs = nets.mean_of(policy), agent.outputs
    if outputs is None:
        raise ValueError("a policy with a memory has no network of its mean action; take one without")

    def greedy(mean: Params, obs: Array) -> Array:
        return agent.actions.vector(outputs(nets.with_mean(policy, mean), obs))

    return MeanNetwork(blank, greedy)


def adopt_mean(
    agent: Agent | OnPolicyAgent, state: PyTree, mean: Params, value: Params, when: Array
) -> PyTree:
    """Return an agent that acts by the network ``mean`` if ``when`` bool []. It also takes over the state
    value ``value``, unless that is None, and keeps its spread and its optimizer's moments."""
    policy = nets.with_mean(agent.policy(state), mean)
    return tree.where(when, agent.adopt(state, policy, value), state)


def check_alike(spec: Spec, networks: Mapping[str, MeanNetwork]) -> None:
    """Check that all agents, by name, share one mean-network architecture and act identically with it.

    Raises:
        ValueError: parameters differ, or agents act differently with the same ones; the message names them.
    """
    rng = np.random.default_rng(0)  # jax.random would compile a program for every shape
    (first, one), *others = networks.items()

    def drawn(leaf: Array) -> Array:
        """Draw weights that make outputs of the order of 1, where squashing and activations show."""
        scale = leaf.shape[0] ** -0.5 if leaf.ndim > 1 else 1.0
        return jnp.asarray(rng.normal(scale=scale, size=leaf.shape), leaf.dtype)

    mean = jax.tree.map(drawn, one.blank)
    obs = jnp.asarray(rng.normal(size=(8, *spec.obs_shape)), jnp.float32)
    expected = jax.vmap(one.greedy, (None, 0))(mean, obs)
    for name, other in others:
        differing = sorted(_leaves(mean) ^ _leaves(other.blank))
        if differing:
            raise ValueError(
                f"{name} cannot take over the mean network of {first}; these differ: "
                + ", ".join(differing)
                + "; give both the same hidden layers and no layer norm"
            )
        if not np.allclose(jax.vmap(other.greedy, (None, 0))(mean, obs), expected, atol=1e-4):
            raise ValueError(
                f"{name} and {first} do not act alike with the same mean network; "
                "give both the same activation, and squash actions"
            )


def _leaves(params: PyTree) -> set[str]:
    return {
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {tuple(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(params)
    }
