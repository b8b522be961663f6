"""Returns of n steps against the sum written out, over episodes that end in both ways."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import tree
from popjax.core import Timestep, Transition
from popjax.replay import local, nstep
from tests.support import equal

GAMMA = 0.99
EXAMPLE = Transition(jnp.zeros(2), jnp.zeros((), jnp.int32), jnp.float32(0), jnp.float32(0), jnp.zeros(2))


@lru_cache
def run_lane(n):
    """A compiled lane: rewards, terminated, truncated [T] -> transitions and valid [T, n].

    Step t is taken in observation (t, -t) with action t; its true successor is (t + 1/2, 0), which no other
    step acts on.
    """

    def lane(rewards, terminated, truncated, gamma):
        def one(window, now):
            t, reward, terminated, truncated = now
            obs, after = jnp.stack([t, -t]).astype(jnp.float32), jnp.stack([t + 0.5, 0.0 * t])
            window, rows, valid = nstep.push(window, obs, t, reward, terminated, truncated, after, gamma)
            return window, (rows, valid)

        steps = jnp.arange(len(rewards)), rewards, terminated, truncated
        return jax.lax.scan(one, nstep.init(EXAMPLE, n), steps)

    return jax.jit(lane)


def emitted(n, rewards, terminated, truncated, gamma=GAMMA):
    """Return the rows that a lane gives out, in order: (step acted on, return, discount, step completed
    at)."""
    rewards = jnp.asarray(rewards, jnp.float32)
    window, (rows, valid) = run_lane(n)(rewards, jnp.asarray(terminated), jnp.asarray(truncated), gamma)
    valid = np.asarray(valid)
    assert (valid == np.sort(valid, 1)[:, ::-1]).all(), "valid rows come first"
    rows = jax.tree.map(lambda x: np.asarray(x)[valid], rows)
    np.testing.assert_array_equal(rows.obs, np.stack([rows.action, -rows.action], -1))
    np.testing.assert_array_equal(rows.next_obs[:, 0], np.nonzero(valid)[0] + 0.5)
    return window, list(zip(rows.action, rows.reward, rows.discount, np.nonzero(valid)[0], strict=True))


def by_hand(n, rewards, terminated, truncated, gamma=GAMMA):
    """Section 14 of the specification with lists, in float64."""
    waiting, found = [], []

    def out(items, bootstrap, now):
        for j, (t, _) in enumerate(items):
            rest = [reward for _, reward in items[j:]]
            total = sum(gamma**i * reward for i, reward in enumerate(rest))
            found.append((t, total, gamma ** len(rest) if bootstrap else 0.0, now))

    for t, reward in enumerate(rewards):
        waiting.append((t, reward))
        if terminated[t] or truncated[t]:
            out(waiting, not terminated[t], t)
            waiting = []
        elif len(waiting) == n:
            out(waiting, True, t)
            found = found[: len(found) - n + 1]  # only the oldest is complete
            waiting.pop(0)
    return waiting, found


def flags(length, *where):
    return np.isin(np.arange(length), where)


def test_worked_example_1_three_steps_and_the_target_of_double_q():
    _, rows = emitted(3, [1, 0, 2], flags(3), flags(3))
    ((step, total, discount, now),) = rows
    assert (step, now) == (0, 2)
    assert total == pytest.approx(2.9602, abs=1e-6)
    assert discount == pytest.approx(0.970299, abs=1e-6)
    online, target = np.array([1, 3, 2]), np.array([5, 4, 6])
    assert total + discount * target[np.argmax(online)] == pytest.approx(6.841396, abs=2e-6)


def test_worked_example_2_a_terminal_after_the_second_reward():
    window, rows = emitted(3, [1, 0], flags(2, 1), flags(2))
    assert rows[0][1:] == (1.0, 0.0, 1)
    assert rows[1][1:] == (0.0, 0.0, 1)
    assert len(rows) == 2
    assert int(window.count) == 0


def test_worked_example_7_sixty_steps_fill_fifty_after_step_52():
    window, rows = emitted(3, np.ones(60), flags(60), flags(60))
    assert [now for *_, now in rows][49] == 51  # the 52nd step completes the 50th transition
    assert len(rows) == 58
    assert int(window.count) == 2


def test_a_time_limit_bootstraps_from_the_successor_before_the_reset():
    _, rows = emitted(3, [1, 0, 2, 5], flags(4), flags(4, 3))
    assert [step for step, *_ in rows] == [0, 1, 2, 3]
    np.testing.assert_allclose([row[1] for row in rows], [2.9602, 6.8805, 6.95, 5], rtol=1e-6)
    np.testing.assert_allclose([row[2] for row in rows], [GAMMA**3, GAMMA**3, GAMMA**2, GAMMA], rtol=1e-6)
    assert [now for *_, now in rows] == [2, 3, 3, 3]


def test_a_step_that_does_both_terminated():
    _, rows = emitted(3, [1, 1], flags(2, 1), flags(2, 1))
    assert [discount for _, _, discount, _ in rows] == [0.0, 0.0]


@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_episodes_equal_the_sum_written_out(n, seed):
    chance = np.random.default_rng(seed)
    rewards = chance.normal(size=300).astype(np.float32)
    terminated, truncated = chance.random((2, 300)) < np.array([[0.15], [0.1]])
    terminated, truncated = terminated & (np.arange(300) > 40), truncated & (np.arange(300) > 40)
    window, rows = emitted(n, rewards, terminated, truncated, 0.9)
    waiting, expected = by_hand(n, rewards.astype(np.float64), terminated, truncated, 0.9)
    assert [(row[0], row[3]) for row in rows] == [(row[0], row[3]) for row in expected]
    np.testing.assert_allclose([row[1:3] for row in rows], [row[1:3] for row in expected], atol=2e-6)
    assert int(window.count) == len(waiting)
    assert window.reward[: len(waiting)].tolist() == [np.float32(reward) for _, reward in waiting]


def test_one_step_is_the_plain_transition():
    rewards = np.array([0.1, -7.3, 1e-3], np.float32)
    _, rows = emitted(1, rewards, flags(3, 2), flags(3, 1))
    gamma = np.float32(GAMMA)
    assert rows == [(0, rewards[0], gamma, 0), (1, rewards[1], gamma, 1), (2, rewards[2], 0.0, 2)]


def test_lanes_under_vmap_with_their_own_discounts_equal_lanes_alone():
    chance = np.random.default_rng(3)
    rewards = jnp.asarray(chance.normal(size=(4, 40)), jnp.float32)
    terminated, truncated = jnp.asarray(chance.random((2, 4, 40)) < 0.15)
    gamma = jnp.array([0.0, 0.5, 0.9, 1.0])
    together = jax.vmap(run_lane(3))(rewards, terminated, truncated, gamma)
    for i in range(4):
        alone = run_lane(3)(rewards[i], terminated[i], truncated[i], gamma[i])
        equal(tree.take(together, i), alone)


def test_dtypes_and_shapes_are_those_of_the_example():
    image = jnp.zeros((4, 4), jnp.uint8)
    example = Transition(image, jnp.zeros(3), jnp.float32(0), jnp.float32(0), image)
    window = nstep.init(example, 2)
    after, rows, valid = nstep.push(window, image, jnp.ones(3), 1.0, False, False, image, 0.9)
    shape = jax.tree.map(lambda x: (jnp.shape(x), x.dtype, x.weak_type), window)
    assert jax.tree.map(lambda x: (jnp.shape(x), x.dtype, x.weak_type), after) == shape
    assert jax.tree.map(lambda x: str(x.dtype), rows) == Transition("uint8", *["float32"] * 3, "uint8")
    assert rows.obs.shape == (2, 4, 4)
    assert valid.tolist() == [False, False]


def test_no_step_is_no_return():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        nstep.init(EXAMPLE, 0)


def test_a_cut_completes_the_steps_before_it_without_a_bootstrap():
    """Rewards 1, 2 and 4 with a lost life after the second: the first two are stored, the third waits."""
    held, no = local.empty(EXAMPLE, 3, 5), jnp.bool_(False)
    remember = jax.jit(local.remember)
    for reward, cut in ((1.0, False), (2.0, True), (4.0, False)):
        after = jnp.full(2, 9.0), jnp.full(2, reward)
        timestep = Timestep(*after, jnp.float32(reward), no, no, jnp.bool_(cut))
        held = remember(held, jnp.zeros(2), jnp.int32(0), timestep, GAMMA)
    assert (int(held.count), int(held.window.count)) == (2, 1)
    np.testing.assert_allclose(held.rows.reward[:2], [1 + GAMMA * 2, 2], rtol=1e-6)
    assert held.rows.discount[:2].tolist() == [0, 0]
    assert held.rows.next_obs[:2].tolist() == [[2, 2], [2, 2]]
