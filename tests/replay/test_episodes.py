"""States that lie close in an episode, and the rewards that followed, read from a ring."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import tree
from popjax.core import Transition
from popjax.population import lanes
from popjax.replay import episodes
from popjax.replay.ring import full, ring


def filled(numbers, rewards, capacity):
    """A ring whose obs are 100 * lane + time, with episodes and rewards as given, [time, lanes] each."""
    store, replay = None, ring(capacity)
    for time, (number, reward) in enumerate(zip(numbers, rewards, strict=True)):
        obs = jnp.array([[100.0 * lane + time] for lane in range(len(number))])
        step = Transition(obs, obs, jnp.float32(reward), jnp.ones(len(obs)), obs)
        rows = episodes.numbered(step, jnp.int32(number))
        store = store or replay.init(tree.take(rows, 0))
        store = replay.add(store, rows, jnp.ones(len(obs), bool))
    return store


def test_positives_stay_in_their_lane_and_episode_within_the_horizon_and_in_the_ring():
    time = np.arange(20)
    # Lanes have episodes of different lengths; the ring of ten steps has forgotten the first ten.
    numbers = np.stack([time // 20, time // 4, time // 7, time // 1], 1)
    store = filled(numbers, np.zeros((20, 4)), 40)
    anchors, positives, valid = episodes.pairs(store, jax.random.key(0), 4000, 4, 3)
    a, p, v = np.ravel(anchors), np.ravel(positives), np.asarray(valid)
    lane, when, other = a // 100, (a % 100).astype(int), (p % 100).astype(int)
    assert (v == (lane != 3)).all()  # episodes of one step have no positive, all others here have one
    assert (lane[v] == p[v] // 100).all()
    offset = other[v] - when[v]
    assert set(np.unique(offset)) == {-3, -2, -1, 1, 2, 3}
    assert (when >= 10).all()
    assert (other[v] >= 10).all()
    at = lane[v].astype(int)
    assert (numbers[when[v], at] == numbers[other[v], at]).all()


def test_all_valid_offsets_are_as_likely(chance):
    store = filled(np.zeros((30, 1)), np.zeros((30, 1)), 30)
    anchors, positives, valid = episodes.pairs(store, jax.random.key(1), 20_000, 1, 5)
    a, p = np.ravel(anchors), np.ravel(positives)
    middle = (a >= 5) & (a < 25)
    counts = np.unique(p[middle] - a[middle], return_counts=True)[1]
    assert len(counts) == 10
    assert chance(counts) > 1e-3
    assert valid.all()


def test_a_full_ring_of_given_rows_is_read_like_one_that_was_written():
    numbers = np.arange(12).reshape(12, 1) // 5 + np.zeros((1, 2))
    store = filled(numbers, np.zeros((12, 2)), 24)
    read = [episodes.pairs(x, jax.random.key(0), 64, 2, 2) for x in (store, full(store.rows))]
    for one, other in zip(*read, strict=True):
        np.testing.assert_array_equal(one, other)


def test_monte_carlo_returns():
    """Worked example 6: horizon 3, rewards 1 2 3 4 give 6 9 7 4, the last two because the episode ends."""
    numbers = np.array([[0], [0], [0], [0], [1], [1]])
    rewards = np.array([[1.0], [2], [3], [4], [50], [60]])
    store = filled(numbers, rewards, 8)
    returns, complete = episodes.following(store, jnp.arange(6), 1, 3)
    np.testing.assert_array_equal(returns[:4], [6, 9, 7, 4])
    np.testing.assert_array_equal(complete, [True] * 4 + [False] * 2)


def test_returns_are_found_across_the_end_of_the_ring():
    rewards = np.arange(24.0).reshape(12, 2)
    store = filled(np.zeros((12, 2)), rewards, 16)  # holds steps 4 to 11
    when = np.ravel(store.rows.obs[:, 0] % 100).astype(int)
    lane = np.ravel(store.rows.obs[:, 0] // 100).astype(int)
    returns, complete = episodes.following(store, jnp.arange(16), 2, 3)
    assert (np.asarray(complete) == (when <= 9)).all()
    for slot in np.flatnonzero(complete):
        assert returns[slot] == rewards[when[slot] : when[slot] + 3, lane[slot]].sum()


@pytest.mark.parametrize("shape", [(3, 1), (2, 4)])
def test_the_owner_of_a_slot_is_the_individual_whose_lane_wrote_it(shape):
    rows = jnp.broadcast_to(jnp.arange(shape[0])[:, None], (5, *shape)).reshape(-1)  # [T, P, N]
    np.testing.assert_array_equal(lanes.owner(jnp.arange(len(rows)), shape), rows)
