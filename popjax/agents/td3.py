"""Twin delayed deep deterministic policy gradient. Fujimoto, van Hoof & Meger, ICML 2018.

Constants of the authors' repository since 2019: 256-256 networks, Adam 3e-4, batch 256. The critics' loss is
the mean over both; theirs is the sum, which makes no difference under Adam.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import distributions, nets, normalize, tree
from popjax.checks import check_least, check_types, check_widths
from popjax.core import Agent, Key, Number, Params, PyTree, Spec, Transition, continuous_dims, number
from popjax.optimize import adam, descend


@dataclass(frozen=True)
class Config:
    """Shapes of the networks and the delay of the actor."""

    hidden: tuple[int, ...] = (256, 256)  # units of the hidden layers of actor and critics
    policy_delay: int = 2  # gradient steps of the critics per step of actor and targets
    normalize_obs: bool = False  # observations are whitened by their running statistics
    precision: nets.Precision = "float32"  # precision of hidden layers in gradient steps; acting uses float32

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)
        check_least(self, 1, "policy_delay")


@struct.dataclass
class Hyper:
    """Hyperparameters of one TD3 learner."""

    discount: Number = number(0.99, high=1.0)  # gamma, per environment step
    polyak: Number = number(0.005, high=1.0)  # share by which targets move to the online ones per actor step
    actor_lr: Number = number(3e-4)  # Adam's rate for the actor
    critic_lr: Number = number(3e-4)  # Adam's rate for the twin critics
    max_grad_norm: Number = number(math.inf, high=math.inf)  # global norm to which each gradient is clipped
    target_noise: Number = number(0.2)  # standard deviation of the noise on target actions
    target_noise_clip: Number = number(0.5, high=math.inf)  # largest size of that noise
    exploration: Number = number(0.1)  # standard deviation of Gaussian action noise while collecting


@struct.dataclass
class State:
    """Online and target networks, Adam's moments; delayed: int32 [] gradient steps since the actor's last."""

    actor: Params
    critics: Params
    target_actor: Params
    target_critics: Params
    actor_optimizer: PyTree
    critic_optimizer: PyTree
    delayed: Array


@struct.dataclass
class Losses:
    """critic_loss: mean squared TD error over both critics; actor_loss: minus the mean value of the actor's
    actions, 0 in a step without an actor update; [] each."""

    critic_loss: Array
    actor_loss: Array


def build(spec: Spec, config: Config = Config()) -> Agent:
    """Return a TD3 learner."""
    obs_dim, action_dim = continuous_dims(spec, "td3")
    actor = nets.tanh_actor(obs_dim, action_dim, config.hidden)
    learnt = nets.tanh_actor(obs_dim, action_dim, config.hidden, precision=config.precision)
    critic = nets.critic(obs_dim, action_dim, config.hidden, precision=config.precision)
    twins = nets.ensemble(critic, 2)
    actions = distributions.deterministic()

    def init(key: Key, hyper: Hyper) -> State:
        key_actor, key_critic = jax.random.split(key)
        actor_params, critic_params = actor.init(key_actor), twins.init(key_critic)
        return State(
            actor=actor_params,
            critics=critic_params,
            target_actor=actor_params,
            target_critics=critic_params,
            actor_optimizer=adam(hyper.actor_lr, hyper.max_grad_norm).init(actor_params),
            critic_optimizer=adam(hyper.critic_lr, hyper.max_grad_norm).init(critic_params),
            delayed=jnp.int32(0),
        )

    def inherit(state: State, other: State) -> State:
        return replace(
            other,
            actor_optimizer=state.actor_optimizer,
            critic_optimizer=state.critic_optimizer,
            delayed=state.delayed,
        )

    def adopt(state: State, policy: Params, value: Params = None) -> State:
        return replace(state, actor=policy, target_actor=policy)

    def values(state: State, obs: Array, action: Array) -> Array:
        return twins.apply(state.critics, obs, action)

    def value(state: State, obs: Array, action: Array) -> Array:
        return values(state, obs, action).min(0)

    def target_value(state: State, batch: Transition, hyper: Hyper, key: Key) -> Array:
        """Return the target [B] by clipped double Q with target policy smoothing."""
        noise = hyper.target_noise * jax.random.normal(key, batch.action.shape)
        noise = jnp.clip(noise, -hyper.target_noise_clip, hyper.target_noise_clip)
        next_action = jnp.clip(learnt.apply(state.target_actor, batch.next_obs) + noise, -1.0, 1.0)
        next_values = twins.apply(state.target_critics, batch.next_obs, next_action)  # [2, B]
        return batch.reward + batch.discount * next_values.min(0)

    def learn_actor(state: State, batch: Transition, hyper: Hyper) -> tuple[State, Array]:
        first = tree.take(state.critics, 0)

        def loss(params: Params) -> tuple[Array, None]:
            return -jnp.mean(critic.apply(first, batch.obs, learnt.apply(params, batch.obs))), None

        params, optimizer, value, _ = descend(
            adam(hyper.actor_lr, hyper.max_grad_norm), loss, state.actor, state.actor_optimizer
        )
        return replace(
            state,
            actor=params,
            actor_optimizer=optimizer,
            target_actor=tree.polyak(state.target_actor, params, hyper.polyak),
            target_critics=tree.polyak(state.target_critics, state.critics, hyper.polyak),
        ), value

    def learn(state: State, batch: Transition, hyper: Hyper, key: Key) -> tuple[State, Losses]:
        target = target_value(state, batch, hyper, key)

        def loss(params: Params) -> tuple[Array, None]:
            errors = twins.apply(params, batch.obs, batch.action) - target  # [2, B]
            return jnp.mean(errors**2), None

        critics, critic_optimizer, critic_value, _ = descend(
            adam(hyper.critic_lr, hyper.max_grad_norm), loss, state.critics, state.critic_optimizer
        )
        delayed = (state.delayed + 1) % config.policy_delay
        state = replace(state, critics=critics, critic_optimizer=critic_optimizer, delayed=delayed)
        due = delayed == 0

        def once(_: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
            return tree.where(due, learn_actor(carry[0], batch, hyper), carry)

        # Use a loop of at most one turn, because a branch would copy the State on an accelerator. One loop
        # serves all lanes, since the individuals of a population are due together.
        turns = tree.any_lane(due).astype(jnp.int32)
        state, actor_value = jax.lax.fori_loop(0, turns, once, (state, jnp.float32(0)))
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
        critic=twins,
        values=values,
    )
    return normalize.whitened(agent, spec.obs_shape) if config.normalize_obs else agent
