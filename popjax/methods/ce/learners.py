"""What the agents are and how they learn from a common batch: side by side, on one torso, or coupled.

A learner holds all agents; its state leads with the number of its networks, which is P, or 1 where the agents
are heads of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import distributions, nets, tree
from popjax.agents import sac
from popjax.core import Key, Params, PyTree, Spec, Transition, continuous_dims
from popjax.intrinsic import dice
from popjax.optimize import adam, descend

Kind = Literal["sac", "multihead", "dice", "sunrise"]
GRADIENT_LIMIT = 40.0  # DiCE's: of every tensor before the bisector and of the bisector as a whole


@struct.dataclass
class Batch:
    """Transitions [B] that all agents learn from.

    owner:   int32 [B]    the agent that acted
    members: bool [B, P]  whose loss a transition counts in (SUNRISE), or ()
    """

    transition: Transition
    owner: Array
    members: Any


class Learner(NamedTuple):
    """``P`` agents together.

    init:     (key, hyper) -> state
    learn:    (state, Batch, rewards [P, B], hyper, key) -> (state, losses [P] each)
    own:      (state, obs [P, ..., D]) -> each policy at its own observation: mean, log std [P, ..., A]
    policies: (state, obs [..., D]) -> every policy at the same observation: mean, log std [P, ..., A]
    values:   (state, obs [..., D], actions [P, ..., A]) -> each agent's twins on its action [P, 2, ...]
    deploy:   (state, index) -> parameters of one agent's policy
    greedy:   (those parameters, index, obs) -> action
    """

    init: Callable[..., PyTree]
    learn: Callable[..., tuple[PyTree, sac.Losses]]
    own: Callable[..., tuple[Array, Array]]
    policies: Callable[..., tuple[Array, Array]]
    values: Callable[..., Array]
    deploy: Callable[..., Params]
    greedy: Callable[..., Array]


def build(spec: Spec, kind: Kind, config: sac.Config, population: int) -> Learner:
    """The learner of a kind."""
    if kind == "multihead":
        return _multihead(sac.parts(spec, config, heads=population), population)
    parts = sac.parts(spec, config)
    if kind == "dice":
        return _dice(parts, spec, config, population)
    return _side_by_side(parts, population, _sunrise(parts) if kind == "sunrise" else _each(parts))


def _each(parts: sac.Parts) -> Callable[..., tuple[PyTree, sac.Losses]]:
    """Every agent learns from the whole batch with its own rewards."""

    def learn(states: PyTree, batch: Batch, rewards: Array, hyper: PyTree, key: Key) -> Any:
        def one(state: PyTree, reward: Array, hyper: PyTree, key: Key) -> tuple[PyTree, sac.Losses]:
            return parts.agent.learn(state, replace(batch.transition, reward=reward), hyper, key)

        keys = jax.random.split(key, len(rewards))
        return jax.vmap(one, (0, 0, tree.axes(hyper.sac), 0))(states, rewards, hyper.sac, keys)

    return learn


def _sunrise(parts: sac.Parts) -> Callable[..., tuple[PyTree, sac.Losses]]:
    """SUNRISE (Lee et al., 2021): a member learns from the transitions that chance gave it, and less from
    those whose target its fellows disagree about."""
    agent = parts.agent

    def spread(states: PyTree, next_obs: Array, keys: Array) -> Array:
        """[B] standard deviation over all 2P target values, each member with its own next action."""

        def one(state: sac.State, key: Key) -> Array:
            action, _ = distributions.squashed_sample(key, *agent.actor.apply(state.actor, next_obs))
            return agent.critic.apply(state.target_critics, next_obs, action)

        values = jax.vmap(one)(states, keys)  # [P, 2, B]
        return values.reshape(-1, values.shape[-1]).std(0)

    def one(
        state: sac.State, reward: Array, member: Array, trust: Array, batch: Batch, hyper: PyTree, key: Key
    ) -> tuple[sac.State, sac.Losses]:
        key_critic, key_actor = jax.random.split(key)
        rows, before = replace(batch.transition, reward=reward), state
        counted = member * (len(member) / (member.sum() + 1))  # the mean becomes sum / (count + 1)
        state, critic_loss = parts.learn_critics(state, rows, hyper, key_critic, counted * trust)
        actor, optimizer, loss, entropy = descend(
            adam(hyper.actor_lr, hyper.max_grad_norm),
            lambda params: parts.actor_loss(params, state, rows.obs, key_actor, counted),
            state.actor,
            state.actor_optimizer,
        )
        state = replace(state, actor=actor, actor_optimizer=optimizer)
        state = parts.learn_temperature(state, hyper, entropy)
        # Nothing is learned from nothing, where Adam would move on by its momentum.
        state = tree.where(member.any(), state, before)
        return state, sac.Losses(critic_loss, loss, jnp.exp(state.log_temperature), entropy)

    def learn(states: PyTree, batch: Batch, rewards: Array, hyper: PyTree, key: Key) -> Any:
        key_spread, key_learn = jax.random.split(key)
        std = spread(states, batch.transition.next_obs, jax.random.split(key_spread, len(rewards)))
        trust = target_weight(std, hyper.sunrise_temperature)
        keys = jax.random.split(key_learn, len(rewards))
        members = jnp.float32(batch.members.T)  # [P, B]
        return jax.vmap(one, (0, 0, 0, None, None, tree.axes(hyper.sac), 0))(
            states, rewards, members, trust, batch, hyper.sac, keys
        )

    return learn


def target_weight(std: Array, temperature: Array | float) -> Array:
    """SUNRISE's trust in a target whose values have standard deviation ``std``: 1 at 0, towards 0.5."""
    return jax.nn.sigmoid(-std * temperature) + 0.5


def _side_by_side(
    parts: sac.Parts,
    population: int,
    learn: Callable[..., tuple[PyTree, sac.Losses]],
    get: Callable[[PyTree], sac.State] = lambda states: states,
    init: Callable[[Key, PyTree], PyTree] | None = None,
) -> Learner:
    """Agents with networks of their own; ``get`` finds their SAC learners in the state."""
    agent = parts.agent
    init = init or agent.init

    def init_all(key: Key, hyper: PyTree) -> PyTree:
        return jax.vmap(init, (0, tree.axes(hyper.sac)))(jax.random.split(key, population), hyper.sac)

    def values(states: PyTree, obs: Array, actions: Array) -> Array:
        return jax.vmap(agent.critic.apply, (0, None, 0))(get(states).critics, obs, actions)

    return Learner(
        init=init_all,
        learn=learn,
        own=lambda states, obs: jax.vmap(agent.actor.apply)(get(states).actor, obs),
        policies=lambda states, obs: jax.vmap(agent.actor.apply, (0, None))(get(states).actor, obs),
        values=values,
        deploy=lambda states, index: tree.take(get(states).actor, index),
        greedy=lambda params, index, obs: jnp.tanh(agent.actor.apply(params, obs)[0]),
    )


def _multihead(parts: sac.Parts, population: int) -> Learner:
    """Agents that are heads on one actor torso and one torso for each twin of the critics."""
    agent = parts.agent

    def learn(states: PyTree, batch: Batch, rewards: Array, hyper: PyTree, key: Key) -> Any:
        rows = replace(batch.transition, reward=rewards)
        state, losses = agent.learn(tree.take(states, 0), rows, hyper.sac, key)
        # The losses of critics and actors are sums over heads.
        shared = {name: getattr(losses, name) / population for name in ("critic_loss", "actor_loss")}
        losses = replace(losses, **jax.tree.map(lambda x: jnp.full(population, x), shared))
        return tree.repeat(state, 1), losses

    def policies(states: PyTree, obs: Array) -> tuple[Array, Array]:
        return agent.actor.apply(tree.take(states.actor, 0), obs)

    def own(states: PyTree, obs: Array) -> tuple[Array, Array]:
        place = jnp.arange(population)
        return jax.tree.map(lambda x: x[place, place], policies(states, obs))

    def values(states: PyTree, obs: Array, actions: Array) -> Array:
        return jnp.moveaxis(agent.critic.apply(tree.take(states.critics, 0), obs, actions), 0, 1)

    return Learner(
        init=lambda key, hyper: tree.repeat(agent.init(key, hyper.sac), 1),
        learn=learn,
        own=own,
        policies=policies,
        values=values,
        deploy=lambda states, index: tree.take(states.actor, 0),
        greedy=lambda params, index, obs: jnp.tanh(agent.actor.apply(params, obs)[0][index]),
    )


@struct.dataclass
class DiceState:
    """A SAC learner; the critic of diversity, its target and Adam's moments; the slow copy of the actor that
    the others measure their distance from."""

    sac: sac.State
    critic: Params
    target_critic: Params
    optimizer: PyTree
    slow_actor: Params


def _dice(parts: sac.Parts, spec: Spec, config: sac.Config, population: int) -> Learner:
    """DiCE (Peng et al., 2020) in its SAC form: actors climb the bisector of two gradients, that of the task
    and that of being unlike the others."""
    agent = parts.agent
    network = nets.critic(*continuous_dims(spec, "dice"), config.hidden, initializer="orthogonal")

    def init(key: Key, hyper: PyTree) -> DiceState:
        key_sac, key_critic = jax.random.split(key)
        state, critic = agent.init(key_sac, hyper), network.init(key_critic)
        optimizer = adam(hyper.critic_lr, hyper.max_grad_norm).init(critic)
        return DiceState(state, critic, critic, optimizer, state.actor)

    def learn_diversity(
        state: DiceState, rows: Transition, bonus: Array, hyper: PyTree, key: Key
    ) -> DiceState:
        action, log_prob = distributions.squashed_sample(
            key, *agent.actor.apply(state.sac.actor, rows.next_obs)
        )
        value = network.apply(state.target_critic, rows.next_obs, action)
        soft = value - jnp.exp(state.sac.log_temperature) * log_prob
        target = bonus + rows.discount * soft

        def loss(params: Params) -> tuple[Array, None]:
            return jnp.mean((network.apply(params, rows.obs, rows.action) - target) ** 2), None

        optimizer = adam(hyper.critic_lr, hyper.max_grad_norm)
        critic, moments, _, _ = descend(optimizer, loss, state.critic, state.optimizer)
        target_critic = tree.polyak(state.target_critic, critic, hyper.polyak)
        return replace(state, critic=critic, target_critic=target_critic, optimizer=moments)

    def learn_actor(state: DiceState, obs: Array, hyper: PyTree, key: Key) -> tuple[DiceState, Array, Array]:
        inner = state.sac

        def climb(value: Callable[[Array, Array], Array] | None) -> Any:
            loss = partial(parts.actor_loss, state=inner, obs=obs, key=key, value=value)
            return jax.value_and_grad(loss, has_aux=True)(inner.actor)

        (loss, entropy), task = climb(None)
        _, diversity = climb(partial(network.apply, state.critic))
        limited = [dice.clip_each(gradient, GRADIENT_LIMIT) for gradient in (task, diversity)]
        optimizer = adam(hyper.actor_lr, GRADIENT_LIMIT)
        updates, moments = optimizer.update(dice.bisector(*limited), inner.actor_optimizer, inner.actor)
        actor = jax.tree.map(jnp.add, inner.actor, updates)
        inner = parts.learn_temperature(replace(inner, actor=actor, actor_optimizer=moments), hyper, entropy)
        slow = tree.polyak(state.slow_actor, actor, hyper.polyak)
        return replace(state, sac=inner, slow_actor=slow), loss, entropy

    def learn(states: DiceState, batch: Batch, rewards: Array, hyper: PyTree, key: Key) -> Any:
        rows, index = batch.transition, jnp.arange(population)
        means = jnp.tanh(jax.vmap(agent.actor.apply, (0, None))(states.sac.actor, rows.obs)[0])
        slow = jnp.tanh(jax.vmap(agent.actor.apply, (0, None))(states.slow_actor, rows.obs)[0])
        bonuses = jax.vmap(dice.diversity_reward, (0, None, 0))(means, slow, index)  # [P, B]

        def one(
            state: DiceState, reward: Array, bonus: Array, hyper: PyTree, key: Key
        ) -> tuple[DiceState, sac.Losses]:
            key_critic, key_diversity, key_actor = jax.random.split(key, 3)
            inner, loss = parts.learn_critics(state.sac, replace(rows, reward=reward), hyper, key_critic)
            state = learn_diversity(replace(state, sac=inner), rows, bonus, hyper, key_diversity)
            state, actor_loss, entropy = learn_actor(state, rows.obs, hyper, key_actor)
            temperature = jnp.exp(state.sac.log_temperature)
            return state, sac.Losses(loss, actor_loss, temperature, entropy)

        axes, keys = tree.axes(hyper.sac), jax.random.split(key, population)
        return jax.vmap(one, (0, 0, 0, axes, 0))(states, rewards, bonuses, hyper.sac, keys)

    return _side_by_side(parts, population, learn, lambda states: states.sac, init)
