"""Which action to take, and which policy to trust, when several agents have an opinion.

Collaborative Exploration, equations 5 and 6, and what it is compared with. One observation each; lift by
``vmap``. ``actor`` puts them to use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from popjax.core import Key, PyTree
from popjax.methods.ce.learners import Learner


def farthest(candidates: Array, references: Array, own: Array | int) -> Array:
    """Index of the candidate [M, A] with the largest summed squared distance to the references [P, M, A] of
    all agents but ``own``. Equation 5."""
    squares = jnp.square(candidates[:, None, None] - references).sum(-1)  # [M, P, M]
    others = jnp.arange(len(references)) != own
    return jnp.argmax(jnp.where(others[:, None], squares, 0.0).sum((1, 2)))


def eps_collaborative(
    key: Key, plain: Array, candidates: Array, references: Array, own: Array, epsilon: Array
) -> Array:
    """With probability ``epsilon`` the farthest candidate, else the ``plain`` action [A]."""
    apart = candidates[farthest(candidates, references, own)]
    return jnp.where(jax.random.bernoulli(key, epsilon), apart, plain)


def upper_confidence(values: Array, weight: Array | float) -> Array:
    """Index of the proposal with the largest mean plus ``weight`` standard deviations over the critics.

    values: [C, P] each critic's value of each of P proposals. SUNRISE, Lee et al. 2021, equation 4.
    """
    return jnp.argmax(values.mean(0) + weight * values.std(0))


def boltzmann(key: Key, values: Array, inverse_temperature: Array | float, explore: Array | float) -> Array:
    """Index of an agent with probability proportional to ``exp(inverse_temperature * value)``. Equation 6.

    values:  [P] each agent's value of what it would do
    explore: probability of drawing at all; else the best one
    """
    key_draw, key_explore = jax.random.split(key)
    drawn = jax.random.categorical(key_draw, inverse_temperature * values)
    return jnp.where(jax.random.bernoulli(key_explore, explore), drawn, jnp.argmax(values))


Mode = Literal["eps_collab", "eps_greedy", "ucb", "softmax"]


def actor(learner: Learner, mode: Mode | None, candidates: int, population: int) -> Callable[..., Array]:
    """``act(agents, obs [P, N, D], uniform [P, N, A], hyper, key) -> actions [P, N, A]``; every agent by
    itself if ``mode`` is None. With one environment for all, the first axis is 1 and ``mode`` elects."""

    def sample(key: Key, gaussian: tuple[Array, Array], hyper: Any) -> Array:
        mean, log_std = gaussian
        scale = hyper.sac.exploration
        if jnp.ndim(scale):  # [P], one number of each policy
            scale = scale.reshape(-1, *(1,) * (mean.ndim - 1))
        return jnp.tanh(mean + scale * jnp.exp(log_std) * jax.random.normal(key, mean.shape))

    def plain(agents: PyTree, obs: Array, uniform: Array, hyper: Any, key: Key) -> Array:
        return sample(key, learner.own(agents, obs), hyper)

    def aside(agents: PyTree, obs: Array, uniform: Array, hyper: Any, key: Key) -> Array:
        key_plain, key_mode = jax.random.split(key)
        chance = jax.random.bernoulli(key_mode, hyper.epsilon, obs.shape[:2])
        return jnp.where(chance[..., None], uniform, plain(agents, obs, uniform, hyper, key_plain))

    def apart(agents: PyTree, obs: Array, uniform: Array, hyper: Any, key: Key) -> Array:
        key_plain, key_mode, key_draws = jax.random.split(key, 3)
        keys, place = jax.random.split(key_mode, obs.shape[:2]), jnp.arange(population)
        gaussian = learner.policies(agents, obs)
        draws = jax.vmap(lambda k: sample(k, gaussian, hyper))(jax.random.split(key_draws, candidates))
        own_draws = draws[:, place, place].transpose(1, 2, 0, 3)  # [P, N, M, A]
        references = draws.transpose(2, 3, 1, 0, 4)  # [P, N, P, M, A]
        over_lanes = jax.vmap(eps_collaborative, (0, 0, 0, 0, None, None))
        over_agents = jax.vmap(over_lanes, (0, 0, 0, 0, 0, None))
        alone = plain(agents, obs, uniform, hyper, key_plain)
        return over_agents(keys, alone, own_draws, references, place, hyper.epsilon)

    def elected(agents: PyTree, obs: Array, uniform: Array, hyper: Any, key: Key) -> Array:
        key_draws, key_choice = jax.random.split(key)
        proposals = sample(key_draws, learner.policies(agents, obs), hyper)  # [P, P, N, A]
        if mode == "ucb":
            chosen = jax.vmap(jax.vmap(lambda v: upper_confidence(v, hyper.ucb_weight)))(
                all_values(learner, agents, obs, proposals)
            )
        else:
            values = jnp.moveaxis(greedy_values(learner, agents, obs), 0, -1)  # [P, N, P]
            keys = jax.random.split(key_choice, values.shape[:2])
            numbers = hyper.eval_softmax_inv_temp, hyper.eval_softmax_eps
            chosen = jax.vmap(jax.vmap(lambda k, v: boltzmann(k, v, *numbers)))(keys, values)
        return jnp.take_along_axis(proposals, chosen[None, ..., None], axis=0)[0]

    return {None: plain, "eps_greedy": aside, "eps_collab": apart, "ucb": elected, "softmax": elected}[mode]


def greedy_values(learner: Learner, agents: PyTree, obs: Array) -> Array:
    """Each agent's smaller twin at its deterministic action, [P, ...] for obs [..., D]."""
    mean, _ = learner.policies(agents, obs)
    return learner.values(agents, obs, jnp.tanh(mean)).min(1)


def all_values(learner: Learner, agents: PyTree, obs: Array, proposals: Array) -> Array:
    """What all 2P critics say of every proposal: obs [..., D], proposals [P, ..., A] -> [..., 2P, P]."""

    def one(proposal: Array) -> Array:
        everyone = jnp.broadcast_to(proposal, (len(proposals), *proposal.shape))
        values = learner.values(agents, obs, everyone)  # [P, 2, ...]
        return values.reshape(-1, *values.shape[2:])

    return jnp.moveaxis(jax.vmap(one)(proposals), (1, 0), (-2, -1))
