"""A critic that several actors share: trained on one actor at a time, while actors take gradient steps that
increase its value.

As in CEM-RL (Pourchot & Sigaud, ICLR 2019): the gradient steps of TD3 (Fujimoto et al., 2018) without its
delay; with a single critic and no noise on target actions, those of DDPG.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import nets, tree
from popjax.core import Key, Network, Number, Params, PyTree, Spec, Transition, continuous_dims, number
from popjax.optimize import adam, descend


@struct.dataclass
class Hyper:
    """Hyperparameters of the gradient steps."""

    discount: Number = number(0.99, high=1.0)  # gamma, per environment step
    polyak: Number = number(0.005, high=1.0)  # share by which targets move to the online critics per step
    actor_lr: Number = number(1e-3)  # Adam's rate for actors
    critic_lr: Number = number(1e-3)  # Adam's rate for the critics
    target_noise: Number = number(0.2)  # standard deviation of the noise on target actions
    target_noise_clip: Number = number(0.5, high=math.inf)  # largest size of that noise


@struct.dataclass
class Critic:
    """Online and target critics [C], and Adam's moments."""

    params: Params
    target: Params
    optimizer: PyTree


class SharedCritic(NamedTuple):
    """The functions of a critic and of the actors that share it.

    actor: network of the actors, deterministic
    init:  (key, hyper) -> Critic
    learn: (critic, target actor, rows [B], hyper, key) -> (critic, loss): a gradient step towards the
           smallest value that the C target critics give to the target actor's action
    begin: (actor, hyper) -> the actor with fresh moments of its optimizer
    climb: (actor with its moments, judge, obs [B, *obs], hyper) -> (the same, loss): a gradient step up the
           value that the parameters ``judge`` of one critic give to the actor's actions
    """

    actor: Network
    init: Callable[[Key, Hyper], Critic]
    learn: Callable[[Critic, Params, Transition, Hyper, Key], tuple[Critic, Array]]
    begin: Callable[[Params, Hyper], tuple[Params, PyTree]]
    climb: Callable[[Any, Params, Array, Hyper], tuple[Any, Array]]


def build(spec: Spec, hidden: tuple[int, ...], count: int, who: str) -> SharedCritic:
    """Return ``count`` critics with leaky ReLUs and actors with tanh between layers of ``hidden`` units.
    ``who`` names the learner in errors.

    Raises:
        ValueError: actions are discrete, or observations are not vectors.
    """
    dims = continuous_dims(spec, who)
    actor = nets.tanh_actor(*dims, hidden, activation="tanh")
    critic = nets.critic(*dims, hidden, activation="leaky_relu")
    critics = nets.ensemble(critic, count)

    def init(key: Key, hyper: Hyper) -> Critic:
        params = critics.init(key)
        return Critic(params, params, adam(hyper.critic_lr, jnp.inf).init(params))

    def learn(
        state: Critic, target_actor: Params, rows: Transition, hyper: Hyper, key: Key
    ) -> tuple[Critic, Array]:
        noise = hyper.target_noise * jax.random.normal(key, rows.action.shape)
        noise = jnp.clip(noise, -hyper.target_noise_clip, hyper.target_noise_clip)
        action = jnp.clip(actor.apply(target_actor, rows.next_obs) + noise, -1.0, 1.0)
        target = rows.reward + rows.discount * critics.apply(state.target, rows.next_obs, action).min(0)

        def loss(params: Params) -> tuple[Array, None]:
            return jnp.square(critics.apply(params, rows.obs, rows.action) - target).mean(1).sum(), None

        optimizer = adam(hyper.critic_lr, jnp.inf)
        params, moments, value, _ = descend(optimizer, loss, state.params, state.optimizer)
        return Critic(params, tree.polyak(state.target, params, hyper.polyak), moments), value

    def begin(params: Params, hyper: Hyper) -> tuple[Params, PyTree]:
        return params, adam(hyper.actor_lr, jnp.inf).init(params)

    def climb(
        climber: tuple[Params, PyTree], judge: Params, obs: Array, hyper: Hyper
    ) -> tuple[tuple[Params, PyTree], Array]:
        def loss(params: Params) -> tuple[Array, None]:
            return -critic.apply(judge, obs, actor.apply(params, obs)).mean(), None

        params, moments, value, _ = descend(adam(hyper.actor_lr, jnp.inf), loss, *climber)
        return (params, moments), value

    return SharedCritic(actor, init, learn, begin, climb)
