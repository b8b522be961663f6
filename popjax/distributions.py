"""Distributions over actions, parametrized by the outputs of a policy network.

Pure functions of the network's outputs; leading axes are free, and log-probability and entropy are in nats,
summed over the components of an action.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from popjax.core import Act, Choice, Distribution, Key, Params, PyTree, Spec


def choose(family: Distribution, memory: PyTree, outputs: Any, key: Key, scale: Array | float) -> Choice:
    """Return the Choice of a policy from its network's ``outputs`` and its new ``memory``.

    If ``scale`` is the Python number 0.0, not an array, no noise is drawn: that would take several times as
    long as a small network.
    """
    greedy = isinstance(scale, int | float) and scale == 0
    sampled = family.mode(outputs) if greedy else family.sample(key, outputs, scale)
    return Choice(memory, family.bounded(sampled), sampled, family.log_prob(outputs, sampled))


def acting(family: Distribution, outputs: Callable[[Params, Array], Any]) -> Act:
    """Return how a policy without a memory acts: by ``choose`` from the ``outputs(params, obs)`` of its
    network."""

    def act(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        return choose(family, memory, outputs(params, obs), key, scale)

    return act


def of(spec: Spec, *, squash: bool = False) -> Distribution:
    """Return the family for the actions of an environment; ``squash`` applies tanh to continuous ones."""
    if spec.discrete:
        return categorical()
    return squashed() if squash else gaussian()


def categorical() -> Distribution:
    """Return the family whose outputs are logits [..., A], actions int32 [...]. ``scale`` is the
    temperature."""

    def sample(key: Key, logits: Array, scale: Array | float) -> Array:
        # Gumbel's trick: unlike division of the logits by the temperature, it allows a temperature of 0.
        noise = jax.random.gumbel(key, logits.shape)
        return jnp.argmax(logits + scale * noise, -1).astype(jnp.int32)

    def log_prob(logits: Array, action: Array) -> Array:
        log_probs = _log_probs(logits)
        taken = jax.nn.one_hot(action, logits.shape[-1], axis=0, dtype=bool)
        return jnp.where(taken, log_probs, 0.0).sum(0)

    def entropy(logits: Array) -> Array:
        log_probs = _log_probs(logits)
        return -(jnp.exp(log_probs) * log_probs).sum(0)

    def mode(logits: Array) -> Array:
        return jnp.argmax(logits, -1).astype(jnp.int32)

    def kl(p: Array, q: Array) -> Array:
        log_p, log_q = _log_probs(p), _log_probs(q)
        return (jnp.exp(log_p) * (log_p - log_q)).sum(0)

    return Distribution(sample, log_prob, entropy, mode, _as_is, vector=_as_is, kl=kl)


def _log_probs(logits: Array) -> Array:
    """Return the log-probabilities [A, ...] of logits [..., A].

    The axis of actions comes first, because a CPU sums over the first axis in whole vectors, but over the
    last axis one number at a time. PPO on CartPole takes a fifth less time.
    """
    return jax.nn.log_softmax(jnp.moveaxis(logits, -1, 0), 0)


def epsilon_greedy() -> Distribution:
    """Return the family whose outputs are values [..., A] of discrete actions int32 [...]. ``scale`` is the
    probability of a uniformly random action.

    Log-probability, entropy and divergence are those of the softmax of the values.
    """

    def sample(key: Key, values: Array, scale: Array | float) -> Array:
        key_random, key_action = jax.random.split(key)
        best = jnp.argmax(values, -1).astype(jnp.int32)
        action = jax.random.randint(key_action, best.shape, 0, values.shape[-1], jnp.int32)
        return jnp.where(jax.random.uniform(key_random, best.shape) < scale, action, best)

    return categorical()._replace(sample=sample)


def deterministic() -> Distribution:
    """Return the family whose outputs are actions [..., A] in [-1, 1]. ``scale`` is the standard deviation of
    Gaussian noise.

    There is no density: log-probability and entropy are 0.
    """

    def sample(key: Key, action: Array, scale: Array | float) -> Array:
        return jnp.clip(action + scale * jax.random.normal(key, action.shape), -1.0, 1.0)

    def none(outputs: Array, *_: Array) -> Array:
        return jnp.zeros(outputs.shape[:-1])

    return Distribution(sample, none, none, mode=_as_is, bounded=_as_is, vector=_as_is)


def gaussian() -> Distribution:
    """Return the family whose outputs are (mean [..., A], log std [..., A]) of independent normals, actions
    float32 [..., A].

    An action is any number. It is clipped to [-1, 1] only for the environment; log-probability and
    entropy are those of the unclipped action. ``scale`` multiplies the standard deviation.
    """
    half_log_2_pi = 0.5 * math.log(2 * math.pi)

    def sample(key: Key, outputs: tuple[Array, Array], scale: Array | float) -> Array:
        mean, log_std = outputs
        return mean + scale * jnp.exp(log_std) * jax.random.normal(key, mean.shape)

    def log_prob(outputs: tuple[Array, Array], action: Array) -> Array:
        mean, log_std = outputs
        deviation = (action - mean) * jnp.exp(-log_std)
        return (-0.5 * jnp.square(deviation) - log_std - half_log_2_pi).sum(-1)

    def entropy(outputs: tuple[Array, Array]) -> Array:
        return (outputs[1] + half_log_2_pi + 0.5).sum(-1)

    def kl(p: tuple[Array, Array], q: tuple[Array, Array]) -> Array:
        (mean_p, log_std_p), (mean_q, log_std_q) = p, q
        ratio = jnp.exp(2 * (log_std_p - log_std_q))
        shift = jnp.square(mean_p - mean_q) * jnp.exp(-2 * log_std_q)
        return (log_std_q - log_std_p + 0.5 * (ratio + shift - 1)).sum(-1)

    def clipped(action: Array) -> Array:
        return jnp.clip(action, -1.0, 1.0)

    return Distribution(
        sample=sample,
        log_prob=log_prob,
        entropy=entropy,
        mode=lambda outputs: outputs[0],
        bounded=clipped,
        vector=lambda outputs: clipped(outputs[0]),
        kl=kl,
    )


def squashed() -> Distribution:
    """Return ``gaussian()`` for an environment that applies tanh to actions.

    Actions and log-probabilities are those before the tanh. The tanh changes the density by a term that
    depends on the action alone and cancels in ratios and divergences of two policies; the entropy is the
    Gaussian's.
    """
    return gaussian()._replace(bounded=jnp.tanh, vector=lambda outputs: jnp.tanh(outputs[0]))


def squashed_mean() -> Distribution:
    """Return ``deterministic`` for an environment that applies tanh to actions: outputs [..., A] are actions
    before the tanh."""
    family = deterministic()

    def sample(key: Key, outputs: Array, scale: Array | float) -> Array:
        return family.sample(key, jnp.tanh(outputs), scale)

    return family._replace(sample=sample, mode=jnp.tanh, vector=jnp.tanh)


def _as_is(x: Array) -> Array:
    return x


def squashed_sample(key: Key, mean: Array, log_std: Array) -> tuple[Array, Array]:
    """Return a sample of tanh(N(mean, std^2)) and its log density: action [..., A], log_prob [...].

    The log-determinant of tanh is ``2 (log 2 - u - softplus(-2u))``, exact for all u.
    """
    noise = jax.random.normal(key, mean.shape)
    u = mean + jnp.exp(log_std) * noise
    gaussian = -0.5 * (noise**2 + jnp.log(2 * jnp.pi)) - log_std
    log_det = 2 * (jnp.log(2.0) - u - jax.nn.softplus(-2 * u))
    return jnp.tanh(u), (gaussian - log_det).sum(-1)
