"""Advantages against numbers worked out by hand and against sums written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.advantage import at_once, generalized, in_turn

GAMMA = 0.9


def estimate(rewards, discounts, values, next_values, done, trace_decay):
    arrays = (jnp.asarray(x, jnp.float32) for x in (rewards, discounts, values, next_values))
    return np.asarray(generalized(*arrays, jnp.asarray(done, bool), trace_decay))


@pytest.mark.parametrize(
    ("bootstrap", "expected"), [(0.3, [0.78109, 0.69403, -0.103]), (None, [0.49, 0.4, -0.4])]
)
def test_worked_example(bootstrap, expected):
    """CDRL's first: gamma 0.99, lambda 1; the third step ends the rows, or the task."""
    discounts = [0.99, 0.99, 0.99 if bootstrap else 0]
    # The successor's value of a step that terminates must not matter.
    next_values = [0.6, 0.4, bootstrap or 77]
    got = estimate([0, 1, 0], discounts, [0.5, 0.6, 0.4], next_values, [0, 0, bootstrap is None], 1.0)
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_termination_in_the_middle():
    """delta = [1 + .9*2 - 1, 2 - 2, 3 + .9*5 - 4] = [1.8, 0, 3.5]; nothing passes over the end."""
    got = estimate([1, 2, 3], [GAMMA, 0, GAMMA], [1, 2, 4], [2, 99, 5], [0, 1, 0], 0.5)
    np.testing.assert_allclose(got, [1.8, 0, 3.5], rtol=1e-6)
    got = estimate([1, 3, 3], [GAMMA, 0, GAMMA], [1, 2, 4], [2, 99, 5], [0, 1, 0], 0.5)
    np.testing.assert_allclose(got, [1.8 + 0.45, 1, 3.5], rtol=1e-6)


def test_truncation_in_the_middle():
    """The value 10 of the true successor counts, the advantage 3.5 of the next episode does not:
    delta = [1.8, 2 + .9*10 - 2, 3.5] = [1.8, 9, 3.5], and 1.8 + .45 * 9 = 5.85."""
    got = estimate([1, 2, 3], [GAMMA] * 3, [1, 2, 4], [2, 10, 5], [0, 1, 0], 0.5)
    np.testing.assert_allclose(got, [5.85, 9, 3.5], rtol=1e-6)
    got = estimate([1, 2, 3], [GAMMA] * 3, [1, 2, 4], [2, 10, 5], [0, 0, 0], 0.5)
    np.testing.assert_allclose(got, [1.8 + 0.45 * (9 + 0.45 * 3.5), 9 + 0.45 * 3.5, 3.5], rtol=1e-6)


def rollouts(steps=12, lanes=3):
    chance = np.random.default_rng(0)
    values, rewards, next_values = chance.normal(size=(3, steps, lanes))
    terminated, truncated = chance.random((2, steps, lanes)) < 0.2
    done = terminated | truncated
    assert terminated[:-1].any()
    assert (truncated & ~terminated)[:-1].any()
    next_values[:-1] = np.where(done[:-1], next_values[:-1], values[1:])
    return rewards, np.where(terminated, 0, GAMMA), values, next_values, done


def returns_to_the_end(rewards, discounts, values, next_values, done):
    """Sums written out: forward from each step to the end of its episode or of the rows."""
    total = np.zeros_like(rewards)
    for t, lane in np.ndindex(*rewards.shape):
        weight = 1.0
        for k in range(t, len(rewards)):
            total[t, lane] += weight * rewards[k, lane]
            weight *= discounts[k, lane]
            if done[k, lane] or k == len(rewards) - 1:
                total[t, lane] += weight * next_values[k, lane]
                break
    return total


def test_lambda_1_is_the_return_minus_the_value():
    rows = rollouts()
    np.testing.assert_allclose(estimate(*rows, 1.0), returns_to_the_end(*rows) - rows[2], atol=1e-5)


def test_lambda_0_is_the_error_of_one_step():
    rewards, discounts, values, next_values, _ = rows = rollouts()
    np.testing.assert_allclose(estimate(*rows, 0.0), rewards + discounts * next_values - values, atol=1e-6)


@pytest.mark.parametrize("trace_decay", [0.3, 0.95])
def test_between_them_it_is_the_mean_of_returns_of_all_lengths(trace_decay):
    """(1 - lambda) sum lambda^{n-1} A^{(n)} without an end: Schulman et al., equation 16."""
    steps, chance = 400, np.random.default_rng(1)
    rewards, values = chance.normal(size=(2, steps))
    next_values = np.append(values[1:], 0.5)
    n = np.arange(1, steps)
    discounted = np.cumsum(GAMMA ** np.arange(steps) * rewards)
    of_length = discounted[n - 1] + GAMMA**n * values[n] - values[0]
    expected = (1 - trace_decay) * (trace_decay ** (n - 1) * of_length).sum()
    got = estimate(rewards, np.full(steps, GAMMA), values, next_values, np.zeros(steps), trace_decay)
    assert got[0] == pytest.approx(expected, abs=1e-4)


def test_an_accelerator_takes_all_rows_at_once_and_finds_the_same():
    rewards, discounts, values, next_values, done = rollouts(steps=37)
    errors = jnp.asarray(rewards + discounts * next_values - values, jnp.float32)
    traces = jnp.asarray(np.where(done, 0, 0.95 * discounts), jnp.float32)
    np.testing.assert_allclose(at_once(errors, traces), in_turn(errors, traces), atol=1e-5)


def test_lanes_and_vmap_agree_and_other_episodes_leave_no_trace():
    rows = rollouts()
    done = rows[-1]
    arrays = [jnp.asarray(x, jnp.float32) for x in rows[:4]] + [jnp.asarray(done)]
    lifted = jax.vmap(generalized, (1, 1, 1, 1, 1, None), 1)(*arrays, 0.8)
    np.testing.assert_allclose(lifted, estimate(*rows, 0.8), atol=1e-6)
    lane = int(np.argmax(done[:-1].any(0)))
    end = int(np.argmax(done[:, lane]))
    changed = [x.copy() for x in rows]
    for x in changed[:4]:
        x[end + 1 :, lane] += 50
    before, after = estimate(*rows, 0.8)[:, lane], estimate(*changed, 0.8)[:, lane]
    np.testing.assert_array_equal(before[: end + 1], after[: end + 1])
    assert (before[end + 1 :] != after[end + 1 :]).all()
