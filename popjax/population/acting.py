"""Joint exploration: agents take the others' actions into account, or one agent is elected to act for all.

Collaborative Exploration (ICLR 2024 submission), equation 5 and section 4.2; upper confidence bounds as in
SUNRISE (Lee et al., 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import tree
from popjax.core import Choice, Key, Number, Params, PyTree, Spec, number
from popjax.evolution.ranking import comparable
from popjax.population import policy
from popjax.population.lanes import ActAll
from popjax.population.learners import Learners

Mode = Literal["eps_collab", "eps_greedy", "ucb", "softmax"]
CANDIDATES = 10
"""Actions that ``eps_collaborative`` samples from each policy, M of equation 5."""


@struct.dataclass
class Hyper:
    """Hyperparameters of joint exploration."""

    epsilon: Number = number(0.2, high=1.0)  # probability of an exploring action in eps_collab and eps_greedy
    ucb_weight: Number = number(1.0)  # standard deviations that ucb adds to the mean
    softmax_inv_temp: Number = number(1.0)  # inverse temperature of the softmax over Q
    softmax_eps: Number = number(1.0, high=1.0)  # probability of sampling from the softmax; else its mode


def farthest(candidates: Array, references: Array, own: Array | int) -> Array:
    """Return the index of the candidate [M, A] with the largest summed squared distance to the references [P,
    M, A] of all agents but ``own``. Distances that are not finite count as 0. Equation 5."""
    squares = jnp.square(candidates[:, None, None] - references).sum(-1)  # [M, P, M]
    others = jnp.arange(len(references)) != own
    return jnp.argmax(jnp.where(others[:, None] & jnp.isfinite(squares), squares, 0.0).sum((1, 2)))


def upper_confidence(values: Array, weight: Array | float) -> Array:
    """Return the index of the proposal with the largest mean plus ``weight`` standard deviations over the
    critics. SUNRISE, equation 4.

    values: [C, P] values that C critics give to P proposals; those that are not finite are left out
    """
    sound = jnp.isfinite(values)
    return jnp.argmax(comparable(values.mean(0, where=sound) + weight * values.std(0, where=sound)))


def boltzmann(key: Key, values: Array, hyper: Hyper) -> Array:
    """Return the index of an agent drawn with probability proportional to ``exp(softmax_inv_temp * value)``
    or, with probability ``1 - softmax_eps``, the index of the largest value. Section 4.2.

    values: [P] each agent's value of its own action; an agent whose value is not finite is not drawn
    """
    key_draw, key_explore = jax.random.split(key)
    drawn = jax.random.categorical(key_draw, comparable(hyper.softmax_inv_temp * values))
    best = jnp.argmax(comparable(values))
    return jnp.where(jax.random.bernoulli(key_explore, hyper.softmax_eps), drawn, best)


def together(
    mode: Mode | None, learners: Learners, states: PyTree, spec: Spec, scale: Array | float, hyper: Hyper
) -> ActAll:
    """Return the function by which all lanes act: by ``mode``, or each agent for itself if None."""
    policies = learners.policies(states)
    alone = policy.everyone(learners.act, policies, scale)
    match mode:
        case "eps_collab":
            return eps_collaborative(alone, learners, policies, scale, hyper.epsilon)
        case "eps_greedy":
            return eps_greedy(alone, spec, hyper.epsilon)
        case "ucb":
            return by_upper_confidence(learners, states, scale, hyper.ucb_weight)
        case "softmax":
            return by_value(learners, states, scale, hyper)
    return alone


def eps_greedy(act: ActAll, spec: Spec, epsilon: Array | float) -> ActAll:
    """Return ``act`` with each action replaced by a uniformly random one with probability ``epsilon``."""

    def act_all(memory: PyTree, obs: Array, key: Key) -> Choice:
        key_act, key_chance = jax.random.split(key)
        chance = jax.random.bernoulli(key_chance, epsilon, obs.shape[:2])
        return policy.randomly(act, spec, chance)(memory, obs, key_act)

    return act_all


def eps_collaborative(
    act: ActAll, learners: Learners, policies: Params, scale: Array | float, epsilon: Array | float
) -> ActAll:
    """Return ``act`` with each action replaced, with probability ``epsilon``, by the one of ``CANDIDATES``
    samples of the agent's policy farthest from as many samples of every other policy. Equation 5."""

    def act_all(memory: PyTree, obs: Array, key: Key) -> Choice:
        key_plain, key_mode, key_draws = jax.random.split(key, 3)
        choice = act(memory, obs, key_plain)
        place = jnp.arange(len(obs))
        keys = jax.random.split(key_draws, CANDIDATES)
        draws = jax.vmap(lambda k: proposals(learners, policies, obs, k, scale))(keys)  # [M, P, P, N, A]
        own = draws[:, place, place].transpose(1, 2, 0, 3)  # [P, N, M, A]
        references = draws.transpose(2, 3, 1, 0, 4)  # [P, N, P, M, A]
        best = jax.vmap(jax.vmap(farthest, (0, 0, None)))(own, references, place)  # [P, N]
        apart = _chosen(own.transpose(2, 0, 1, 3), best)
        chance = jax.random.bernoulli(key_mode, epsilon, obs.shape[:2])
        return choice._replace(action=tree.where(chance, apart, choice.action))

    return act_all


def by_upper_confidence(
    learners: Learners, states: PyTree, scale: Array | float, weight: Array | float
) -> ActAll:
    """Return the function by which all agents act as one in lanes [Q, N].

    They play the proposal with the largest mean plus ``weight`` standard deviations over all critics.
    """
    return _elected(
        learners,
        states,
        scale,
        lambda key, obs, proposed: jax.vmap(jax.vmap(lambda v: upper_confidence(v, weight)))(
            all_values(learners, states, obs, proposed)
        ),
    )


def by_value(learners: Learners, states: PyTree, scale: Array | float, hyper: Hyper) -> ActAll:
    """Return the function by which all agents act as one in lanes [Q, N].

    ``boltzmann`` draws the agent whose proposal is played, by each agent's value of its own greedy action.
    """

    def elect(key: Key, obs: Array, proposed: Array) -> Array:
        values = jnp.moveaxis(greedy_values(learners, states, obs), 0, -1)  # [Q, N, P]
        keys = jax.random.split(key, values.shape[:2])
        return jax.vmap(jax.vmap(lambda k, v: boltzmann(k, v, hyper)))(keys, values)

    return _elected(learners, states, scale, elect)


def proposals(learners: Learners, policies: Params, obs: Array, key: Key, scale: Array | float) -> Array:
    """Return the actions [P, ..., A] of all policies [P] at the same observations [..., *obs]."""
    outputs = jax.vmap(learners.outputs, (0, None))(policies, obs)
    count = jax.tree.leaves(outputs)[0].shape[0]
    scales = jnp.broadcast_to(scale, (count,))
    sampled = jax.vmap(learners.actions.sample)(jax.random.split(key, count), outputs, scales)
    return learners.actions.bounded(sampled)


def greedy_values(learners: Learners, states: PyTree, obs: Array) -> Array:
    """Return the smallest value [P, ...] that an agent's critics give to its greedy action at obs [...,
    *obs]."""
    outputs = jax.vmap(learners.outputs, (0, None))(learners.policies(states), obs)
    return learners.values(states, obs, learners.actions.bounded(learners.actions.mode(outputs))).min(1)


def all_values(learners: Learners, states: PyTree, obs: Array, proposed: Array) -> Array:
    """Return the values [..., C, P] that all C critics give to all proposals [P, ..., A] at obs [...,
    *obs]."""

    def one(proposal: Array) -> Array:
        everyone = jnp.broadcast_to(proposal, (len(proposed), *proposal.shape))
        return tree.flatten(learners.values(states, obs, everyone))  # [C, ...]

    return jnp.moveaxis(jax.vmap(one)(proposed), (1, 0), (-2, -1))


def _elected(learners: Learners, states: PyTree, scale: Array | float, elect: Callable[..., Array]) -> ActAll:
    """Return the function by which lanes play the proposal that ``elect(key, obs, proposals)`` names, int32
    [Q, N]."""

    def act_all(memory: PyTree, obs: Array, key: Key) -> Choice:
        key_draws, key_choice = jax.random.split(key)
        proposed = proposals(learners, learners.policies(states), obs, key_draws, scale)  # [P, Q, N, A]
        action = _chosen(proposed, elect(key_choice, obs, proposed))
        return Choice(memory, action, action, jnp.zeros(obs.shape[:2]))

    return act_all


def _chosen(proposed: Array, index: Array) -> Array:
    """Return the entries [Q, N, ...] of ``proposed`` [P, Q, N, ...] at ``index`` [Q, N]."""
    return jax.vmap(jax.vmap(lambda one, i: one[i], (1, 0)), (1, 0))(proposed, index)
