"""The ring against a model of it in plain Python, and that it stays in place on the device."""

from __future__ import annotations

from collections import deque
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import tree
from popjax.replay import ring as module
from popjax.replay.ring import latest, ring
from tests.support import equal

# Compiled: a permutation is some hundreds of operations, which take seconds one by one.
add = jax.jit(module.add)
draw = jax.jit(module.draw, static_argnames=("batch", "newest"))
merge = jax.jit(module.merge)


def row(number):
    """Rows of two leaves that tell whether they stay together."""
    number = jnp.asarray(number)
    return {"id": number.astype(jnp.int32), "x": jnp.stack([number, -number], -1).astype(jnp.float32)}


def filled(capacity, numbers):
    """A ring after writing ``numbers`` one call."""
    numbers = jnp.asarray(numbers, jnp.int32)
    return add(ring(capacity).init(row(0)), row(numbers), jnp.ones(numbers.shape, bool))


def held(state):
    """The numbers held, oldest first, after checking that every row is whole."""
    rows, valid = latest(state, state.capacity)
    np.testing.assert_array_equal(rows["x"][:, 0], rows["id"])
    np.testing.assert_array_equal(rows["x"][:, 1], -rows["id"])
    return rows["id"][np.asarray(valid)].tolist()


def test_worked_example_7_the_latest_of_a_ring_that_wrapped():
    state = filled(5, [])
    for number in range(1, 8):
        state = add(state, row(jnp.array([number])), jnp.array([True]))
    rows, valid = latest(state, 3)
    assert rows["id"].tolist() == [5, 6, 7]
    assert valid.all()
    rows, valid = latest(state, 9)
    assert rows["id"].tolist() == [3, 4, 5, 6, 7]
    assert valid.all()


@pytest.mark.parametrize(
    ("x", "y", "size"), [(10, 9000, 4010), (9000, 8000, 8000), (30, 40, 70), (0, 3, 3), (0, 0, 0)]
)
def test_worked_example_8_the_sizes_of_child_memories(x, y, size, key):
    """With B = min(128, size): 12 * (size // B) = 372, 744 and 12 gradient steps."""
    parent_x, parent_y = filled(8000, np.arange(x)), filled(8000, 100_000 + np.arange(y))
    child = merge(parent_x, parent_y, key)
    assert int(child.size) == size
    assert int(child.position) == size % 8000
    expected = list(range(x))[-4000:] + list(range(100_000, 100_000 + y))[-4000:]
    assert sorted(held(child)) == expected
    if size:
        batch = min(128, size)
        assert 12 * (size // batch) == {4010: 372, 8000: 744, 70: 12, 3: 12}[size]


def test_the_child_of_a_merge_is_shuffled_and_takes_new_rows(key):
    child = merge(filled(100, np.arange(100)), filled(100, 100 + np.arange(100)), key)
    inherited = held(child)
    assert inherited != sorted(inherited)
    assert abs(np.corrcoef(np.arange(100), inherited)[0, 1]) < 0.4
    after = add(child, row(jnp.arange(1000, 1030)), jnp.ones(30, bool))
    assert held(after) == inherited[30:] + list(range(1000, 1030))


def test_an_odd_capacity_merges_the_lower_half_of_each(key):
    child = merge(filled(5, np.arange(9)), filled(5, 100 + np.arange(9)), key)
    assert sorted(held(child)) == [7, 8, 107, 108]


def test_only_equal_capacities_merge(key):
    with pytest.raises(ValueError, match="5 and 4"):
        merge(filled(5, [1]), filled(4, [1]), key)


@pytest.mark.parametrize("capacity", [1, 2, 5, 16])
def test_masked_writes_equal_a_deque(capacity):
    """Batches with holes, some of more valid rows than the capacity, across many wraps."""
    chance = np.random.default_rng(capacity)
    state, model, number = filled(capacity, []), deque(maxlen=capacity), 0
    for _ in range(60):
        size = int(chance.choice([1, 3, 8, 40]))
        numbers = np.arange(number, number + size)
        number += size
        valid = chance.random(size) < chance.choice([0.0, 0.3, 0.9, 1.0])
        state = add(state, row(numbers), valid)
        model.extend(numbers[valid].tolist())
        assert held(state) == list(model)
        assert int(state.size) == len(model)
        for count in (1, 3, capacity + 2):
            rows, mask = latest(state, count)
            assert rows["id"][np.asarray(mask)].tolist() == list(model)[-count:]
            assert np.asarray(mask).tolist() == sorted(mask.tolist(), reverse=True)


def test_rows_that_are_not_valid_leave_no_trace():
    state = filled(5, [1, 2])
    garbage = {"id": jnp.array([7, 8]), "x": jnp.full((2, 2), jnp.nan)}
    same = add(state, garbage, jnp.zeros(2, bool))
    equal(same, state)


@pytest.mark.parametrize("stored", [3, 20, 50])
def test_sampling_is_uniform_over_what_is_stored(stored, key, chance):
    memory = ring(20)
    state = filled(20, np.arange(stored))
    batch = jax.jit(memory.sample, static_argnums=2)(state, key, 30_000)
    alive = np.array(held(state))
    counts = np.bincount(batch["id"], minlength=stored)
    assert counts.sum() == counts[alive].sum()
    assert chance(counts[alive]) > 1e-3
    np.testing.assert_array_equal(batch["x"][:, 0], batch["id"])


@pytest.mark.parametrize("stored", [12, 50])
def test_rows_that_are_dropped_are_not_drawn_and_make_room(stored, key, chance):
    memory = ring(20)
    state = module.without_oldest(filled(20, np.arange(stored)), 7)
    left = list(range(stored))[-20:][7:]
    assert held(state) == left
    slots, there = state.oldest(20)
    assert state.take(slots)["id"][np.asarray(there)].tolist() == left
    assert set(slots[np.asarray(there)].tolist()) == set(np.flatnonzero(state.stores(jnp.arange(20))))
    assert not state.stores(jnp.array([-1, 20])).any()
    batch = jax.jit(memory.sample, static_argnums=2)(state, key, 30_000)
    counts = np.bincount(batch["id"], minlength=stored)
    assert counts.sum() == counts[left].sum()
    assert chance(counts[left]) > 1e-3
    more = list(range(100, 110))
    assert held(add(state, row(jnp.array(more)), jnp.ones(10, bool))) == (left + more)[-20:]
    assert held(module.without_oldest(state, 30)) == []


def test_a_draw_without_replacement_is_distinct_and_uniform(chance):
    state = filled(20, np.arange(33))
    memory = ring(20, replace=False)
    keys = jax.random.split(jax.random.key(1), 4000)
    batches = np.asarray(jax.jit(jax.vmap(lambda k: memory.sample(state, k, 8)["id"]))(keys))
    assert all(len(set(batch)) == 8 for batch in batches.tolist())
    counts = np.bincount(batches.ravel(), minlength=33)
    assert counts[:13].sum() == 0
    assert chance(counts[13:]) > 1e-3
    assert chance(np.bincount(batches[:, 0] - 13, minlength=20)) > 1e-3


def test_a_draw_of_more_than_is_stored_gives_all_and_marks_the_rest(key):
    rows, valid = draw(filled(20, np.arange(5)), key, 8)
    assert valid.tolist() == [True] * 5 + [False] * 3
    assert sorted(rows["id"][:5].tolist()) == [0, 1, 2, 3, 4]


def test_a_draw_from_the_newest(key):
    rows, valid = draw(filled(20, np.arange(33)), key, 8, newest=6)
    assert valid.tolist() == [True] * 6 + [False] * 2
    assert sorted(rows["id"][:6].tolist()) == [27, 28, 29, 30, 31, 32]
    rows, valid = draw(filled(20, np.arange(3)), key, 2, newest=6)
    assert valid.all()
    assert set(rows["id"].tolist()) < {0, 1, 2}


def test_a_ring_of_one_row(key):
    memory = ring(1)
    state = memory.add(memory.init(row(0)), row(jnp.arange(4)), jnp.array([True, True, True, False]))
    assert held(state) == [2]
    assert memory.sample(state, key, 3)["id"].tolist() == [2, 2, 2]
    assert held(merge(state, state, key)) == []


def test_a_ring_without_room_is_refused():
    with pytest.raises(ValueError, match="got capacity 0"):
        ring(0)


def test_dtypes_of_the_example_row_are_kept():
    memory = ring(3)
    state = memory.init({"a": jnp.int32(0), "flag": jnp.bool_(False), "x": np.zeros(2, np.float32)})
    rows = {"a": jnp.arange(2), "flag": jnp.array([True, False]), "x": jnp.ones((2, 2), jnp.bfloat16)}
    state = memory.add(state, rows, jnp.ones(2, bool))
    assert jax.tree.map(lambda x: str(x.dtype), state.rows) == {"a": "int32", "flag": "bool", "x": "float32"}


def test_under_vmap_every_ring_is_what_it_is_alone():
    population = 3
    chance = np.random.default_rng(0)
    numbers = jnp.asarray(chance.integers(0, 1000, (population, 4, 9)))
    valid = jnp.asarray(chance.random((population, 4, 9)) < 0.6)
    keys = jax.random.split(jax.random.key(2), population)

    def life(numbers, valid, key):
        state = filled(7, [])
        for number, mask in zip(numbers, valid, strict=True):
            state = add(state, row(number), mask)
        return state, draw(state, key, 4), latest(state, 3), merge(state, state, key)

    together = jax.jit(jax.vmap(life))(numbers, valid, keys)
    for i in range(population):
        alone = jax.jit(life)(numbers[i], valid[i], keys[i])
        equal(tree.take(together, i), alone)


@pytest.mark.parametrize("replace", [True, False])
def test_a_donated_ring_is_updated_and_sampled_in_place(replace):
    """A ring of 7 MB through 100 writes and draws: aliased as a whole, next to nothing on the side."""
    capacity = 200_000
    memory = ring(capacity, replace=replace)
    example = {"obs": jnp.zeros(4), "next": jnp.zeros(4), "reward": jnp.float32(0)}

    @partial(jax.jit, donate_argnums=0)
    def run(state, key):
        def one(state, key):
            batch = memory.sample(state, key, 64)
            state = memory.add(state, batch, batch["reward"] >= 0)
            return state, batch["obs"].sum()

        return jax.lax.scan(one, state, jax.random.split(key, 100))

    state = jax.eval_shape(lambda: memory.init(example))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    analysis = run.lower(state, jax.random.key(0)).compile().memory_analysis()
    assert analysis.alias_size_in_bytes >= size
    assert analysis.temp_size_in_bytes < 0.02 * size
