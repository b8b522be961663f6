"""Diversity is all you need: skills are rewarded for visiting states that tell which skill is at work.

Source: "Diversity Is All You Need: Learning Skills without a Reward Function" (Eysenbach, Gupta, Ibarz &
Levine, 2019). The policy sees observations ``[s, one-hot skill]``, made by ``with_skill``; the discriminator
sees the state ``s`` alone, or it would read the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import nets, tree
from popjax.checks import check_widths
from popjax.core import Intrinsic, Key, Number, Params, PyTree, Transition, number
from popjax.optimize import adam, descend


@dataclass(frozen=True)
class Config:
    """Shape of the discriminator."""

    hidden: tuple[int, ...] = (300, 300)  # hidden layers, units

    def __post_init__(self) -> None:
        check_widths(self)


@struct.dataclass
class Hyper:
    """Numbers of one module."""

    lr: Number = number(3e-4)  # Adam's rate for the discriminator


@struct.dataclass
class State:
    """Discriminator and Adam's moments."""

    discriminator: Params
    optimizer: PyTree


@struct.dataclass
class Losses:
    """discriminator_loss: weighted mean cross-entropy, nats; accuracy: weighted share of states whose
    likeliest skill is the true one; [] each."""

    discriminator_loss: Array
    accuracy: Array


def with_skill(obs: Array, skill: Array, skills: int) -> Array:
    """What a policy with skills sees: obs [..., D], skill int [...] in [0, skills) -> [..., D + skills]."""
    one_hot = jax.nn.one_hot(skill, skills, dtype=obs.dtype)
    return jnp.concatenate([obs, jnp.broadcast_to(one_hot, (*obs.shape[:-1], skills))], -1)


def diayn(obs_dim: int, skills: int, config: Config = Config()) -> Intrinsic:
    """One module for ``skills`` skills and states [D], where D is ``obs_dim`` and does not count the skill.

    Observations of a batch are [B, D + skills]. ``reward`` is ``log q(z|s') - log(1/skills)``, nats, at most
    log(skills) and 0 for a discriminator that knows nothing. ``learn`` trains q by cross-entropy on ``s``.
    """
    network = nets.mlp(obs_dim, config.hidden, skills, initializer="uniform_fan_in")

    def log_q(params: Params, states: Array) -> Array:
        return jax.nn.log_softmax(network.apply(params, states))  # [B, skills]

    def split(obs: Array) -> tuple[Array, Array]:
        if obs.shape[-1] != obs_dim + skills:
            raise ValueError(f"observations need {obs_dim} + {skills} components, got {obs.shape[-1]}")
        return obs[..., :obs_dim], obs[..., obs_dim:]

    def init(key: Key) -> State:
        params = network.init(key)
        return State(params, adam(0.0, jnp.inf).init(params))

    def reward(state: State, batch: Transition) -> Array:
        # The skill is the one that acted.
        (_, skill), (successors, _) = split(batch.obs), split(batch.next_obs)
        known = (skill * log_q(state.discriminator, successors)).sum(-1)
        return jax.lax.stop_gradient(known + jnp.log(skills))

    def learn(state: State, batch: Transition, weight: Array, hyper: Hyper, key: Key) -> tuple[State, Losses]:
        counts = weight > 0
        states, skill = split(jnp.where(counts[:, None], batch.obs, 0.0))
        share = weight / jnp.where(counts.any(), weight.sum(), 1.0)

        def loss(params: Params) -> tuple[Array, Array]:
            guess = log_q(params, states)
            correct = guess.argmax(-1) == skill.argmax(-1)
            return -(share * (skill * guess).sum(-1)).sum(), (share * correct).sum()

        params, optimizer, value, accuracy = descend(
            adam(hyper.lr, jnp.inf), loss, state.discriminator, state.optimizer
        )
        # Adam moves on its momentum alone, so a batch without any weight has to be left out as a whole.
        new = tree.where(counts.any(), State(params, optimizer), state)
        return new, Losses(value, accuracy)

    return Intrinsic(init=init, reward=reward, learn=learn)
