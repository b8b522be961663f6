"""Mutation of one individual's parameters.

Only weight matrices and kernels change, leaves of rank 2 or more; biases and layer norms stay bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from popjax import tree
from popjax.core import Key, Params
from popjax.evolution.blocks import mapped
from popjax.replay.ring import Ring, draw


def is_weight(leaf: Array) -> bool:
    """Return whether a leaf of one individual's parameters is a weight matrix or the kernel of a
    convolution."""
    return leaf.ndim >= 2


def sensitivity(policy: Callable[[Params, Array], Array], params: Params, obs: Array, valid: Array) -> Params:
    """Return the sensitivity of the actions on a batch to each parameter, in the shape of ``params``.

    obs: [B, D]; valid: bool [B], rows to count.

    ``sqrt(sum_k (sum_i d mu(s_i)_k / d theta)^2)``, over action components k and states i. Bodnar et al.,
    equation 1; SM-G-SUM of Lehman et al., 2018.
    """

    def summed(params: Params) -> Array:
        return jnp.where(valid[:, None], policy(params, obs), 0.0).sum(0)  # [A]

    jacobian = jax.jacrev(summed)(params)  # leaves [A, ...]
    return jax.tree.map(lambda j: jnp.sqrt((j**2).sum(0)), jacobian)


def floored(sensitivity: Array, floor: Array | float) -> Array:
    """Return the divisor of a perturbation: 1 where the sensitivity is 0, else at least ``floor``."""
    return jnp.maximum(jnp.where(sensitivity == 0, 1.0, sensitivity), floor)


def proximal(
    policy: Callable[[Params, Array], Array],
    params: Params,
    obs: Array,
    valid: Array,
    key: Key,
    std: Array | float,
    floor: Array | float = 0.01,
) -> Params:
    """Add Gaussian noise of standard deviation ``std``, divided by the sensitivity of the actions to each
    weight.

    obs: [B, D], valid: bool [B]: the individual's own experience. Bodnar et al., algorithm 2.
    """
    scale = sensitivity(policy, params, obs, valid)
    noise = tree.normal_like(key, params)

    def perturb(weight: Array, scale: Array, noise: Array) -> Array:
        return weight + std * noise / floored(scale, floor) if is_weight(weight) else weight

    return jax.tree.map(perturb, params, scale, noise)


def proximal_all(
    policy: Callable[[Params, Array], Array],
    actors: Params,
    memories: Ring,
    keys: Array,
    batch: int,
    std: Array | float,
    floor: Array | float,
) -> Params:
    """Return a ``proximal`` mutant of each of ``actors`` [P], using ``batch`` states drawn from its memory.

    memories: [P] of rows with a field ``obs``; keys [P].
    """

    def one(individual: tuple[Params, Ring, Array]) -> Params:
        actor, memory, key = individual
        key_draw, key_noise = jax.random.split(key)
        rows, valid = draw(memory, key_draw, batch)
        return proximal(policy, actor, rows.obs, valid, key_noise, std, floor)

    # A Jacobian per action component for the whole population at once needs much memory.
    return mapped(one, (actors, memories, keys), cpu=2, accelerator=16)


def gaussian(params: Params, key: Key) -> Params:
    """Add noise to single weights, rarely strong noise, and rarely redraw them. ERL's mutation.

    Each matrix is mutated with probability min(1, u), u ~ U(0, 2). It then takes
    n ~ U{0 .. ceil(size / 10) - 1} hits on random entries, one after the other: ``w += N(0, (10 w)^2)`` with
    probability 0.05, ``w = N(0, 1)`` with 0.05, else ``w += N(0, (w / 10)^2)``; entries stay within 1e6.
    """

    def mutate(weight: Array, key: Key) -> Array:
        return _hit(weight, key) if is_weight(weight) else weight

    return jax.tree.map(mutate, params, tree.keys_like(key, params))


def _hit(weight: Array, key: Key) -> Array:
    bound = math.ceil(0.1 * weight.size)
    most = max(bound - 1, 1)
    key_chance, key_count, key_entry, key_kind, key_noise = jax.random.split(key, 5)
    # A draw from U(0, 1) is below u ~ U(0, 2) with probability min(1, u), as in the reference.
    chance = jax.random.uniform(key_chance, (2,))
    count = jnp.where(chance[0] < 2 * chance[1], jax.random.randint(key_count, (), 0, bound), 0)
    entry = jax.random.randint(key_entry, (most,), 0, weight.size)
    entry = jnp.where(jnp.arange(most) < count, entry, weight.size)  # beyond the last entry: no hit
    kind = jax.random.uniform(key_kind, (most,))
    noise = jax.random.normal(key_noise, (most,))

    def one(flat: Array, hit: tuple[Array, Array, Array]) -> tuple[Array, None]:
        entry, kind, noise = hit
        w = flat[jnp.minimum(entry, weight.size - 1)]
        value = jnp.where(kind < 0.05, w + 10 * w * noise, jnp.where(kind < 0.1, noise, w + 0.1 * w * noise))
        return flat.at[entry].set(jnp.clip(value, -1e6, 1e6), mode="drop"), None

    return jax.lax.scan(one, weight.ravel(), (entry, kind, noise))[0].reshape(weight.shape)
