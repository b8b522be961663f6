"""Children: which parents they have, and what they remember."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import tree
from popjax.evolution.mating import Mating
from popjax.evolution.offspring import breed
from popjax.evolution.select import Selection
from popjax.methods.pderl import Memory
from popjax.replay.ring import add, ring

FITNESS = jnp.array([0.0, 5.0, 1.0, 2.0, 0.5, 9.0])
CLONED = jnp.array([5, 1, 2, 3, 4, 5])  # the elite, in slot 5, has been cloned into slot 0


def named(x, y, memory, key, active):
    """A child that is a list of its parents, and the sum of what it has inherited."""
    return {"first": x["first"], "second": y["second"], "seen": memory.unpacked().obs.sum()}


def born(fitness, offspring, vacant, capacity=4, written=6):
    """A population after ``breed``, of individuals that are named after their slots. The rows of a memory are
    ten times its owner and the number of the row; the last four are left."""
    population = len(fitness)
    names = jnp.arange(population)
    store = ring(capacity)
    rows = Memory((10 * names[:, None] + jnp.arange(written))[..., None].astype(jnp.float32))
    blank = tree.repeat(store.init(tree.take(rows, (0, 0))), population)
    memories = jax.vmap(add)(blank, rows, jnp.ones((population, written), bool))
    selection = Selection(
        source=CLONED,
        elites=names == 5,
        selected=jnp.isin(names, jnp.array(offspring)),
        elite_copies=jnp.array([0]),
        offspring=jnp.array(offspring),
        vacant=jnp.array(vacant),
    )
    actors = {"first": names, "second": names, "seen": jnp.zeros(population)}
    actors, memories = tree.take((actors, memories), CLONED)
    return filled(selection, actors, memories, fitness, jax.random.key(0))


@jax.jit
def filled(selection, actors, memories, fitness, key):
    how = Mating(score="greedy")
    return breed(named, lambda policy, obs: obs, selection, actors, memories, fitness, how, key)


def remembered(memories, slot):
    """What a slot remembers, sorted."""
    held = tree.take(memories, slot)
    return sorted(held.unpacked().obs[: int(held.size), 0].tolist())


def test_the_first_parent_is_the_fitter_one():
    """By sums of fitness: 5 and 1; 5 and the copy, whose slot still has fitness 0; 1 and the copy."""
    actors, _, stems = born(FITNESS, [1, 5, -1], [2, 3, 4])
    pairs = np.stack([actors["first"], actors["second"]], 1).tolist()
    assert pairs == [[5, 5], [1, 1], [5, 1], [5, 5], [1, 5], [5, 5]]
    assert stems.tolist() == [[5, -1], [1, -1], [5, 1], [5, 5], [1, 5], [5, -1]]


@pytest.mark.parametrize(("offspring", "pair"), [([1, 2, -1], [1, 2]), ([2, 1, -1], [2, 1])])
def test_of_equals_the_first_of_the_list_is_the_first_parent(offspring, pair):
    actors, _, _ = born(FITNESS.at[2].set(5.0), offspring, [3, -1, -1])
    assert [int(actors["first"][3]), int(actors["second"][3])] == pair


def test_a_child_inherits_the_newest_half_of_both_memories():
    """Of six rows 0 to 5 a memory holds 2 to 5, and its newest half are 4 and 5."""
    actors, memories, _ = born(FITNESS, [1, 5, -1], [2, 3, -1])
    assert remembered(memories, 2) == [14, 15, 54, 55]
    assert remembered(memories, 3) == [54, 54, 55, 55]  # of the elite and of its copy
    assert remembered(memories, 4) == [42, 43, 44, 45]  # not vacant
    assert remembered(memories, 0) == [52, 53, 54, 55]
    assert actors["seen"].tolist() == [0, 0, 14 + 15 + 54 + 55, 2 * 54 + 2 * 55, 0, 0]
