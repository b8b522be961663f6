"""Networks of on-policy agents, in the forms of OpenAI Baselines and Spinning Up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from popjax.core import Network
from popjax.nets.layers import MLP, network

Initializer = Literal["orthogonal", "uniform"]
"""Initializer of on-policy networks, as in OpenAI Baselines or OpenAI Spinning Up (2018)."""
HIDDEN: dict[Initializer, str] = {"orthogonal": "orthogonal", "uniform": "uniform_zero_bias"}
"""Initializer of ``layers.Dense`` for the convolutions and hidden layers of such networks."""


class _GaussianPolicy(nn.Module):
    mlp: MLP
    log_std: float

    @nn.compact
    def __call__(self, obs: Array) -> tuple[Array, Array]:
        mean = self.mlp(obs)
        log_std = self.param("log_std", nn.initializers.constant(self.log_std), (self.mlp.out,))
        return mean, jnp.broadcast_to(log_std, mean.shape)


class _Value(nn.Module):
    mlp: MLP

    def __call__(self, obs: Array) -> Array:
        return self.mlp(obs)[..., 0]


def categorical_actor(
    obs_dim: int,
    actions: int,
    hidden: Sequence[int],
    *,
    activation: str = "tanh",
    gain: float = 0.01,
    initializer: Initializer = "orthogonal",
) -> Network:
    """Return the network obs [..., D] -> logits [..., actions]. Weights begin orthogonal, in the last layer
    with ``gain``, or "uniform"."""
    return network(_policy(hidden, actions, activation, gain, initializer), obs_dim)


def gaussian_policy(
    obs_dim: int,
    action_dim: int,
    hidden: Sequence[int],
    *,
    activation: str = "tanh",
    log_std: float = 0.0,
    initializer: Initializer = "orthogonal",
) -> Network:
    """Return the network obs [..., D] -> (mean [..., A], log std [..., A]) of an unsquashed Gaussian.

    As in the MLP policies of OpenAI Baselines: the log std is a parameter, ``log_std`` at first and the same
    for all observations. Weights begin orthogonal, in the last layer with gain 0.01, or "uniform", where only
    the last layer's bias is not 0."""
    mlp = _policy(hidden, action_dim, activation, 0.01, initializer)
    return network(_GaussianPolicy(mlp, log_std), obs_dim)


def state_value(
    obs_dim: int,
    hidden: Sequence[int],
    *,
    activation: str = "tanh",
    initializer: Initializer = "orthogonal",
) -> Network:
    """Return the network obs [..., D] -> value [...]. Weights begin orthogonal, in the last layer with gain
    1, or "uniform" with zero biases."""
    if initializer == "uniform":
        return network(_Value(MLP(tuple(hidden), 1, activation, initializer="uniform_zero_bias")), obs_dim)
    return network(_Value(_orthogonal(hidden, 1, activation, 1.0)), obs_dim)


def _policy(hidden: Sequence[int], out: int, activation: str, gain: float, initializer: Initializer) -> MLP:
    if initializer == "orthogonal":
        return _orthogonal(hidden, out, activation, gain)
    return MLP(
        tuple(hidden),
        out,
        activation,
        initializer="uniform_zero_bias",
        final_initializer="uniform_fan_in",
    )


def _orthogonal(hidden: Sequence[int], out: int, activation: str, gain: float) -> MLP:
    """Return an MLP with gain sqrt(2) in the hidden layers and ``gain`` in the last."""
    return MLP(tuple(hidden), out, activation, initializer="orthogonal", final_scale=gain * 2**-0.5)
