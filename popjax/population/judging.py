"""Fitness of individuals in training: by their own episodes, to rank them, and for the metrics."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from popjax import tree
from popjax.core import PyTree
from popjax.evolution.ranking import best_first
from popjax.population.lanes import Lanes


def by_training(lanes: Lanes) -> tuple[Array, Array, Array]:
    """Return each individual's fitness float32 [P], the mean return of the whole episodes that its ``lanes``
    remember; these returns float32 [P, M]; and bool [P, M], which entries of them are returns.

    An individual without such an episode is judged by its unfinished ones if it has played its lanes from
    their start. A newcomer, who took over lanes in the middle of an episode, gets the mean fitness of the
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
    """Return int32 []: which of ``individuals`` [P] is best by ``fitness`` [P]. One that is not ``judged``
    bool [P] yet ranks below all that are, and one that has diverged last."""
    lowest = jnp.finfo(fitness.dtype).min
    return best_first(sound(jnp.where(judged, fitness, lowest), individuals))[0]


def sound(fitness: Array, individuals: PyTree) -> Array:
    """Return the fitness [P] by which ``individuals`` [P] are ranked: minus infinity of one that has
    diverged, whose parameters are not finite.

    Its own fitness may be high: it is of episodes before, or of random actions in place of its own.
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
