"""Soft actor-critic with twin critics and a learned temperature. Haarnoja et al., 2018 (v2).

The order of a gradient step is jaxrl2's, which Collaborative Exploration builds on: critics, targets, actor
with the new critics, temperature with the entropy of that actor step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import distributions, nets, normalize, tree
from popjax.checks import check_types, check_widths
from popjax.core import (
    LARGEST,
    Agent,
    Key,
    Network,
    Number,
    Params,
    PyTree,
    Spec,
    Transition,
    continuous_dims,
    number,
)
from popjax.optimize import adam, descend


@dataclass(frozen=True)
class Config:
    """Shapes of the networks and the form of the actor's loss."""

    hidden: tuple[int, ...] = (256, 256)  # units of the hidden layers of actor and critics
    # the actor ascends the mean of the twins (jaxrl2) or their minimum
    actor_q: Literal["mean", "min"] = "mean"
    initializer: nets.Initializer = "orthogonal"  # "uniform" is PyTorch's default, of weights and biases
    normalize_obs: bool = False  # observations are whitened by their running statistics
    precision: nets.Precision = "float32"  # precision of hidden layers in gradient steps; acting uses float32

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)


@struct.dataclass
class Hyper:
    """Hyperparameters of one SAC learner."""

    discount: Number = number(0.99, high=1.0)  # gamma, per environment step
    polyak: Number = number(0.005, high=1.0)  # share by which targets move to the critics per gradient step
    actor_lr: Number = number(3e-4)  # Adam's rate for the actor
    critic_lr: Number = number(3e-4)  # Adam's rate for the twin critics
    temperature_lr: Number = number(3e-4)  # Adam's rate for the log temperature
    max_grad_norm: Number = number(20.0, high=math.inf)  # global norm to which both gradients are clipped
    init_temperature: Number = number(1.0, instead="temperature_lr")  # temperature at the start
    target_entropy: Number = number(-0.5, low=-LARGEST)  # target of the entropy, nats per action component
    exploration: Number = number(1.0)  # multiplies the policy's standard deviation while collecting


@struct.dataclass
class State:
    """Actor, twin critics and their targets, log temperature [], Adam's moments."""

    actor: Params
    critics: Params
    target_critics: Params
    log_temperature: Array
    actor_optimizer: PyTree
    critic_optimizer: PyTree
    temperature_optimizer: PyTree


@struct.dataclass
class Losses:
    """critic_loss: mean squared soft TD error; actor_loss; temperature; entropy of the policy on the batch,
    nats; [] each."""

    critic_loss: Array
    actor_loss: Array
    temperature: Array
    entropy: Array


class Parts(NamedTuple):
    """A SAC learner and the steps that its ``learn`` is made of, for methods that change one of them.

    step:              (state, batch, hyper, key, weight of the critics' errors [B], weight of the rest [B])
                       -> (state, Losses); ``learn`` with weights, 1 by default
    learn_critics:     (state, batch, hyper, key, weight) -> (state, loss); also updates the targets
    actor_loss:        (actor params, state, obs, key, weight, value) -> (loss, entropy); the actor ascends
                       ``value(obs, action)``, or the critics' value if None
    learn_temperature: (state, hyper, entropy) -> state
    """

    agent: Agent
    step: Callable[..., tuple[State, Losses]]
    learn_critics: Callable[..., tuple[State, Array]]
    actor_loss: Callable[..., tuple[Array, Array]]
    learn_temperature: Callable[[State, Hyper, Array], State]


def build(spec: Spec, config: Config = Config()) -> Agent:
    """Return a SAC learner. ``act`` with scale 0 is tanh of the mean."""
    agent = parts(spec, replace(config, normalize_obs=False)).agent
    return normalize.whitened(agent, spec.obs_shape) if config.normalize_obs else agent


def parts(spec: Spec, config: Config = Config(), heads: int | None = None) -> Parts:
    """Return the learner in parts. With ``heads`` it is that many learners on shared torsos: policies,
    critics, temperatures, entropies and the rewards [heads, B] of a batch have a leading axis, and losses are
    summed over it.

    Raises:
        ValueError: ``config`` asks for normalized observations, which these steps do not support.
    """
    if config.normalize_obs:
        raise ValueError("normalize_obs is for a whole SAC learner; leave it out where its parts are used")
    action_dim = continuous_dims(spec, "sac")[1]
    actor = _networks(spec, replace(config, precision="float32"), heads)[0]
    learnt, critic = _networks(spec, config, heads)
    return assembled(actor, learnt, nets.ensemble(critic, 2), action_dim, config.actor_q, heads=heads)


def assembled(
    actor: Network,
    learnt: Network,
    twins: Network,
    action_dim: int,
    actor_q: Literal["mean", "min"],
    target_q: Literal["mean", "min"] = "min",
    heads: int | None = None,
) -> Parts:
    """Return the learner with these networks: ``actor``, obs -> Gaussian, acts; ``learnt`` is the same
    network, with the same parameters, in the losses; ``twins``, (obs, action) -> values [2, ...]. The actor
    ascends the ``actor_q``, mean or minimum, of the twins; targets use the ``target_q`` of the target
    twins."""
    actions = distributions.squashed()
    joined: dict[str, Callable[[Array], Array]] = {"mean": lambda x: x.mean(0), "min": lambda x: x.min(0)}

    def init(key: Key, hyper: Hyper) -> State:
        key_actor, key_critic = jax.random.split(key)
        actor_params, critic_params = actor.init(key_actor), twins.init(key_critic)
        log_temperature = jnp.log(jnp.asarray(hyper.init_temperature, jnp.float32))
        log_temperature = jnp.broadcast_to(log_temperature, () if heads is None else (heads,))
        return State(
            actor=actor_params,
            critics=critic_params,
            target_critics=critic_params,
            log_temperature=log_temperature,
            actor_optimizer=adam(hyper.actor_lr, hyper.max_grad_norm).init(actor_params),
            critic_optimizer=adam(hyper.critic_lr, hyper.max_grad_norm).init(critic_params),
            temperature_optimizer=adam(hyper.temperature_lr, jnp.inf).init(log_temperature),
        )

    def inherit(state: State, other: State) -> State:
        return replace(
            other,
            actor_optimizer=state.actor_optimizer,
            critic_optimizer=state.critic_optimizer,
            temperature_optimizer=state.temperature_optimizer,
        )

    def adopt(state: State, policy: Params, value: Params = None) -> State:
        return replace(state, actor=policy)

    def values(state: State, obs: Array, action: Array) -> Array:
        return twins.apply(state.critics, obs, action)

    def value(state: State, obs: Array, action: Array) -> Array:
        return values(state, obs, action).min(0)

    def learn_critics(
        state: State, batch: Transition, hyper: Hyper, key: Key, weight: Array | float = 1.0
    ) -> tuple[State, Array]:
        next_action, next_log_prob = distributions.squashed_sample(
            key, *learnt.apply(state.actor, batch.next_obs)
        )
        next_value = joined[target_q](twins.apply(state.target_critics, batch.next_obs, next_action))
        soft_value = next_value - jnp.exp(state.log_temperature)[..., None] * next_log_prob
        target = batch.reward + batch.discount * soft_value  # [B]

        def loss(params: Params) -> tuple[Array, None]:
            error = twins.apply(params, batch.obs, batch.action) - target  # [2, B]
            return (weight * error**2).mean((0, -1)).sum(), None

        critics, optimizer, value, _ = descend(
            adam(hyper.critic_lr, hyper.max_grad_norm), loss, state.critics, state.critic_optimizer
        )
        target_critics = tree.polyak(state.target_critics, critics, hyper.polyak)
        return replace(
            state, critics=critics, critic_optimizer=optimizer, target_critics=target_critics
        ), value

    def critics_value(state: State) -> Callable[[Array, Array], Array]:
        return lambda obs, action: joined[actor_q](twins.apply(state.critics, obs, action))

    def actor_loss(
        params: Params,
        state: State,
        obs: Array,
        key: Key,
        weight: Array | float = 1.0,
        value: Callable[[Array, Array], Array] | None = None,
    ) -> tuple[Array, Array]:
        action, log_prob = distributions.squashed_sample(key, *learnt.apply(params, obs))
        ascended = (value or critics_value(state))(obs, action)
        cost = jnp.exp(state.log_temperature)[..., None] * log_prob - ascended
        entropy = -(weight * log_prob).mean(-1) / jnp.maximum(jnp.mean(weight), 1e-8)
        return (weight * cost).mean(-1).sum(), entropy

    def learn_temperature(state: State, hyper: Hyper, entropy: Array) -> State:
        def loss(log_temperature: Array) -> tuple[Array, None]:
            gap = entropy - hyper.target_entropy * action_dim
            return (jnp.exp(log_temperature) * gap).sum(), None

        log_temperature, optimizer, _, _ = descend(
            adam(hyper.temperature_lr, jnp.inf), loss, state.log_temperature, state.temperature_optimizer
        )
        return replace(state, log_temperature=log_temperature, temperature_optimizer=optimizer)

    def step(
        state: State,
        batch: Transition,
        hyper: Hyper,
        key: Key,
        critic_weight: Array | float = 1.0,
        weight: Array | float = 1.0,
    ) -> tuple[State, Losses]:
        key_critic, key_actor = jax.random.split(key)
        state, critic_loss = learn_critics(state, batch, hyper, key_critic, critic_weight)
        actor_params, optimizer, loss, entropy = descend(
            adam(hyper.actor_lr, hyper.max_grad_norm),
            lambda params: actor_loss(params, state, batch.obs, key_actor, weight),
            state.actor,
            state.actor_optimizer,
        )
        state = replace(state, actor=actor_params, actor_optimizer=optimizer)
        state = learn_temperature(state, hyper, entropy)
        return state, Losses(critic_loss, loss, jnp.exp(state.log_temperature), entropy)

    agent = Agent(
        init=init,
        act=distributions.acting(actions, actor.apply),
        learn=lambda state, batch, hyper, key: step(state, batch, hyper, key),
        policy=lambda state: state.actor,
        adopt=adopt,
        inherit=inherit,
        value=value,
        outputs=actor.apply,
        actions=actions,
        actor=actor,
        critic=twins,
        values=values,
    )
    return Parts(agent, step, learn_critics, actor_loss, learn_temperature)


def _networks(spec: Spec, config: Config, heads: int | None) -> tuple[Network, Network]:
    """Return the networks of the actor and of one critic."""
    obs_dim, action_dim = continuous_dims(spec, "sac")
    initializer = "uniform_fan_in" if config.initializer == "uniform" else config.initializer
    options: Any = {"initializer": initializer, "precision": config.precision}
    if heads is None:
        return (
            nets.gaussian_actor(obs_dim, action_dim, config.hidden, **options),
            nets.critic(obs_dim, action_dim, config.hidden, **options),
        )
    return (
        nets.multihead_gaussian_actor(obs_dim, action_dim, config.hidden, heads, **options),
        nets.multihead_critic(obs_dim, action_dim, config.hidden, heads, **options),
    )
