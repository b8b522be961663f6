"""Deep deterministic policy gradient, in the form that ERL and PDERL train beside their populations.

Lillicrap et al., ICLR 2016; networks, clipping and constants of Bodnar, Day & Lio, AAAI 2020, and its code.
The actor step uses the critic that the same step has just updated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import nets, tree
from popjax.core import Agent, Key, Number, Params, PyTree, Spec, Transition, continuous_dims, number
from popjax.optimize import adam, descend


@dataclass(frozen=True)
class Config:
    """Shapes of the networks."""

    hidden: tuple[int, ...] = (128, 128)  # actor's hidden layers, units
    critic_branch: int = 200  # critic's first layer, units for observation and action each
    critic_hidden: int = 300  # critic's second layer, units
    activation: Literal["tanh", "relu"] = "tanh"  # between the actor's layers
    norm: bool = True  # whether the actor's layers are normalized
    output_scale: float = 0.1  # multiplies the initial output layers of the learner's actor and critic


@struct.dataclass
class Hyper:
    """Numbers of one DDPG learner."""

    discount: Number = number(0.99, high=1.0)  # gamma, per environment step
    polyak: Number = number(0.001, high=1.0)  # share of the online network that a target takes per step
    actor_lr: Number = number(5e-5)  # Adam's rate for the actor
    critic_lr: Number = number(5e-4)  # Adam's rate for the critic
    max_grad_norm: Number = number(10.0)  # global norm to which each network's gradient is clipped
    exploration: Number = number(0.1)  # standard deviation of Gaussian action noise while collecting


@struct.dataclass
class State:
    """Online and target networks, and Adam's moments."""

    actor: Params
    critic: Params
    target_actor: Params
    target_critic: Params
    actor_optimizer: PyTree
    critic_optimizer: PyTree


@struct.dataclass
class Losses:
    """critic_loss: mean squared TD error; actor_loss: minus the mean value of its actions; [] each."""

    critic_loss: Array
    actor_loss: Array


def ornstein_uhlenbeck(noise: Array, normal: Array, theta: Array | float, sigma: Array | float) -> Array:
    """The next value of a discrete Ornstein-Uhlenbeck process around 0, given standard normals [A]."""
    return noise - theta * noise + sigma * normal


def build(spec: Spec, config: Config = Config()) -> Agent:
    """A DDPG learner.

    Its ``actor`` network is initialised at full scale, as PDERL draws its population; the output layers of
    the learner's own actor and of its critic are multiplied by ``config.output_scale``.
    """
    obs_dim, action_dim = continuous_dims(spec, "ddpg")

    def make_actor(final_scale: float) -> nets.Network:
        return nets.tanh_actor(
            obs_dim,
            action_dim,
            config.hidden,
            activation=config.activation,
            norm=config.norm,
            final_scale=final_scale,
        )

    actor = make_actor(1.0)
    critic = nets.two_branch_critic(
        obs_dim, action_dim, config.critic_branch, config.critic_hidden, final_scale=config.output_scale
    )

    def init(key: Key, hyper: Hyper) -> State:
        key_actor, key_critic = jax.random.split(key)
        actor_params = make_actor(config.output_scale).init(key_actor)
        critic_params = critic.init(key_critic)
        return State(
            actor=actor_params,
            critic=critic_params,
            target_actor=actor_params,
            target_critic=critic_params,
            actor_optimizer=adam(hyper.actor_lr, hyper.max_grad_norm).init(actor_params),
            critic_optimizer=adam(hyper.critic_lr, hyper.max_grad_norm).init(critic_params),
        )

    def act(key: Key, params: Params, obs: Array, scale: Array | float) -> Array:
        action = actor.apply(params, obs)
        return jnp.clip(action + scale * jax.random.normal(key, action.shape), -1.0, 1.0)

    def learn(state: State, batch: Transition, hyper: Hyper, key: Key) -> tuple[State, Losses]:
        next_action = actor.apply(state.target_actor, batch.next_obs)
        next_value = critic.apply(state.target_critic, batch.next_obs, next_action)
        target = batch.reward + batch.discount * next_value  # [B]

        def critic_loss(params: Params) -> tuple[Array, None]:
            return jnp.mean((critic.apply(params, batch.obs, batch.action) - target) ** 2), None

        critic_params, critic_optimizer, critic_value, _ = descend(
            adam(hyper.critic_lr, hyper.max_grad_norm), critic_loss, state.critic, state.critic_optimizer
        )

        def actor_loss(params: Params) -> tuple[Array, None]:
            return -jnp.mean(critic.apply(critic_params, batch.obs, actor.apply(params, batch.obs))), None

        actor_params, actor_optimizer, actor_value, _ = descend(
            adam(hyper.actor_lr, hyper.max_grad_norm), actor_loss, state.actor, state.actor_optimizer
        )
        state = State(
            actor=actor_params,
            critic=critic_params,
            target_actor=tree.polyak(state.target_actor, actor_params, hyper.polyak),
            target_critic=tree.polyak(state.target_critic, critic_params, hyper.polyak),
            actor_optimizer=actor_optimizer,
            critic_optimizer=critic_optimizer,
        )
        return state, Losses(critic_loss=critic_value, actor_loss=actor_value)

    return Agent(
        init=init, act=act, learn=learn, params=lambda state: state.actor, actor=actor, critic=critic
    )
