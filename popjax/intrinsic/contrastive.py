"""Novelty by nearest neighbours in the space of a contrastive encoder, and its collaborative form.

Collaborative Exploration (ICLR 2024 submission), equations 2 to 4: how unlike a state is to what each agent
has visited lately, measured between embeddings that are trained to be alike within a few steps of an episode.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import nets
from popjax.checks import check_choices, check_least, check_widths
from popjax.core import Network, Params


@dataclass(frozen=True)
class Config:
    """The encoder, what is remembered and what counts as near."""

    encoder: Literal["contrastive", "random", "identity"] = (
        "contrastive"  # trained, left as initialised, or the raw observation
    )
    hidden: tuple[int, ...] = (64,)  # hidden layers of the encoder, units
    features: int = 64  # size of an embedding
    bank_size: int = 300  # states of each agent that are remembered
    bank_every: int = 5  # environment steps of a lane between two remembered states
    neighbours: int = 20  # K of the nearest neighbours
    similarity: Literal["kth", "mean"] = "kth"  # similarity of the K-th nearest, or mean of the K nearest
    horizon: int = 5  # a positive is at most so many environment steps away

    def __post_init__(self) -> None:
        check_choices(self)
        check_widths(self)
        check_least(self, 1, "features", "bank_size", "bank_every", "neighbours", "horizon")
        if self.bank_size < self.neighbours:
            raise ValueError(
                f"a bank of {self.bank_size} states has no {self.neighbours} nearest neighbours;"
                f" raise bank_size or lower neighbours"
            )


def encoder(obs_dim: int, config: Config = Config()) -> Network:
    """obs [..., D] -> embedding [..., F]; F is D for the identity."""
    if config.encoder == "identity":
        return Network(init=lambda key: (), apply=lambda params, obs: obs)
    return nets.mlp(obs_dim, config.hidden, config.features)


@struct.dataclass
class Bank:
    """The last states that an agent visited, raw because the encoder changes.

    states:   [M, D]
    position: int32 [] the slot that is written next
    count:    int32 [] slots that hold a state; they come first
    """

    states: Array
    position: Array
    count: Array


def bank(size: int, obs_dim: int) -> Bank:
    """An empty bank of ``size`` states."""
    return Bank(jnp.zeros((size, obs_dim)), jnp.int32(0), jnp.int32(0))


def push(bank: Bank, states: Array) -> Bank:
    """The bank after ``states`` [N, D] of the agent's lanes; the oldest are overwritten."""
    size = bank.states.shape[0]
    states = states[-size:]
    slots = (bank.position + jnp.arange(len(states))) % size
    return replace(
        bank,
        states=bank.states.at[slots].set(states),
        position=(bank.position + len(states)) % size,
        count=jnp.minimum(bank.count + len(states), size),
    )


def cosine(u: Array, v: Array) -> Array:
    """Cosines of all pairs: u [..., B, F], v [..., M, F] -> [..., B, M]; 0 where one of them is 0."""
    return _unit(u) @ jnp.swapaxes(_unit(v), -1, -2)


def _unit(x: Array) -> Array:
    """Rows of length 1, or 0; bounded under the root, as a bound on the root would have no gradient at 0."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-16))


def novelty(embedded: Array, keys: Array, counts: Array, config: Config = Config()) -> Array:
    """How new each state is to each agent, in [-1, 1]. Equation 2.

    embedded: [B, F]     embeddings of the states
    keys:     [P, M, F]  embeddings of the agents' banks
    counts:   int32 [P]  how many keys of a bank are filled; they come first

    Returns [B, P]: minus the cosine of the K-th nearest key, or minus the mean of the K nearest. Of a bank
    with fewer than K states all count; an empty bank gives 0.
    """
    population, size, _ = keys.shape
    alike = cosine(embedded, keys.reshape(population * size, -1)).reshape(-1, population, size)
    alike = jnp.where(jnp.arange(size) < counts[:, None], alike, -jnp.inf)
    nearest = jax.lax.top_k(alike, config.neighbours)[0]  # [B, P, K]
    held = jnp.minimum(counts, config.neighbours)  # [P]
    if config.similarity == "kth":
        last = jnp.maximum(held - 1, 0)[None, :, None]
        similarity = jnp.take_along_axis(nearest, last, axis=-1)[..., 0]
    else:
        there = jnp.arange(config.neighbours) < held[:, None]
        similarity = jnp.where(there, nearest, 0.0).sum(-1) / jnp.maximum(held, 1)
    return -jnp.where(counts > 0, similarity, 0.0)


def collaborative(novelty: Array, ego_weight: Array | float) -> Array:
    """Each agent's reward [..., P] from the novelty [..., P] of a state to each. Equation 3.

    ``ego_weight`` times the agent's own, the rest times the mean of the others'; alone, an agent has its own.
    """
    population = novelty.shape[-1]
    if population == 1:
        return novelty
    others = (novelty.sum(-1, keepdims=True) - novelty) / (population - 1)
    return ego_weight * novelty + (1 - ego_weight) * others


def info_nce(anchors: Array, positives: Array, valid: Array, temperature: Array | float) -> Array:
    """The contrastive loss [], from embeddings [B, F] each. Equation 4.

    Of an anchor all positives of the batch are candidates and its own is the right one. Rows that are not
    ``valid`` bool [B] take no part, neither as anchors nor as candidates.
    """
    logits = jnp.where(valid, cosine(anchors, positives) / temperature, -jnp.inf)
    right = jnp.where(valid, jnp.diagonal(cosine(anchors, positives)) / temperature, 0.0)
    # A row without any candidate would be -inf: nothing is taken from it below, its gradient included.
    spread = jax.nn.logsumexp(jnp.where(valid.any(), logits, 0.0), axis=-1)
    losses = jnp.where(valid, spread - right, 0.0)
    return losses.sum() / jnp.maximum(valid.sum(), 1)


def embed(network: Network, params: Params, states: Array) -> Array:
    """Embeddings from which no gradient flows back."""
    return jax.lax.stop_gradient(network.apply(params, states))
