"""Fitness of individuals in training: from their own episodes, for ranking, and for the metrics."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from popjax import tree
from popjax.core import PyTree
from popjax.evolution.ranking import best_first
from popjax.population.lanes import Lanes


def by_training(lanes: Lanes) -> tuple[Array, Array, Array]:
    """Return each individual's fitness float32 [P], the mean return of the whole episodes that its ``lanes``
    remember; these returns float32 [P, M]; and a mask bool [P, M] of the valid returns.

    An individual without such an episode is judged by its unfinished ones if it has played its lanes from
    their start. A newcomer that took over lanes in the middle of an episode gets the mean fitness of the
    others.
    """
    recent, stands = lanes.account.recent, judged(lanes)
    assert recent is not None
    returns, valid = (x.reshape(len(x), -1) for x in (recent.returns, recent.valid))
    count = valid.sum(1)
    mean = jnp.where(valid, returns, 0.0).sum(1) / jnp.maximum(count, 1)
    fitness = jnp.where(count > 0, mean, lanes.fitness)
    known = stands & jnp.isfinite(fitness)
    middle = jnp.where(known, fitness, 0.0).sum() / jnp.maximum(known.sum(), 1)
    return jnp.where(stands, fitness, middle), returns, valid


def judged(lanes: Lanes) -> Array:
    """Return bool [P]: whether ``by_training`` judges an individual by episodes of its own."""
    account, recent = lanes.account, lanes.account.recent
    assert recent is not None
    begun = recent.whole & (account.episodes == 0)
    return (recent.count > 0).any(1) | begun.all(1)


def best(fitness: Array, judged: Array, individuals: PyTree) -> Array:
    """Return int32 []: the best of ``individuals`` [P] by ``fitness`` [P]. Individuals not yet ``judged``
    bool [P] rank below those that are, and diverged ones rank last."""
    lowest = jnp.finfo(fitness.dtype).min
    return best_first(sound(jnp.where(judged, fitness, lowest), individuals))[0]


def sound(fitness: Array, individuals: PyTree) -> Array:
    """Return the fitness [P] by which ``individuals`` [P] are ranked: minus infinity for one that has
    diverged, whose parameters are not finite.

    Its recorded fitness may be high, from episodes before it diverged or from random actions after that.
    """
    return jnp.where(tree.finite(individuals), fitness, -jnp.inf)


def shown(fitness: Array) -> Array:
    """Return the fitness [P] for the metrics, in which an individual that has diverged gets the worst fitness
    of the others."""
    finite = jnp.isfinite(fitness)
    return jnp.where(finite, fitness, jnp.min(fitness, where=finite, initial=jnp.inf))


def told(fitness: Array) -> dict[str, Array]:
    """Return the metrics of a generation that is ranked by ``fitness`` [P]: ``fitness`` as ``shown``, and
    ``diverged`` int32, the number of individuals whose fitness is not finite."""
    return {"fitness": shown(fitness), "diverged": (~jnp.isfinite(fitness)).sum(dtype=jnp.int32)}
