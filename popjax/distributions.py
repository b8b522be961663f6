"""Distributions over actions, told by what a policy network returns.

Pure functions of the network's outputs; leading axes are free, and log-probability and entropy are in nats,
summed over the components of an action.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from popjax.core import Key, Spec


class Distribution(NamedTuple):
    """A family of distributions over actions.

    sample:   (key, outputs, scale) -> action; ``scale`` 1 draws from the distribution, 0 is its mode, and
              between them lie narrower ones
    log_prob: (outputs, action) -> [...], that of ``scale`` 1
    entropy:  outputs -> [...]
    mode:     outputs -> action
    bounded:  action -> what an environment takes of it
    """

    sample: Callable[[Key, Any, Array | float], Array]
    log_prob: Callable[[Any, Array], Array]
    entropy: Callable[[Any], Array]
    mode: Callable[[Any], Array]
    bounded: Callable[[Array], Array]


def of(spec: Spec, *, squash: bool = False) -> Distribution:
    """The family for the actions of an environment; ``squash`` concerns continuous ones."""
    if spec.discrete:
        return categorical()
    return squashed() if squash else gaussian()


def categorical() -> Distribution:
    """Outputs are logits [..., A], actions int32 [...]. ``scale`` is the temperature."""

    def sample(key: Key, logits: Array, scale: Array | float) -> Array:
        # Gumbel's trick; unlike division by the temperature it reaches 0.
        noise = jax.random.gumbel(key, logits.shape)
        return jnp.argmax(logits + scale * noise, -1).astype(jnp.int32)

    def log_prob(logits: Array, action: Array) -> Array:
        return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], -1)[..., 0]

    def entropy(logits: Array) -> Array:
        log_probs = jax.nn.log_softmax(logits)
        return -(jnp.exp(log_probs) * log_probs).sum(-1)

    def mode(logits: Array) -> Array:
        return jnp.argmax(logits, -1).astype(jnp.int32)

    return Distribution(sample, log_prob, entropy, mode, bounded=lambda action: action)


def gaussian() -> Distribution:
    """Outputs are (mean [..., A], log std [..., A]) of independent normals, actions float32 [..., A].

    An action is any number. Only what the environment takes is clipped to [-1, 1]; log-probability and
    entropy are those of the action as it was sampled. ``scale`` multiplies the standard deviation.
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

    return Distribution(
        sample=sample,
        log_prob=log_prob,
        entropy=entropy,
        mode=lambda outputs: outputs[0],
        bounded=lambda action: jnp.clip(action, -1.0, 1.0),
    )


def squashed() -> Distribution:
    """``gaussian()``, of which the environment takes the tanh.

    Actions and log-probabilities are those before it. The density of the tanh differs by a term of the action
    alone, which ratios and divergences of two policies do not see; the entropy is the Gaussian's.
    """
    return gaussian()._replace(bounded=jnp.tanh)


def squashed_sample(key: Key, mean: Array, log_std: Array) -> tuple[Array, Array]:
    """A sample of tanh(N(mean, std^2)) and its own log density: action [..., A], log_prob [...].

    The log-determinant of tanh is ``2 (log 2 - u - softplus(-2u))``, exact for all u.
    """
    noise = jax.random.normal(key, mean.shape)
    u = mean + jnp.exp(log_std) * noise
    gaussian = -0.5 * (noise**2 + jnp.log(2 * jnp.pi)) - log_std
    log_det = 2 * (jnp.log(2.0) - u - jax.nn.softplus(-2 * u))
    return jnp.tanh(u), (gaussian - log_det).sum(-1)
