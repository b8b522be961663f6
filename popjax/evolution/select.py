"""Selection: survivors, vacant slots and parents as indices only, in fixed shapes.

The rules are those of ERL and PDERL (Bodnar, Day & Lio, AAAI 2020, and its code). Lists whose length
depends on chance are int32 arrays padded with -1.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax.core import Key
from popjax.evolution.ranking import comparable


@struct.dataclass
class Selection:
    """The outcome of one round of selection.

    source:       int32 [P] slot whose genome each slot holds once the elites are cloned, mostly its own.
    elites:       bool [P]  the elites themselves.
    selected:     bool [P]  winners of a tournament.
    elite_copies: int32 [E] slots that an elite was cloned into, the best elite's first.
    offspring:    int32 [P - E + 1] winners' slots in ascending order, made even in number by repeating a
                  random one.
    vacant:       int32 [max(P - 2E, 0)] slots left for children, in random order.
    """

    source: Array
    elites: Array
    selected: Array
    elite_copies: Array
    offspring: Array
    vacant: Array


def tournament(key: Key, ranking: Array, rounds: int, size: int) -> Array:
    """Return the winners, int32 [rounds]: each the best ranked of ``size`` uniform draws with replacement.

    ranking: int32 [P] individuals, best first.
    """
    draws = jax.random.randint(key, (rounds, size), 0, ranking.shape[0])
    return ranking[draws.min(1)]


def select(key: Key, fitness: Array, elites: int, tournament_size: int) -> Selection:
    """Rank the population, hold the tournaments and clone the elites into slots that lost.

    fitness: float [P], higher is better; of equals the higher index ranks first, non-finite ranks last.
    elites:  how many, at most P / 2.

    If fewer slots lost than there are elites, the remaining elites take the first offspring slots, which
    leave the list.

    Raises:
        ValueError: ``elites`` is out of range.
    """
    chex.assert_rank(fitness, 1)
    population = fitness.shape[0]
    if not 0 < 2 * elites <= population:
        raise ValueError(f"elites {elites} must be at least 1 and at most half of population {population}")
    key_tournament, key_even, key_shuffle = jax.random.split(key, 3)
    ranking = jnp.flip(jnp.argsort(comparable(fitness)))
    winners = tournament(key_tournament, ranking, population - elites, tournament_size)
    elite = jnp.zeros(population, jnp.bool_).at[ranking[:elites]].set(True)
    selected = jnp.zeros(population, jnp.bool_).at[winners].set(True)

    winners_count = selected.sum()
    offspring = jnp.nonzero(selected, size=population - elites + 1, fill_value=-1)[0]
    again = offspring[jax.random.randint(key_even, (), 0, winners_count)]
    odd = winners_count % 2 == 1
    offspring = offspring.at[winners_count].set(jnp.where(odd, again, -1), mode="drop")

    lost = ~selected & ~elite
    order = jnp.argsort(jnp.where(lost, jax.random.uniform(key_shuffle, (population,)), jnp.inf))
    lost_count = lost.sum()

    source = jnp.arange(population)
    copies, used, taken = [], jnp.int32(0), jnp.int32(0)  # slots used that lost; offspring slots taken
    for rank in range(elites):
        free = used < lost_count
        slot = jnp.where(free, order[used], offspring[taken])
        source = source.at[slot].set(source[ranking[rank]])
        copies.append(slot)
        used, taken = used + free, taken + ~free
    place = used + jnp.arange(max(population - 2 * elites, 0))
    vacant = jnp.where(place < lost_count, order[jnp.minimum(place, population - 1)], -1)
    kept = jnp.arange(offspring.shape[0]) >= taken
    return Selection(source, elite, selected, jnp.stack(copies), _front(offspring, kept), vacant)


def parents(selection: Selection, fitness: Array, score: Array) -> tuple[Array, Array]:
    """Return the two parents of every vacant slot, int32 [C] each, the fitter one first.

    fitness: float [P] decides which parent is fitter; ties keep the order of the list.
    score:   float [P, P] symmetric mating score.

    The list holds elite copies, then offspring. Its pairs of positions are ordered by score, best first, and
    the i-th vacant slot takes pair ``i mod (number of pairs)``. A slot that the offspring repeat also pairs
    with itself.
    """
    chex.assert_shape(score, (*fitness.shape, *fitness.shape))
    candidates = jnp.concatenate([selection.elite_copies, selection.offspring])
    first, second = jnp.triu_indices(candidates.shape[0], k=1)
    a, b = candidates[first], candidates[second]
    valid = (a >= 0) & (b >= 0)
    order = jnp.argsort(jnp.where(valid, -score[a, b], jnp.inf))  # stable: equal scores keep list order
    pair = order[jnp.arange(selection.vacant.shape[0]) % jnp.maximum(valid.sum(), 1)]
    a, b = a[pair], b[pair]
    fitness = comparable(fitness)
    swap = fitness[b] > fitness[a]
    return jnp.where(swap, b, a), jnp.where(swap, a, b)


def fate(selection: Selection, slot: Array) -> Array:
    """Return the outcome of selection for a slot, int32 []: 0 elite, 1 selected, 2 discarded."""
    return jnp.where(selection.elites[slot], 0, jnp.where(selection.selected[slot], 1, 2))


def replaceable(fitness: Array, protected: Array) -> Array:
    """Return the slot that an outsider takes, int32 []: the least fit or, if that is protected, the next slot
    by index, cyclically, that is not.

    protected: int32 [] or [n] slots.
    """
    chex.assert_rank([fitness, protected], [1, {0, 1}])
    candidates = (jnp.argmin(comparable(fitness)) + jnp.arange(fitness.shape[0])) % fitness.shape[0]
    return candidates[jnp.argmin(jnp.isin(candidates, protected))]


def _front(indices: Array, kept: Array) -> Array:
    """Return ``indices`` [n] with the ``kept`` ones moved to the front, in order, and -1 after them."""
    order = jnp.argsort(~kept)
    return jnp.where(kept[order], indices[order], -1)
