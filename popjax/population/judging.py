"""Fitness of individuals in training: by their own episodes, and of those who have diverged."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from popjax.core import PyTree
from popjax.population.lanes import Lanes


def by_training(lanes: Lanes) -> tuple[Array, Array, Array]:
    """Return each individual's fitness float32 [P], the mean return of the whole episodes that its ``lanes``
    remember; these returns float32 [P, M]; and bool [P, M], which entries of them are returns.

    An individual without such an episode is judged by its unfinished ones if it has played its lanes from
    their start. A newcomer, who took over lanes in the middle of an episode, gets the mean fitness of the
    others.
    """
    account, recent = lanes.account, lanes.account.recent
    returns, valid = (x.reshape(len(x), -1) for x in (recent.returns, recent.valid))
    count, begun = valid.sum(1), (recent.whole & (account.episodes == 0)).all(1)
    mean = jnp.where(valid, returns, 0.0).sum(1) / jnp.maximum(count, 1)
    fitness, stands = jnp.where(count > 0, mean, lanes.fitness), (count > 0) | begun
    known = stands & jnp.isfinite(fitness)
    middle = jnp.where(known, fitness, 0.0).sum() / jnp.maximum(known.sum(), 1)
    return jnp.where(stands, fitness, middle), returns, valid


def shown(fitness: Array) -> Array:
    """Return the fitness [P] as it is shown: of one that has diverged, that of the worst other."""
    finite = jnp.isfinite(fitness)
    return jnp.where(finite, fitness, jnp.min(fitness, where=finite, initial=jnp.inf))


def diverged(numbers: PyTree, population: int) -> Array:
    """Return bool [P]: whether any of an individual's floating-point ``numbers`` [P, ...] is not finite."""
    finite = jnp.ones(population, jnp.bool_)
    for x in jax.tree.leaves(numbers):
        if jnp.issubdtype(x.dtype, jnp.floating):
            finite &= jnp.isfinite(x.reshape(population, -1)).all(1)
    return ~finite
