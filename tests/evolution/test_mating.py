"""Mating scores against numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import nets, tree
from popjax.evolution.mating import Mating, behaviour_distance, scores
from popjax.methods.pderl import Memory
from popjax.replay.ring import add, latest, ring

DISTANCE = jax.jit(behaviour_distance, static_argnums=(0, 1))
ACTOR = nets.tanh_actor(3, 2, (5,))
ACT = ACTOR.apply
SIZES = (4, 7, 20, 0)
CAPACITY = 10


@pytest.fixture(scope="module")
def world():
    """Four actors, of which 0 and 1 are equal, with memories of different sizes; the third has wrapped."""
    actors = jax.vmap(ACTOR.init)(jax.random.split(jax.random.key(0), 4))
    actors = tree.put(actors, 1, tree.take(actors, 0))
    store, chance, memories = ring(CAPACITY), np.random.default_rng(0), []
    for size in SIZES:
        rows = Memory(jnp.asarray(chance.normal(size=(20, 3))))
        memories.append(add(store.init(tree.take(rows, 0)), rows, jnp.arange(20) < size))
    return actors, tree.stack(memories)


def by_numpy(actors, memories):
    """Every pair by the formula, over all that both memories hold; only exact where sizes are equal."""
    found = np.zeros((4, 4))
    for owner in range(4):
        rows, valid = latest(tree.take(memories, owner), CAPACITY)
        obs = np.asarray(rows.obs)[valid]
        for other in range(4):
            mine = ACTOR.apply(tree.take(actors, owner), obs)
            theirs = ACTOR.apply(tree.take(actors, other), obs)
            term = ((np.asarray(mine) - np.asarray(theirs)) ** 2).sum(-1)
            found[owner, other] += term.mean() if len(term) else 0
    return found + found.T


def test_distance_equals_numpy_where_memories_are_of_one_size(world, key):
    actors, memories = world
    memories = memories.replace(size=jnp.full(4, 4), position=jnp.full(4, 4))
    found = DISTANCE(Mating(), ACT, actors, memories, key)
    np.testing.assert_allclose(found, by_numpy(actors, memories), rtol=1e-4, atol=1e-6)


def test_distance_is_symmetric_and_0_between_equals(world, key):
    actors, memories = world
    found = np.asarray(behaviour_distance(Mating(batch=6), ACT, actors, memories, key))
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(np.diag(found), 0, atol=1e-10)
    assert found[0, 1] < 1e-10
    assert found[0, 2] > 0
    assert found[3].max() == 0  # an empty memory tells nothing


def test_only_the_newest_states_count(world, key):
    actors, memories = world
    memories = memories.replace(size=jnp.full(4, 10), position=jnp.full(4, 3))
    newest = jnp.zeros(CAPACITY, bool).at[jnp.array([1, 2])].set(True)
    spoilt = memories.replace(
        rows=memories.rows.replace(obs=jnp.where(newest[:, None], memories.rows.obs, jnp.nan))
    )
    found = DISTANCE(Mating(newest=2), ACT, actors, spoilt, key)
    assert np.isfinite(np.asarray(found)).all()


def test_greedy_scores_are_sums_of_fitness(world, key):
    fitness = jnp.array([1.0, 2.0, -3.0, 4.0])
    found = scores(Mating(), ACT, *world, fitness, key)
    np.testing.assert_array_equal(found, np.add.outer(fitness, fitness))


@pytest.mark.parametrize("choice", [{"score": "far"}, {"batch": 0}, {"newest": 0}])
def test_senseless_choices_are_refused(choice):
    with pytest.raises(ValueError, match=str(next(iter(choice.values())))):
        Mating(**choice)
