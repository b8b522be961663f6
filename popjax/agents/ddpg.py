"""Deep deterministic policy gradient, in the form that ERL and PDERL train beside their populations.

Lillicrap et al., ICLR 2016; networks, clipping and constants of Bodnar, Day & Lio, AAAI 2020, and their code.
The actor step uses the critic that the same step has just updated. ``BASELINES`` and ``baselines_hyper`` are
the other common form, with layer norm in both networks, normalized observations and a penalty on the critic's
weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import distributions, nets, normalize, tree
from popjax.checks import check_least, check_types, check_widths
from popjax.core import (
    Agent,
    Key,
    Network,
    Number,
    Params,
    PyTree,
    Spec,
    Transition,
    continuous_dims,
    importance,
    number,
)
from popjax.optimize import adam, descend


@dataclass(frozen=True)
class Config:
    """Shapes of the networks."""

    hidden: tuple[int, ...] = (128, 128)  # units of the actor's hidden layers
    critic: Literal["branches", "layers"] = "branches"  # critic: ERL's, or plain hidden layers
    critic_branch: int = 200  # "branches": units of the first layer, for observation and action each
    critic_hidden: int = 300  # "branches": units of the second layer
    critic_layers: tuple[int, ...] = (64, 64)  # "layers": units; layers have the common layer norm and ReLU
    action_layer: int = 1  # "layers": the hidden layer that the action joins; 0: with the observation
    activation: Literal["tanh", "relu"] = "tanh"  # activation of the actor's hidden layers
    norm: nets.Norm = "erl"  # norm of the actor's hidden layers; "erl" is the layer norm of ERL
    # initialization of the actor: PyTorch's, or Glorot's with a small output layer
    first_weights: Literal["torch", "glorot"] = "torch"
    normalize: bool = False  # whether observations are whitened by running statistics, clipped to [-5, 5]
    output_scale: float = 0.1  # "torch", "branches": multiplies the learner's initial output layers

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)
        check_least(self, 1, "critic_branch", "critic_hidden")
        if self.critic == "layers" and not 0 <= self.action_layer < len(self.critic_layers):
            raise ValueError(
                f"action_layer must be at least 0 and below {len(self.critic_layers)}, the number of"
                f" critic_layers, got {self.action_layer}"
            )


BASELINES = Config(
    hidden=(64, 64), critic="layers", activation="relu", norm="layer", first_weights="glorot", normalize=True
)
"""The networks of OpenAI Baselines as Plappert et al. (ICLR 2018) describe them, appendix A: actions join at
the second hidden layer. Their program whitens observations by a deviation of at least 0.1; here it has no
floor."""


@struct.dataclass
class Hyper:
    """Hyperparameters of one DDPG learner."""

    discount: Number = number(0.99, high=1.0)  # gamma, per environment step
    polyak: Number = number(0.001, high=1.0)  # share by which targets move to the online networks per step
    actor_lr: Number = number(5e-5)  # Adam's rate for the actor
    critic_lr: Number = number(5e-4)  # Adam's rate for the critic
    max_grad_norm: Number = number(10.0, high=math.inf)  # global norm to which each gradient is clipped
    critic_l2: Number = number(0.0)  # weight of the critic's squared hidden weights in its loss
    exploration: Number = number(0.1)  # standard deviation of Gaussian action noise while collecting


def baselines_hyper() -> Hyper:
    """Return the hyperparameters that belong to ``BASELINES``.

    The weight of the penalty on the critic is CA2E's, which halves both the squared error and the squared
    weights. Baselines halves only the squared weights, so its penalty is half as strong.
    """
    return Hyper(polyak=1e-3, actor_lr=1e-4, critic_lr=1e-3, max_grad_norm=math.inf, critic_l2=1e-2)


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
    """critic_loss: mean of the weighted squared TD error, plus the penalty; actor_loss: minus the mean value
    of the actor's actions; [] each."""

    critic_loss: Array
    actor_loss: Array


def ornstein_uhlenbeck(noise: Array, normal: Array, theta: Array | float, sigma: Array | float) -> Array:
    """Return the next value of a discrete Ornstein-Uhlenbeck process around 0, given standard normals [A]."""
    return noise - theta * noise + sigma * normal


def build(spec: Spec, config: Config = Config()) -> Agent:
    """Return a DDPG learner.

    Its ``actor`` network is initialised at full scale, as PDERL draws its population; the output layers of
    the learner's own actor and of its critic are multiplied by ``config.output_scale``.
    """
    obs_dim, action_dim = continuous_dims(spec, "ddpg")
    actor, critic = _actor(obs_dim, action_dim, config, 1.0), _critic(obs_dim, action_dim, config)
    actions = distributions.deterministic()
    first_actor = _actor(obs_dim, action_dim, config, config.output_scale)

    def init(key: Key, hyper: Hyper) -> State:
        key_actor, key_critic = jax.random.split(key)
        actor_params = first_actor.init(key_actor)
        critic_params = critic.init(key_critic)
        return State(
            actor=actor_params,
            critic=critic_params,
            target_actor=actor_params,
            target_critic=critic_params,
            actor_optimizer=adam(hyper.actor_lr, hyper.max_grad_norm).init(actor_params),
            critic_optimizer=adam(hyper.critic_lr, hyper.max_grad_norm).init(critic_params),
        )

    def inherit(state: State, other: State) -> State:
        return replace(other, actor_optimizer=state.actor_optimizer, critic_optimizer=state.critic_optimizer)

    def adopt(state: State, policy: Params, value: Params = None) -> State:
        return replace(state, actor=policy, target_actor=policy)

    def value(state: State, obs: Array, action: Array) -> Array:
        return critic.apply(state.critic, obs, action)

    def targets(state: State, batch: Transition) -> Array:
        """Return the targets [B] of the value of transitions."""
        next_action = actor.apply(state.target_actor, batch.next_obs)
        next_value = critic.apply(state.target_critic, batch.next_obs, next_action)
        return batch.reward + batch.discount * next_value

    def td_error(state: State, batch: Transition) -> Array:
        return targets(state, batch) - value(state, batch.obs, batch.action)

    def learn(state: State, batch: Transition, hyper: Hyper, key: Key) -> tuple[State, Losses]:
        target, weight = targets(state, batch), importance(batch)

        def critic_loss(params: Params) -> tuple[Array, None]:
            error = jnp.mean(weight * (critic.apply(params, batch.obs, batch.action) - target) ** 2)
            return error + hyper.critic_l2 * nets.hidden_squares(params), None

        critic_params, critic_optimizer, critic_value, _ = descend(
            adam(hyper.critic_lr, hyper.max_grad_norm), critic_loss, state.critic, state.critic_optimizer
        )

        def actor_loss(params: Params) -> tuple[Array, None]:
            value = critic.apply(critic_params, batch.obs, actor.apply(params, batch.obs))
            return -jnp.mean(value), None

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

    agent = Agent(
        init=init,
        act=distributions.acting(actions, actor.apply),
        learn=learn,
        policy=lambda state: state.actor,
        adopt=adopt,
        inherit=inherit,
        value=value,
        outputs=actor.apply,
        actions=actions,
        actor=actor,
        critic=critic,
        td_error=td_error,
    )
    return normalize.whitened(agent, spec.obs_shape, clip=5.0) if config.normalize else agent


def _actor(obs_dim: int, action_dim: int, config: Config, output_scale: float) -> Network:
    glorot = config.first_weights == "glorot"
    return nets.tanh_actor(
        obs_dim,
        action_dim,
        config.hidden,
        activation=config.activation,
        norm=config.norm,
        final_scale=1.0 if glorot else output_scale,
        initializer="glorot" if glorot else "uniform_fan_in",
        final_initializer="small" if glorot else None,
    )


def _critic(obs_dim: int, action_dim: int, config: Config) -> Network:
    if config.critic == "layers":
        return nets.late_action_critic(obs_dim, action_dim, config.critic_layers, config.action_layer)
    return nets.two_branch_critic(
        obs_dim, action_dim, config.critic_branch, config.critic_hidden, final_scale=config.output_scale
    )
