"""The tree of sums against sums taken outright, draws against their distribution; nothing is copied."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import tree
from popjax.replay import prioritized as module
from popjax.replay.prioritized import FAN_OUT, first_nodes, importance_weights, prioritized, unscaled_weights
from tests.support import equal

EXPONENT = 0.6
add, update = jax.jit(module.add), jax.jit(module.update)
sample = jax.jit(lambda *args: prioritized(1).sample(*args), static_argnums=2)
independent = jax.jit(lambda *args: prioritized(1, stratified=False).sample(*args), static_argnums=2)
LARGE = 1_000_000


def filled(capacity, priority, exponent=EXPONENT, first=0):
    """A replay after rows that are numbers, from ``first`` on, one per priority, were written in one call."""
    priority = jnp.asarray(priority, jnp.float32)
    numbers = first + jnp.arange(len(priority), dtype=jnp.int32)
    empty = prioritized(capacity).init(jnp.int32(0), exponent)
    return add(empty, numbers, jnp.ones(len(priority), bool), priority)


def check(state):
    """Every sum of the tree is that of its children, and only stored rows have mass."""
    first = [*first_nodes(state.capacity), len(state.nodes)]
    levels = [np.asarray(state.nodes[a:b]) for a, b in pairwise(first)]
    assert len(levels[0]) == 1
    assert levels[-1].size >= state.capacity
    for above, below in pairwise(levels):
        np.testing.assert_allclose(above.ravel()[: len(below)], below.sum(1, dtype=np.float64), rtol=3e-7)
        assert (above.ravel()[len(below) :] == 0).all()
    assert (levels[-1].ravel()[int(state.size) :] == 0).all()


def test_worked_example_3_masses_probabilities_and_weights():
    state = filled(5, [1, 2, 4, 1])
    np.testing.assert_allclose(state.masses, [1, 1.515717, 2.297397, 1, 0], rtol=1e-6)
    assert float(state.total) == pytest.approx(5.813113, rel=1e-6)
    half = state.total[None] / 2
    slots, mass = module.descend(state, half, half, jax.random.key(0))
    assert (slots.tolist(), mass.tolist()) == ([2], state.masses[2:3].tolist())
    _, draw = sample(state, jax.random.key(0), 64)
    expected = np.array([0.172025, 0.260741, 0.395209, 0.172025])
    np.testing.assert_allclose(draw.probability, expected[draw.slots], rtol=3e-6)
    probability = state.masses[:4] / state.total
    raw = [1.161287, 0.983314, 0.832617, 1.161287]
    np.testing.assert_allclose(unscaled_weights(probability, 4, 0.4), raw, rtol=1e-6)
    np.testing.assert_allclose(importance_weights(probability, 4, 0.4), [1, 0.846745, 0.716978, 1], rtol=1e-6)


def test_the_largest_weight_of_a_batch_is_1():
    state = filled(9, [1, 2, 4, 0.5, 0])
    probability = state.masses[1:3] / state.total
    weight = importance_weights(probability, state.size, 0.4)
    np.testing.assert_allclose(weight, [1, 2 ** (-0.6 * 0.4)], rtol=1e-6)
    np.testing.assert_array_equal(importance_weights(probability, state.size, 0.0), 1)
    assert importance_weights(jnp.array([0.0, 1.0]), 10, 1.0).tolist()[0] == 1


@pytest.mark.parametrize("draw_by", [sample, independent], ids=["stratified", "independent"])
@pytest.mark.parametrize("capacity", [37, 300])
def test_frequencies_of_1e5_draws_match_the_distribution(capacity, draw_by, chance):
    """The ring has wrapped; a third of the rows has no mass."""
    numbers = np.random.default_rng(capacity)
    priority = numbers.exponential(size=capacity + 11) * (numbers.random(capacity + 11) < 0.67)
    state = filled(capacity, priority)
    check(state)
    keys = jax.random.split(jax.random.key(1), 400)
    rows, draw = jax.jit(jax.vmap(lambda key: draw_by(state, key, 250)))(keys)
    expected = np.asarray(priority, np.float32)[rows] ** 0.6 / float(state.total)
    np.testing.assert_allclose(draw.probability, expected, rtol=1e-5)
    np.testing.assert_array_equal((draw.slots - rows) % capacity, 0)
    counts = np.bincount(np.ravel(rows), minlength=capacity + 11)
    mass = priority**0.6 * (np.arange(capacity + 11) >= 11)
    assert (counts[mass == 0] == 0).all()
    alive = mass > 0
    p_value = chance(counts[alive], mass[alive] / mass.sum())
    # One draw per segment leaves less to chance than the test assumes, so it may only look too good.
    assert p_value > 1e-3
    assert draw_by is sample or p_value < 1 - 1e-3


def test_a_stratified_draw_takes_one_row_from_every_segment():
    priority = np.random.default_rng(0).exponential(size=500)
    state = filled(500, priority, 1.0)
    ends = np.cumsum(priority) / priority.sum() * 64
    for seed in range(20):
        slots = np.asarray(sample(state, jax.random.key(seed), 64)[1].slots)
        assert (ends[slots] > np.arange(64) - 1e-3).all()
        assert (ends[slots] - priority[slots] / priority.sum() * 64 < np.arange(1, 65) + 1e-3).all()


def test_huge_and_tiny_priorities(chance):
    huge = float(np.finfo(np.float32).max)
    state = filled(50, [0.0, huge, 1.0, huge, 0.0, 1e-20], 1.0)
    assert np.isfinite(state.total)
    _, draw = sample(state, jax.random.key(0), 1000)
    assert chance(np.bincount(draw.slots, minlength=6)[[1, 3]]) > 1e-3
    assert set(np.unique(draw.slots)) == {1, 3}
    np.testing.assert_allclose(draw.probability, 0.5)
    only = filled(50, [0.0, 0.0, 1e-30, 0.0], 1.0)
    assert set(np.asarray(sample(only, jax.random.key(0), 1000)[1].slots).tolist()) == {2}
    infinite = filled(50, [1.0, np.inf], 0.6)
    np.testing.assert_allclose(infinite.masses[:2], [1, 1e28])


def test_a_target_rounded_to_the_total_or_beyond_falls_on_a_row_with_mass():
    state = filled(1000, np.where(np.arange(900) % 7, 0, 1e-3), 1.0)
    at = state.total * jnp.array([0.0, 1.0, 1.0 + 1e-6, 2.0])
    slots, mass = module.descend(state, at, at, jax.random.key(0))
    assert slots.tolist() == [0, 896, 896, 896]
    assert (mass > 0).all()


def test_without_any_mass_the_draw_is_uniform_over_the_stored_rows(chance):
    state = filled(100, np.zeros(30))
    rows, draw = sample(state, jax.random.key(0), 30_000)
    assert chance(np.bincount(rows, minlength=30)) > 1e-3
    np.testing.assert_allclose(draw.probability, 1 / 30)
    _, draw = sample(filled(100, []), jax.random.key(0), 5)
    assert draw.slots.tolist() == [0] * 5


def test_exponent_0_is_uniform_exactly(chance):
    state = filled(333, np.where(np.arange(200) % 3, 1e-9, 0), 0.0)
    assert state.masses.tolist() == [1.0] * 200 + [0.0] * 133
    _, draw = independent(state, jax.random.key(0), 50_000)
    assert np.unique(draw.probability).tolist() == [np.float32(1) / 200]
    np.testing.assert_array_equal(importance_weights(draw.probability, state.size, 0.4), 1)
    assert chance(np.bincount(draw.slots, minlength=200)) > 1e-3


@pytest.mark.parametrize("dropped", [0, 30, 200])
@pytest.mark.parametrize("exponent", [0.0, EXPONENT])
def test_rows_that_are_dropped_have_no_mass_and_are_not_drawn(dropped, exponent):
    """300 rows in 222 slots; every lane of a vmap drops its own number."""
    full = filled(222, np.arange(1, 301), exponent)
    counts = jnp.array([0, dropped])
    both = jax.jit(jax.vmap(module.without_oldest, (None, 0)))(full, counts)
    same, state = tree.take(both, 0), tree.take(both, 1)
    equal(same, full)
    slots = np.arange(78 + dropped, 300) % 222
    assert set(np.flatnonzero(state.masses)) == set(slots)
    np.testing.assert_array_equal(state.masses[slots], full.masses[slots])
    assert int(state.size) == 222 - dropped
    check(replace(state, ring=full.ring))
    _, draw = sample(state, jax.random.key(0), 1000)
    assert set(np.asarray(draw.slots)) <= set(slots)
    equal(update(state, jnp.arange(78, 78 + dropped) % 222, jnp.ones(dropped)), state)
    _, draw = sample(update(state, slots, 0.0 * slots), jax.random.key(0), 1000)
    assert set(np.asarray(draw.slots)) <= set(slots)
    more = add(state, jnp.arange(300, 320), jnp.ones(20, bool), jnp.ones(20))
    assert int(more.size) == min(222, 242 - dropped)
    assert (more.masses > 0).sum() == more.size


@lru_cache
def large():
    """10^6 rows whose masses span 12 orders of magnitude in no order, and float64 masses beside."""
    priority = 10 ** np.random.default_rng(0).uniform(-6, 6, LARGE).astype(np.float32)
    return filled(LARGE, priority, 1.0), priority.astype(np.float64)


def test_masses_over_12_orders_of_magnitude_at_1e6_rows(chance):
    """Descents into equal shares of every decade's mass find rows of it as often as their masses say."""
    state, mass = large()
    check(state)
    assert float(state.total) == pytest.approx(mass.sum(), rel=1e-5)
    rows, draw = sample(state, jax.random.key(0), 100_000)
    np.testing.assert_allclose(draw.probability, mass[rows] / mass.sum(), rtol=1e-5)
    edges = 10.0 ** np.arange(2, 7)
    counts = np.histogram(mass[rows], np.append(0, edges))[0]
    expected = np.histogram(mass, np.append(0, edges), weights=mass)[0] / mass.sum()
    assert chance(counts, expected) > 1e-3


def test_rows_of_small_mass_are_told_apart_beside_large_ones(chance):
    """999 936 rows share what is left by 64 of a million each: every one in its own proportion."""
    mass = np.where(np.arange(LARGE) < 64, 1e6, np.where(np.arange(LARGE) % 2, 1.0, 3.0))
    state = filled(LARGE, mass, 1.0)
    rows, _ = independent(state, jax.random.key(1), 100_000)
    rows = np.asarray(rows)
    odd, small = rows % 2 == 1, rows >= 64
    expected = [64e6, (LARGE - 64) / 2, 3 * (LARGE - 64) / 2]
    counts = [(~small).sum(), (small & odd).sum(), (small & ~odd).sum()]
    assert chance(np.array(counts), np.array(expected) / sum(expected)) > 1e-3
    assert chance(np.histogram(rows[small], np.linspace(64, LARGE, 21))[0]) > 1e-3


def test_a_million_equal_rows_are_drawn_alike_however_fine(chance):
    """One float32 for a whole descent would reach slots 0 modulo 16 more or less often than others."""
    state = filled(LARGE, np.ones(LARGE), 1.0)
    slots = np.asarray(independent(state, jax.random.key(2), 400_000)[1].slots)
    for modulus in (2, 3, 16, 17):
        usual = np.bincount(np.arange(LARGE) % modulus) / LARGE
        assert chance(np.bincount(slots % modulus), usual) > 1e-3


def test_updates_and_wrapping_writes_leave_the_masses_of_a_dictionary():
    """Random adds with holes, of more rows than there is room too, and updates with duplicate slots."""
    capacity = 2 * FAN_OUT + 5
    numbers = np.random.default_rng(0)
    state, model, position, written = filled(capacity, []), {}, 0, 0
    for turn in range(60):
        size = [3, 17, 60][turn % 3]
        priority = numbers.exponential(size=size).astype(np.float32)
        valid = numbers.random(size) < numbers.choice([0.0, 0.5, 1.0])
        state = add(state, written + jnp.arange(size, dtype=jnp.int32), valid, jnp.asarray(priority))
        for i in np.nonzero(valid)[0]:
            model[position] = (written + i, priority[i])
            position = (position + 1) % capacity
        written += size
        slots = numbers.integers(-3, capacity + 9, 24)  # beyond either end and in empty slots, too
        fresh = numbers.exponential(size=capacity + 12).astype(np.float32)[slots]
        state = update(state, jnp.asarray(slots, jnp.int32), jnp.asarray(fresh))
        model.update({s: (model[s][0], p) for s, p in zip(slots, fresh, strict=True) if s in model})
        expected = np.zeros(capacity)
        for slot, (number, p) in model.items():
            expected[slot] = p**EXPONENT
            assert int(state.ring.rows[slot]) == number
        np.testing.assert_allclose(state.masses, expected, rtol=1e-5)
        check(state)


def test_priorities_of_rows_just_written_are_never_stale():
    """A row that takes the slot of one with a priority is drawn by its own, larger or smaller."""
    state = filled(10, np.full(10, 1e6))
    state = add(state, jnp.array([100, 101, 102]), jnp.array([True, False, True]), jnp.array([1e-3, 9, 0.0]))
    np.testing.assert_allclose(state.masses[:3], np.array([1e-3, 0.0, 1e6]) ** 0.6, rtol=1e-5)
    state = update(state, jnp.array([0, 1]), jnp.array([1e12, 0.0]))
    rows, _ = sample(state, jax.random.key(0), 1000)
    assert np.mean(np.asarray(rows) == 100) > 0.99
    assert 102 not in np.asarray(rows)
    lowered = update(state, jnp.array([0]), jnp.array([1e-12]))
    assert 100 not in np.asarray(sample(lowered, jax.random.key(0), 1000)[0])


def test_rows_that_are_not_valid_leave_no_trace():
    state = filled(20, [1, 2, 3])
    same = add(state, jnp.array([7, 8]), jnp.zeros(2, bool), jnp.array([jnp.nan, 5.0]))
    equal(same, state)


def test_sums_do_not_drift():
    """A priority of 10^12 that comes and goes 300 times leaves the sums of the small ones as they were."""
    before = filled(1000, np.full(1000, 1e-3), 1.0)
    slots = jnp.arange(3) * 400

    def swing(_, state):
        return update(update(state, slots, jnp.full(3, 1e12)), slots, jnp.full(3, 1e-3))

    after = jax.jit(lambda state: jax.lax.fori_loop(0, 300, swing, state))(before)
    # To the last digit but one: the order in which a program sums a node depends on its batch size.
    np.testing.assert_allclose(after.nodes, before.nodes, rtol=3e-7)


@pytest.mark.parametrize("capacity", [1, FAN_OUT, FAN_OUT + 1])
def test_small_capacities(capacity):
    state = filled(capacity, np.arange(1, capacity + 1), 1.0)
    check(state)
    rows, draw = sample(state, jax.random.key(0), 500)
    assert set(np.asarray(rows).tolist()) == set(range(capacity))
    assert float(state.total) == capacity * (capacity + 1) / 2
    np.testing.assert_array_equal(rows, draw.slots)


def test_no_room_is_refused():
    with pytest.raises(ValueError, match="at least 1 row"):
        prioritized(0)


def test_under_vmap_every_replay_is_what_it_is_alone():
    """With an exponent of its own each; one of them has no mass, which does not change the others' draws."""
    population = 3
    numbers = np.random.default_rng(1)
    priority = jnp.asarray(
        numbers.exponential(size=(population, 40)) * np.array([[1], [0], [1]]), jnp.float32
    )
    valid = jnp.asarray(numbers.random((population, 40)) < 0.7)
    exponents = jnp.array([0.0, 0.6, 1.0])
    keys = jax.random.split(jax.random.key(2), population)
    memory = prioritized(29)

    def life(exponent, priority, valid, key):
        state = memory.init(jnp.int32(0), exponent)
        state = memory.add(state, jnp.arange(40, dtype=jnp.int32), valid, priority)
        rows, draw = memory.sample(state, key, 16)
        return memory.update(state, draw.slots, 1.0 + draw.slots), rows, draw

    together = jax.jit(jax.vmap(life))(exponents, priority, valid, keys)
    for i in range(population):
        alone = jax.jit(life)(exponents[i], priority[i], valid[i], keys[i])
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), tree.take(together, i), alone)


@pytest.mark.parametrize("seeds", [None, 3])
@pytest.mark.parametrize("loop", ["scan", "while"])
def test_the_masses_stay_in_place_through_gradient_steps(seeds, loop):
    """Draws and updates in a loop over a donated replay: aliased as a whole, next to nothing on the side."""
    memory = prioritized(200_000)

    def one(carry):
        state, key, count = carry
        key, key_sample = jax.random.split(key)
        rows, draw = memory.sample(state, key_sample, 64)
        slots = jnp.where(count < state.size // 2, draw.slots, -1)  # a lane that is done writes nothing
        return memory.update(state, slots, jnp.abs(rows["x"].sum(-1)) + 0.1), key, count + 1

    def steps(state, key):
        if loop == "scan":
            return jax.lax.scan(lambda c, _: (one(c), None), (state, key, 0), length=100)[0]
        # A bound that is data, as where a generation owes as many updates as it played steps.
        return jax.lax.while_loop(lambda c: tree.any_lane(c[2] < c[0].size // 2), one, (state, key, 0))

    def init():
        return memory.init({"x": jnp.zeros(4)}, 0.6)

    run, state, key = steps, jax.eval_shape(init), jax.random.key(0)
    if seeds:
        run, key = jax.vmap(steps), jax.random.split(key, seeds)
        state = jax.eval_shape(lambda: tree.repeat(init(), seeds))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    masses = 200_000 * 4 * (seeds or 1)
    analysis = jax.jit(run, donate_argnums=0).lower(state, key).compile().memory_analysis()
    assert analysis.alias_size_in_bytes >= size
    assert analysis.temp_size_in_bytes < 0.2 * masses
