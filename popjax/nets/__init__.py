"""Networks as ``Network(init, apply)`` records over plain dictionaries of parameters.

The only package that imports flax.linen. Every ``apply`` takes one input and lets leading axes through; bytes
are divided by 255.
Parameters are float32; a weight matrix is a leaf of rank 2, ``kernel [in, out]``, everything else rank 1.
A policy for continuous actions stores the network of its mean action, which others can take over, as "mlp".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from popjax.core import Key, Network, Params, Recurrent
from popjax.nets import images, recurrent
from popjax.nets.layers import MLP, Dense, Hidden, LayerNorm, Norm, Precision, network, rectified, scaled
from popjax.nets.onpolicy import (
    HIDDEN,
    Initializer,
    categorical_actor,
    gaussian_policy,
    state_value,
)

__all__ = [
    "LOG_STD_RANGE",
    "Initializer",
    "Norm",
    "Precision",
    "categorical_actor",
    "critic",
    "ensemble",
    "gaussian_actor",
    "gaussian_policy",
    "hidden_squares",
    "images",
    "late_action_critic",
    "mean_of",
    "mlp",
    "multihead_critic",
    "multihead_gaussian_actor",
    "policy_and_value",
    "recurrent",
    "recurrent_policy_and_value",
    "scaled",
    "state_value",
    "tanh_actor",
    "two_branch_critic",
    "with_mean",
]

LOG_STD_RANGE = (-20.0, 2.0)


class _TanhActor(nn.Module):
    mlp: MLP

    def __call__(self, obs: Array) -> Array:
        return jnp.tanh(self.mlp(obs))


class _GaussianActor(nn.Module):
    mlp: MLP
    soft_range: bool

    @nn.compact
    def __call__(self, obs: Array) -> tuple[Array, Array]:
        mean, features = self.mlp(obs, with_features=True)
        initializer = self.mlp.final_initializer or self.mlp.initializer
        log_std = Dense(self.mlp.out, initializer, name="log_std")(features)
        if not self.soft_range:
            return mean, jnp.clip(log_std, *LOG_STD_RANGE)
        low, high = LOG_STD_RANGE
        return mean, low + 0.5 * (high - low) * (jnp.tanh(log_std) + 1)


class _Critic(nn.Module):
    mlp: MLP

    def __call__(self, obs: Array, action: Array) -> Array:
        return self.mlp(jnp.concatenate([obs, action], -1))[..., 0]


class _TwoBranchCritic(nn.Module):
    branch: int
    hidden: int
    final_scale: float

    @nn.compact
    def __call__(self, obs: Array, action: Array) -> Array:
        x = jnp.concatenate([nn.elu(Dense(self.branch)(obs)), nn.elu(Dense(self.branch)(action))], -1)
        x = nn.elu(LayerNorm()(Dense(self.hidden)(x)))
        return Dense(1, scale=self.final_scale)(x)[..., 0]


class _LateActionCritic(nn.Module):
    hidden: Sequence[int]
    action_layer: int

    @nn.compact
    def __call__(self, obs: Array, action: Array) -> Array:
        x = obs
        for layer, width in enumerate(self.hidden):
            x = jnp.concatenate([x, action], -1) if layer == self.action_layer else x
            x = rectified(Dense(width, "glorot")(x), "layer")
        return Dense(1, "small")(x)[..., 0]


def mlp(inputs: int, hidden: Sequence[int], out: int, *, initializer: str = "orthogonal") -> Network:
    """Return the network x [..., inputs] -> [..., out]; ReLU between linear layers."""
    return network(MLP(tuple(hidden), out, initializer=initializer), inputs)


def tanh_actor(
    obs_dim: int,
    action_dim: int,
    hidden: Sequence[int],
    *,
    activation: str = "relu",
    norm: Norm = "none",
    final_scale: float = 1.0,
    initializer: str = "uniform_fan_in",
    final_initializer: str | None = None,
    precision: Precision = "float32",
) -> Network:
    """Return a deterministic policy: obs [..., D] -> action [..., A] in [-1, 1]."""
    layers: Any = activation, norm, initializer, final_scale, final_initializer, precision
    mlp = MLP(tuple(hidden), action_dim, *layers)
    return network(_TanhActor(mlp), obs_dim)


def gaussian_actor(
    obs_dim: int,
    action_dim: int,
    hidden: Sequence[int],
    *,
    initializer: str = "orthogonal",
    final_initializer: str | None = None,
    soft_range: bool = False,
    precision: Precision = "float32",
) -> Network:
    """Return the network obs [..., D] -> (mean [..., A], log std [..., A] in [-20, 2]) of a Gaussian before
    squashing.

    The log std is clipped to its range or, with ``soft_range``, scaled into it by a tanh."""
    options: Any = {"final_initializer": final_initializer, "precision": precision}
    mlp = MLP(tuple(hidden), action_dim, initializer=initializer, **options)
    return network(_GaussianActor(mlp, soft_range), obs_dim)


def policy_and_value(
    obs_shape: Sequence[int],
    action_dim: int,
    hidden: Sequence[int] | None,
    *,
    discrete: bool,
    activation: str | None,
    initializer: Initializer,
    log_std: float = 0.0,
) -> tuple[Network, Network]:
    """Return the separate networks of an on-policy agent: ``categorical_actor`` or ``gaussian_policy``, and
    ``state_value``. For images [H, W, C], each comes after convolutions of ``images.TORSOS``. If None,
    ``hidden`` is that of ``images.dense_for``, ``activation`` that of ``images.activation_for``."""
    hidden = images.dense_for(obs_shape) if hidden is None else hidden
    activation = activation or images.activation_for(obs_shape)
    options: Any = {"activation": activation, "initializer": initializer}

    def policy(inputs: int) -> Network:
        if discrete:
            return categorical_actor(inputs, action_dim, hidden, **options)
        return gaussian_policy(inputs, action_dim, hidden, **options, log_std=log_std)

    def value(inputs: int) -> Network:
        return state_value(inputs, hidden, **options)

    behind = partial(images.behind_convolutions, obs_shape, initializer=HIDDEN[initializer])
    return behind(policy), behind(value)


def recurrent_policy_and_value(
    obs_shape: Sequence[int],
    action_dim: int,
    hidden: Sequence[int] | None,
    units: int,
    *,
    discrete: bool,
    activation: str | None,
    initializer: Initializer,
) -> tuple[Recurrent, Recurrent]:
    """Return the networks of ``policy_and_value``, each with an LSTM after its hidden layers."""
    hidden = images.dense_for(obs_shape) if hidden is None else hidden
    activation = activation or images.activation_for(obs_shape)
    of_hidden = HIDDEN[initializer]
    torso = images.behind_convolutions(
        obs_shape,
        lambda inputs: network(Hidden(tuple(hidden), of_hidden, activation), inputs),
        initializer=of_hidden,
    )
    make: Any = categorical_actor if discrete else gaussian_policy

    def policy(inputs: int) -> Network:
        return make(inputs, action_dim, (), initializer=initializer)

    def value(inputs: int) -> Network:
        return state_value(inputs, (), initializer=initializer)

    def remembering(head: Callable[[int], Network]) -> Recurrent:
        return recurrent.with_lstm(obs_shape, torso, units, head)

    return remembering(policy), remembering(value)


def critic(
    obs_dim: int,
    action_dim: int,
    hidden: Sequence[int],
    *,
    activation: str = "relu",
    initializer: str = "uniform_fan_in",
    precision: Precision = "float32",
) -> Network:
    """Return the network of concatenated (obs [..., D], action [..., A]) -> value [...]."""
    mlp = MLP(tuple(hidden), 1, activation, initializer=initializer, precision=precision)
    return network(_Critic(mlp), obs_dim, action_dim)


def late_action_critic(obs_dim: int, action_dim: int, hidden: Sequence[int], action_layer: int) -> Network:
    """Return the network (obs [..., D], action [..., A]) -> value [...], with layer norm; the action joins
    the input of hidden layer ``action_layer``, counted from 0. Weights begin Glorot-uniform, those of the
    output layer small."""
    return network(_LateActionCritic(tuple(hidden), action_layer), obs_dim, action_dim)


def hidden_squares(params: Params) -> Array:
    """Return the sum of squares of a value network's hidden weight matrices, without biases and the output
    layer, which is the only layer of one unit."""
    kernels = [x for x in jax.tree.leaves(params) if x.ndim == 2 and x.shape[-1] > 1]
    return sum((jnp.sum(jnp.square(x)) for x in kernels), jnp.float32(0))


def two_branch_critic(
    obs_dim: int, action_dim: int, branch: int, hidden: int, *, final_scale: float = 1.0
) -> Network:
    """Return ERL's critic, (obs [..., D], action [..., A]) -> value [...].

    Observation and action are joined after one layer each.
    """
    return network(_TwoBranchCritic(branch, hidden, final_scale), obs_dim, action_dim)


def multihead_gaussian_actor(
    obs_dim: int,
    action_dim: int,
    hidden: Sequence[int],
    heads: int,
    *,
    initializer: str = "orthogonal",
    precision: Precision = "float32",
) -> Network:
    """Return ``heads`` Gaussian policies on one torso: obs [..., D] -> (mean, log std) [heads, ..., A]."""
    torso = network(Hidden(tuple(hidden), initializer, precision=precision), obs_dim)
    head = ensemble(gaussian_actor(hidden[-1], action_dim, (), initializer=initializer), heads)

    def init(key: Key) -> Params:
        key_torso, key_heads = jax.random.split(key)
        return {"torso": torso.init(key_torso), "heads": head.init(key_heads)}

    def apply(params: Params, obs: Array) -> tuple[Array, Array]:
        return head.apply(params["heads"], torso.apply(params["torso"], obs))

    return Network(init, apply)


def multihead_critic(
    obs_dim: int,
    action_dim: int,
    hidden: Sequence[int],
    heads: int,
    *,
    initializer: str = "orthogonal",
    precision: Precision = "float32",
) -> Network:
    """Return ``heads`` critics on one torso -> value [heads, ...].

    With (obs [..., D], action [..., A]) all heads value the same action; with action [heads, ..., A] each
    head values its own.
    """
    torso = network(Hidden(tuple(hidden), initializer, precision=precision), obs_dim, action_dim)
    head = network(MLP((), 1, initializer=initializer), hidden[-1])

    def init(key: Key) -> Params:
        key_torso, key_heads = jax.random.split(key)
        return {"torso": torso.init(key_torso), "heads": ensemble(head, heads).init(key_heads)}

    def apply(params: Params, obs: Array, action: Array) -> Array:
        own = action.ndim > obs.ndim
        obs = jnp.broadcast_to(obs, (heads, *obs.shape)) if own else obs
        features = torso.apply(params["torso"], obs, action)
        return jax.vmap(head.apply, (0, 0 if own else None))(params["heads"], features)[..., 0]

    return Network(init, apply)


def ensemble(network: Network, members: int) -> Network:
    """Return ``members`` independent copies that share inputs: parameters and outputs gain a leading axis."""

    def init(key: Key) -> Params:
        return jax.vmap(network.init)(jax.random.split(key, members))

    def apply(params: Params, *inputs: Array) -> Any:
        return jax.vmap(lambda p: network.apply(p, *inputs))(params)

    return Network(init, apply)


def mean_of(policy: Params) -> Params:
    """Return the parameters of the network of the mean action of ``policy``, which other agents can take
    over.

    Raises:
        ValueError: the policy is more than that network and a spread.
    """
    if not (isinstance(policy, dict) and "mlp" in policy):
        raise ValueError(
            "a policy that holds more than the network of its mean action, such as statistics of observations"
            " or a memory, cannot be exchanged; turn off normalization and lstm"
        )
    return policy["mlp"]


def with_mean(policy: Params, mean: Params) -> Params:
    """Return ``policy`` with the parameters ``mean`` of the network of its mean action; its spread stays."""
    return {**policy, "mlp": mean}
