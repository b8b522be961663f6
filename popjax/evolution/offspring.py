"""Filling the slots that selection left vacant: distilled children, or ERL's exchange of rows.

Populations are stacked parameters ``actors`` [P] and genetic memories ``memories`` [P]. Children read only
elite copies and winners and write only vacant slots, so all are made at once. ``stems`` int32 [P, 2] are the
slots of the old population that each slot's genome is made of, -1 if there is no second one.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from popjax import tree
from popjax.core import Key, Params
from popjax.evolution.crossover import n_point
from popjax.evolution.mating import Behave, Mating, scores
from popjax.evolution.select import Selection, parents
from popjax.replay.ring import Ring, merge

Child = Callable[[Params, Params, Ring, Key, Array], Params]
"""(fitter parent, other parent, inherited memory, key, active) -> child."""


def breed(
    child: Child,
    behave: Behave,
    selection: Selection,
    actors: Params,
    memories: Ring,
    fitness: Array,
    config: Mating,
    key: Key,
) -> tuple[Params, Ring, Array]:
    """Fill each vacant slot with a child of a pair of high score, and with half of each parent's memory.

    fitness: float [P] of each slot before elites were cloned: an elite's copy mates with the fitness of the
             individual that it replaced, as in the authors' code.
    """
    key_score, key_merge, key_child = jax.random.split(key, 3)
    score = scores(config, behave, actors, memories, fitness, key_score)
    x, y = parents(selection, fitness, score)
    actors_x, memories_x = tree.take((actors, memories), x)
    actors_y, memories_y = tree.take((actors, memories), y)
    children = x.shape[0]
    inherited = jax.vmap(merge)(memories_x, memories_y, jax.random.split(key_merge, children))
    active = selection.vacant >= 0
    born = jax.vmap(child)(actors_x, actors_y, inherited, jax.random.split(key_child, children), active)
    slot = jnp.where(active, selection.vacant, fitness.shape[0])
    stems = clones(selection).at[slot].set(selection.source[jnp.stack([x, y], 1)], mode="drop")
    return *tree.put((actors, memories), slot, (born, inherited)), stems


def clones(selection: Selection) -> Array:
    """Return the stems of a population in which elites were cloned and no children are born."""
    return jnp.stack([selection.source, jnp.full_like(selection.source, -1)], 1)


def recombine(selection: Selection, actors: Params, memories: Ring, key: Key) -> tuple[Params, Ring, Array]:
    """Fill vacant slots, two by two, with an elite's copy and a winner, then exchange rows between them. ERL.

    If their number is odd, the last is paired with a random vacant slot, which is then written twice. A slot
    gets the memory of the genome that it was cloned from.
    """
    key_pair, key_elite, key_winner, key_cross = jax.random.split(key, 4)
    first, second = _pairs(selection.vacant, selection.source.shape[0], key_pair)
    pairs = first.shape[0]
    copies = selection.elite_copies
    elite = copies[jax.random.randint(key_elite, (pairs,), 0, copies.shape[0])]
    winners = jnp.maximum((selection.offspring >= 0).sum(), 1)
    winner = selection.offspring[jax.random.randint(key_winner, (pairs,), 0, winners)]
    genome_a, memory_a = tree.take((actors, memories), elite)
    genome_b, memory_b = tree.take((actors, memories), winner)
    crossed_a, crossed_b = jax.vmap(n_point)(jax.random.split(key_cross, pairs), genome_a, genome_b)
    # A slot paired with itself holds the winner's clone and has no partner to exchange rows with.
    crossed_b = tree.where(first == second, genome_b, crossed_b)
    for pair in range(pairs):  # in order: the repeated slot keeps what it is given last
        a, b = tree.take(((crossed_a, memory_a), (crossed_b, memory_b)), pair)
        actors, memories = tree.put((actors, memories), first[pair], a)
        actors, memories = tree.put((actors, memories), second[pair], b)
    both = jnp.stack([elite, winner], 1)
    alone = jnp.stack([winner, jnp.full_like(winner, -1)], 1)
    both = jnp.where((first == second)[:, None], alone, both)
    made = jnp.where(both < 0, -1, selection.source[both])
    stems = clones(selection)
    for pair in range(pairs):  # as above
        stems = stems.at[first[pair]].set(made[pair], mode="drop")
        stems = stems.at[second[pair]].set(made[pair], mode="drop")
    return actors, memories, stems


def _pairs(vacant: Array, population: int, key: Key) -> tuple[Array, Array]:
    """Return the vacant slots in pairs, int32 [C / 2] each, rounded up; missing ones are ``population``,
    which is not a slot."""
    count = (vacant >= 0).sum()
    again = vacant[jax.random.randint(key, (), 0, jnp.maximum(count, 1))]
    slots = jnp.append(vacant, -1).at[count].set(jnp.where(count % 2 == 1, again, -1))
    slots = jnp.where(slots < 0, population, slots)
    even = slots[: slots.shape[0] // 2 * 2]
    return even[0::2], even[1::2]
