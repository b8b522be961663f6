"""Soft actor-critic with a state-value network and a fixed temperature. Haarnoja et al., ICML 2018 (v1).

In the form of OpenAI's Spinning Up (2018), from which the heterogeneous teams of "Cooperative Heterogeneous
Deep Reinforcement Learning" (NeurIPS 2020) were built: every loss of a gradient step uses the parameters
before the step, and one optimizer serves the twin critics and the value. Spinning Up's own actor ascends the
first critic (``actor_q="first"``), the paper's the smaller one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import distributions, nets, normalize, tree
from popjax.checks import check_types, check_widths
from popjax.core import Agent, Key, Number, Params, PyTree, Spec, Transition, continuous_dims, number
from popjax.optimize import adam, descend


@dataclass(frozen=True)
class Config:
    """Shapes of the networks and the form of the actor's loss."""

    hidden: tuple[int, ...] = (400, 300)  # units of the hidden layers of actor, critics and value
    # critic that the actor ascends: the smaller of the twins, or the first
    actor_q: Literal["min", "first"] = "min"
    normalize_obs: bool = False  # observations are whitened by their running statistics

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)


@struct.dataclass
class Hyper:
    """Hyperparameters of one learner."""

    discount: Number = number(0.99, high=1.0)  # gamma, per environment step
    polyak: Number = number(0.005, high=1.0)  # share by which the target moves to the value per gradient step
    actor_lr: Number = number(1e-3)  # Adam's rate for the actor
    critic_lr: Number = number(1e-3)  # Adam's rate for the twin critics and the value
    temperature: Number = number(0.2)  # weight of the entropy
    max_grad_norm: Number = number(math.inf, high=math.inf)  # global norm to which both gradients are clipped
    exploration: Number = number(1.0)  # multiplies the policy's standard deviation while collecting


@struct.dataclass
class State:
    """Actor, twin critics, state value and its target, Adam's moments."""

    actor: Params
    critics: Params
    value: Params
    target_value: Params
    actor_optimizer: PyTree
    critic_optimizer: PyTree


@struct.dataclass
class Losses:
    """critic_loss: half the mean squared errors of twins and value, summed; actor_loss; entropy of the policy
    on the batch, nats; [] each, before the step."""

    critic_loss: Array
    actor_loss: Array
    entropy: Array


def build(spec: Spec, config: Config = Config()) -> Agent:
    """Return a SAC learner of 2018. ``act`` with scale 0 is tanh of the mean."""
    obs_dim, action_dim = continuous_dims(spec, "sac2018")
    initial: Any = {"initializer": "uniform_zero_bias"}
    actor = nets.gaussian_actor(
        obs_dim, action_dim, config.hidden, **initial, final_initializer="uniform_fan_in", soft_range=True
    )
    twins = nets.ensemble(nets.critic(obs_dim, action_dim, config.hidden, **initial), 2)
    actions = distributions.squashed()
    state_value = nets.state_value(obs_dim, config.hidden, activation="relu", initializer="uniform")

    def init(key: Key, hyper: Hyper) -> State:
        key_actor, key_critic, key_value = jax.random.split(key, 3)
        actor_params, critics = actor.init(key_actor), twins.init(key_critic)
        value = state_value.init(key_value)
        return State(
            actor=actor_params,
            critics=critics,
            value=value,
            target_value=value,
            actor_optimizer=adam(hyper.actor_lr, hyper.max_grad_norm).init(actor_params),
            critic_optimizer=adam(hyper.critic_lr, hyper.max_grad_norm).init((critics, value)),
        )

    def inherit(state: State, other: State) -> State:
        return replace(other, actor_optimizer=state.actor_optimizer, critic_optimizer=state.critic_optimizer)

    def adopt(state: State, policy: Params, value: Params = None) -> State:
        return replace(state, actor=policy, value=state.value if value is None else value)

    def values(state: State, obs: Array, action: Array) -> Array:
        return twins.apply(state.critics, obs, action)

    def action_value(state: State, obs: Array, action: Array) -> Array:
        return values(state, obs, action).min(0)

    def learn(state: State, batch: Transition, hyper: Hyper, key: Key) -> tuple[State, Losses]:
        def actor_loss(params: Params) -> tuple[Array, tuple[Array, Array]]:
            action, log_prob = distributions.squashed_sample(key, *actor.apply(params, batch.obs))
            values = twins.apply(state.critics, batch.obs, action)  # [2, B]
            ascended = values[0] if config.actor_q == "first" else values.min(0)
            # The value's target uses the same sample, and always the smaller twin.
            return (hyper.temperature * log_prob - ascended).mean(), (log_prob, values.min(0))

        actor_params, actor_optimizer, loss, (log_prob, lower) = descend(
            adam(hyper.actor_lr, hyper.max_grad_norm), actor_loss, state.actor, state.actor_optimizer
        )
        target = batch.reward + batch.discount * state_value.apply(state.target_value, batch.next_obs)
        soft_value = lower - hyper.temperature * log_prob

        def critic_loss(params: tuple[Params, Params]) -> tuple[Array, None]:
            error = twins.apply(params[0], batch.obs, batch.action) - target  # [2, B]
            value_error = state_value.apply(params[1], batch.obs) - soft_value
            return 0.5 * (jnp.square(error).mean(1).sum() + jnp.square(value_error).mean()), None

        (critics, value), critic_optimizer, error, _ = descend(
            adam(hyper.critic_lr, hyper.max_grad_norm),
            critic_loss,
            (state.critics, state.value),
            state.critic_optimizer,
        )
        state = replace(
            state,
            actor=actor_params,
            critics=critics,
            value=value,
            target_value=tree.polyak(state.target_value, value, hyper.polyak),
            actor_optimizer=actor_optimizer,
            critic_optimizer=critic_optimizer,
        )
        return state, Losses(critic_loss=error, actor_loss=loss, entropy=-log_prob.mean())

    agent = Agent(
        init=init,
        act=distributions.acting(actions, actor.apply),
        learn=learn,
        policy=lambda state: state.actor,
        adopt=adopt,
        inherit=inherit,
        value=action_value,
        outputs=actor.apply,
        actions=actions,
        actor=actor,
        critic=twins,
        values=values,
        state_value=lambda state: state.value,
    )
    return normalize.whitened(agent, spec.obs_shape) if config.normalize_obs else agent
