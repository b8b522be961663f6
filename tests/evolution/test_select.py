"""Selection against the reference's pseudo-code in plain Python, and against the odds it implies."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.evolution import select as module
from popjax.evolution.select import Selection, fate, parents, replaceable, select, tournament

CASES = [(10, 1), (10, 2), (10, 3), (2, 1), (4, 1), (4, 2), (5, 2)]


@lru_cache
def rounds(population, elites, count=4000):
    """(fitness [count, P], Selections [count]) as arrays of numpy; every third fitness has equals in it."""
    keys = jax.random.split(jax.random.key(population * 10 + elites), count)
    fitness = jax.random.normal(jax.random.key(7), (count, population))
    fitness = fitness.at[::3].set(jnp.round(fitness[::3]))
    found = jax.jit(jax.vmap(partial(select, elites=elites, tournament_size=3)))(keys, fitness)
    return jax.tree.map(np.asarray, (fitness, found))


def one(selection, i):
    return jax.tree.map(lambda x: x[i], selection)


def listed(indices):
    """A padded list without its padding, which must all be at the end."""
    kept = [int(i) for i in indices if i >= 0]
    assert kept == [int(i) for i in indices[: len(kept)]]
    return kept


def reference(fitness, elites, winners, unselected, again):
    """The pseudo-code, given what chance decided: source, elite copies, offspring, vacant slots."""
    rank = [int(i) for i in np.argsort(fitness, kind="stable")[::-1]]
    off = sorted(winners)
    if len(off) % 2:
        off.append(again)
    un = list(unselected)
    genome, copies = list(range(len(fitness))), []
    for e in rank[:elites]:
        slot = un.pop(0) if un else off.pop(0)
        genome[slot] = genome[e]
        copies.append(slot)
    return genome, copies, off, un


def test_worked_example_1_how_often_each_rank_wins(chance):
    odds = np.array([((10 - r) ** 3 - (9 - r) ** 3) / 1000 for r in range(10)])
    np.testing.assert_allclose(odds, [0.271, 0.217, 0.169, 0.127, 0.091, 0.061, 0.037, 0.019, 0.007, 0.001])
    ranking = jnp.array([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    winners = np.asarray(jax.jit(partial(tournament, rounds=200_000, size=3))(jax.random.key(0), ranking))
    assert chance(np.bincount(winners, minlength=10)[np.asarray(ranking)], odds) > 0.001


@pytest.mark.parametrize(("elites", "best_appears", "unique"), [(1, 0.9419, 4.873), (2, 0.9202, 4.609)])
def test_worked_example_1_the_best_appears_and_unique_offspring(elites, best_appears, unique):
    fitness, found = rounds(10, elites)
    best = len(fitness[0]) - 1 - fitness[:, ::-1].argmax(1)  # of equals the higher index
    assert found.selected[np.arange(len(best)), best].mean() == pytest.approx(best_appears, abs=0.01)
    assert found.selected.sum(1).mean() == pytest.approx(unique, abs=0.04)


@pytest.mark.parametrize(("elites", "mean", "most"), [(1, 4.07, 8), (2, 3.17, 6)])
def test_the_number_of_children(elites, mean, most):
    children = (rounds(10, elites)[1].vacant >= 0).sum(1)
    assert children.mean() == pytest.approx(mean, abs=0.06)
    assert children.min() == 0 or elites == 1
    assert children.max() <= most == rounds(10, elites)[1].vacant.shape[1]


@pytest.mark.parametrize(("population", "elites"), CASES)
def test_selection_equals_the_pseudo_code(population, elites):
    """Given the winners, the order of the unselected and the repeated winner, all else follows."""
    fitness, found = rounds(population, elites)
    for i in range(600):
        s = one(found, i)
        winners = set(np.flatnonzero(s.selected))
        best = set(np.argsort(fitness[i], kind="stable")[::-1][:elites])
        assert set(np.flatnonzero(s.elites)) == best
        unselected = set(range(population)) - winners - best
        off, vacant, copies = listed(s.offspring), listed(s.vacant), s.elite_copies.tolist()
        assert len(vacant) == len(set(vacant))
        popped = copies[: len(unselected)]  # the first elites go to slots that lost, in shuffled order
        assert set(popped) | set(vacant) == unselected
        # The reference's list before elites took from its front; only its last entry repeats another.
        whole = sorted(winners) + ([off[-1]] if len(winners) % 2 else [])
        got = s.source.tolist(), copies, off, vacant
        assert got == reference(fitness[i], elites, winners, popped + vacant, whole[-1])
        assert set(off) <= winners
        if len(unselected) >= elites:
            assert len(off) % 2 == 0
            assert not set(copies) & (winners | best)


def test_what_chance_decides_is_uniform(chance):
    """The shuffle of the slots that lost, and which winner is repeated."""
    key = jax.random.split(jax.random.key(3), 6000)
    fitness = jnp.arange(5.0)
    found = jax.jit(jax.vmap(lambda k: select(k, fitness, 1, 3)))(key)
    found = jax.tree.map(np.asarray, found)
    three_lost = (~found.selected & ~found.elites).sum(1) == 3
    first = [
        (int(np.flatnonzero(~s & ~e)[0]), int(np.flatnonzero(~s & ~e)[1]), int(c))
        for s, e, c in zip(
            found.selected[three_lost],
            found.elites[three_lost],
            found.elite_copies[three_lost, 0],
            strict=True,
        )
    ]
    assert chance(np.bincount([(c > a) + (c > b) for a, b, c in first], minlength=3)) > 0.001
    odd = found.selected.sum(1) == 3
    place = [
        np.flatnonzero(s).tolist().index(o[3])
        for s, o in zip(found.selected[odd], found.offspring[odd], strict=True)
    ]
    assert chance(np.bincount(place, minlength=3)) > 0.001


@pytest.mark.parametrize("tie", [0.0, 1.0])
def test_of_equal_fitness_the_higher_index_ranks_first(tie, key):
    found = jax.jit(partial(select, elites=2, tournament_size=3))(key, jnp.full(6, tie))
    assert np.flatnonzero(found.elites).tolist() == [4, 5]
    assert int(found.source[found.elite_copies[0]]) == 5


@pytest.mark.parametrize("elites", [0, 3, 5])
def test_too_many_elites_are_refused(elites, key):
    with pytest.raises(ValueError, match=f"elites {elites} .* population 5"):
        select(key, jnp.zeros(5), elites, 3)


def greedy(fitness):
    return fitness[:, None] + fitness[None, :]


def oracle(selection, fitness, score):
    """Pairs sorted by Python's stable sort: the reference, line for line."""
    candidates = listed(selection.elite_copies) + listed(selection.offspring)
    pairs = list(combinations(candidates, 2))
    pairs.sort(key=lambda pair: score[pair], reverse=True)
    chosen = [pairs[i % len(pairs)] for i in range(len(listed(selection.vacant)))]
    return [(b, a) if fitness[a] < fitness[b] else (a, b) for a, b in chosen]


@pytest.mark.parametrize("kind", ["greedy", "equal", "any"])
@pytest.mark.parametrize(("population", "elites"), [(10, 1), (10, 2), (4, 1), (5, 2)])
def test_parents_equal_a_sort(population, elites, kind):
    fitness, found = rounds(population, elites)
    fitness, found = fitness[:200], one(found, slice(0, 200))
    score = np.asarray(jax.vmap(greedy)(jnp.asarray(fitness)))
    if kind == "equal":
        score = np.zeros_like(score)
    if kind == "any":
        score = np.random.default_rng(0).normal(size=score.shape)
        score = (score + score.transpose(0, 2, 1)).astype(np.float32)
    x, y = jax.jit(jax.vmap(parents))(found, fitness, score)
    selfed = 0
    for i in range(len(fitness)):
        expected = oracle(one(found, i), fitness[i], score[i])
        got = list(zip(x[i].tolist(), y[i].tolist(), strict=True))[: len(expected)]
        assert got == expected
        selfed += any(a == b for a, b in got)
    if kind == "greedy":
        assert selfed > 0


def handmade(copies, offspring, vacant, population=6):
    return Selection(
        jnp.arange(population),
        jnp.zeros(population, bool),
        jnp.zeros(population, bool),
        jnp.array(copies),
        jnp.array(offspring),
        jnp.array(vacant),
    )


def test_an_elites_copy_mates_with_the_stale_fitness_of_its_slot():
    """Slot 0 holds the elite's copy but still counts as the worst: it enters as the less fit parent."""
    fitness = jnp.array([0.0, 5.0, 1.0, 2.0, 0.5, 9.0])
    selection = handmade([0], [1, 5, -1], [2, 3, 4])
    x, y = parents(selection, fitness, greedy(fitness))
    assert list(zip(x.tolist(), y.tolist(), strict=True)) == [(5, 1), (5, 0), (1, 0)]


def test_a_repeated_winner_mates_with_itself_first():
    fitness = jnp.array([0.0, 5.0, 1.0, 2.0, 0.5, 9.0])
    selection = handmade([0], [1, 2, 5, 5], [3, 4])
    x, y = parents(selection, fitness, greedy(fitness))
    assert (x.tolist(), y.tolist()) == ([5, 5], [5, 1])


def test_the_fate_of_a_slot():
    """An elite is one also where it won a tournament; a winner was selected; the others are discarded."""
    selection = replace(
        handmade([0], [1, 2], [3, 4]),
        elites=jnp.array([False, True, False, False, False, True]),
        selected=jnp.array([False, True, True, False, False, False]),
    )
    assert [int(fate(selection, slot)) for slot in range(6)] == [2, 0, 1, 2, 2, 0]


def test_few_pairs_are_used_again():
    fitness = jnp.array([0.0, 5.0, 1.0, 2.0, 0.5, 9.0])
    x, y = parents(handmade([0], [1, -1], [2, 3, 4, 5]), fitness, greedy(fitness))
    assert (x.tolist(), y.tolist()) == ([1] * 4, [0] * 4)


@pytest.mark.parametrize(
    ("fitness", "protected", "slot"),
    [
        ([5, 1, 9, 3, 4, 6, 7, 8, 2, 10], 1, 2),
        ([5, 1, 9, 3, 4, 6, 7, 8, 2, 10], 7, 1),
        ([5, 2, 9, 3, 4, 6, 7, 8, 2, 1], 9, 0),
        ([5, 1, 9, 3], [1, 2], 3),
        ([5, 4, 9, 3], [3, 0, 1], 2),
        ([5, 1, 9, 3], [2, 1], 3),
    ],
)
def test_worked_example_9_the_slot_that_the_learner_takes(fitness, protected, slot):
    assert int(replaceable(jnp.array(fitness, float), jnp.array(protected))) == slot


def test_nothing_here_is_more_than_indices():
    """Selections are fixed in shape and dtype, whatever the fitness: what compiles once stays compiled."""
    found = jax.eval_shape(
        partial(module.select, elites=2, tournament_size=3), jax.random.key(0), jnp.zeros(10)
    )
    shapes = {name: (leaf.shape, str(leaf.dtype)) for name, leaf in vars(found).items()}
    assert shapes == {
        "source": ((10,), "int32"),
        "elites": ((10,), "bool"),
        "selected": ((10,), "bool"),
        "elite_copies": ((2,), "int32"),
        "offspring": ((9,), "int32"),
        "vacant": ((6,), "int32"),
    }
