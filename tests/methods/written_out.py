"""A step of SAC written out, and a task to take it in, for methods that change a part of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from popjax import distributions
from popjax.agents import sac
from popjax.core import Env, Spec, Timestep
from popjax.replay import ring
from tests.agents.by_hand import blend, forward, relu, stepped

ACTION_DIM = 2
APART = sac.Hyper(
    discount=0.9,
    polyak=0.05,
    actor_lr=1e-2,
    critic_lr=2e-2,
    temperature_lr=3e-2,
    init_temperature=0.4,
    target_entropy=-0.7,
)
"""Numbers that one in the place of another would show; in a few steps networks leave their targets behind."""
ROUNDING = {"rtol": 1e-5, "atol": 2e-6}
"""Tolerances for what ``stepped`` returns; Adam hides most of a wrong scale, so little more shows one."""


def task():
    """Three observations and two actions, with episodes that end, or are cut off after 7 steps."""
    chance = np.random.default_rng(0)
    drift, push = (jnp.asarray(chance.normal(size=(n, 3)), jnp.float32) for n in (3, ACTION_DIM))

    def reset(key):
        obs = jax.random.normal(key, (3,))
        return (obs, jnp.int32(0)), obs

    def step(state, action):
        obs, t = jnp.tanh(state[0] @ drift + action @ push), state[1] + 1
        terminated = jnp.abs(obs[0]) > 0.97
        return (obs, t), Timestep(obs, obs, obs.sum(), terminated, (t == 7) & ~terminated)

    return Env(reset, step, Spec("own/drift", (3,), ACTION_DIM, 7))


def leave_nothing_to_chance(monkeypatch):
    """Batches are made of every third row, and ``sampled`` draws the actions that learners evaluate."""
    monkeypatch.setattr(ring, "uniform", lambda store, key, count: 3 * jnp.arange(count))
    monkeypatch.setattr(distributions, "squashed_sample", lambda key, *outputs: sampled(*outputs))


def sampled(mean, log_std):
    """tanh of a Gaussian, always with the same noise, and its log density."""
    noise = np.random.default_rng(1).normal(size=mean.shape)
    u = mean + jnp.exp(log_std) * noise
    gaussian = -0.5 * noise**2 - 0.5 * np.log(2 * np.pi) - log_std
    return jnp.tanh(u), (gaussian + 2 * jnp.log(jnp.cosh(u))).sum(-1)


def policy(actor, obs):
    """Mean and log standard deviation before the tanh."""
    mean, features = forward(actor["mlp"], obs, relu)
    layer = actor["log_std"]["linear"]
    return mean, jnp.clip(features @ layer["kernel"] + layer["bias"], -20, 2)


def value(critic, obs, action):
    return forward(critic["mlp"], jnp.concatenate([obs, action], -1), relu)[0][..., 0]


twins = jax.vmap(value, (0, None, None))


def mean_value(critics, obs, action):
    return twins(critics, obs, action).mean(0)


def target(state, rows, reward, next_value):
    """Soft TD targets [B] of critics whose targets are ``next_value(obs, action)``."""
    action, log_prob = sampled(*policy(state.actor, rows.next_obs))
    soft = next_value(rows.next_obs, action) - jnp.exp(state.log_temperature) * log_prob
    return reward + APART.discount * rows.discount * soft


@jax.jit
def critics_gradient(state, rows, weight):
    y = target(state, rows, rows.reward, lambda *at: twins(state.target_critics, *at).min(0))
    return jax.grad(lambda p: (weight * (twins(p, rows.obs, rows.action) - y) ** 2).mean())(state.critics)


def actor_gradient(state, obs, ascended, weight=1.0):
    """Gradient of the loss of an actor that ascends ``ascended(obs, action)``, and the policy's entropy."""

    def loss(actor):
        action, log_prob = sampled(*policy(actor, obs))
        cost = jnp.exp(state.log_temperature) * log_prob - ascended(obs, action)
        return (weight * cost).mean(), -(weight * log_prob).mean() / jnp.mean(weight)

    return jax.grad(loss, has_aux=True)(state.actor)


def learn_critics(state, rows, weight=1.0):
    """New critics and targets."""
    gradient = critics_gradient(state, rows, weight)
    critics = stepped(state.critics, gradient, APART.critic_lr, APART.max_grad_norm, state.critic_optimizer)
    return critics, blend(state.target_critics, critics, APART.polyak)


def learn_temperature(state, entropy):
    """The new log temperature."""
    gradient = jnp.exp(state.log_temperature) * (entropy - APART.target_entropy * ACTION_DIM)
    return stepped(
        state.log_temperature, gradient, APART.temperature_lr, optimizer=state.temperature_optimizer
    )
