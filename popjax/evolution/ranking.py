"""Ranks of individuals by fitness: higher is better, and diverged individuals come last."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def comparable(fitness: Array) -> Array:
    """Return ``fitness`` [...] with minus infinity where it is not finite."""
    return jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf)


def best_first(fitness: Array, ties: Array | None = None) -> Array:
    """Return int32 [P]: the individuals in order of ``fitness`` [P], the highest first. NaN and infinities
    rank last.

    ties: [P] numbers that order individuals of equal fitness, lower first; None: in order of index.
    """
    sound = jnp.where(jnp.isposinf(fitness), jnp.nan, fitness)
    if ties is None:
        return jnp.argsort(-sound, stable=True)
    return jnp.lexsort((ties, -sound))


def ranks(fitness: Array, ties: Array | None = None) -> Array:
    """Return int32 [P]: the position of each individual in ``best_first``."""
    count = fitness.shape[0]
    return jnp.zeros(count, jnp.int32).at[best_first(fitness, ties)].set(jnp.arange(count, dtype=jnp.int32))
