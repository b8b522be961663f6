"""Running statistics against numpy over everything that was seen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import normalize
from tests.support import equal


def mean(state):
    return np.asarray(state.mean, np.float64) + np.asarray(state.low, np.float64)


def test_merging_batches_equals_numpy_over_the_concatenation():
    chance = np.random.default_rng(0)
    batches = [chance.normal(3, 2, (size, 5)).astype(np.float32) for size in (1, 7, 64, 2, 300, 1)]
    state = normalize.init((5,))
    for batch in batches:
        state = jax.jit(normalize.update)(state, batch)
    everything = np.concatenate(batches).astype(np.float64)
    assert int(state.count) == len(everything)
    np.testing.assert_allclose(mean(state), everything.mean(0), rtol=1e-6)
    np.testing.assert_allclose(state.variance, everything.var(0), rtol=2e-6)


def test_leading_axes_are_all_batch_axes():
    x = np.random.default_rng(1).normal(size=(4, 6, 2, 3)).astype(np.float32)
    shaped = normalize.update(normalize.init((2, 3)), x)
    flat = normalize.update(normalize.init((2, 3)), x.reshape(24, 2, 3))
    equal(shaped, flat)
    np.testing.assert_allclose(shaped.mean, x.mean((0, 1)), rtol=1e-5, atol=1e-7)


def test_a_constant_has_no_variance_and_becomes_zero():
    state = normalize.init()
    for size in (1, 5, 100):
        state = normalize.update(state, jnp.full(size, 12345.678))
    assert float(state.mean) == np.float32(12345.678)
    assert float(state.variance) == 0
    assert float(normalize.normalize(state, jnp.float32(12345.678))) == 0


def test_nothing_seen_is_the_identity():
    state = normalize.init((2,))
    assert normalize.normalize(state, jnp.array([2.0, -3.0])).tolist() == [2, -3]


@pytest.mark.parametrize("garbage", [1e30, np.nan, np.inf])
def test_masked_rows_leave_no_trace(garbage):
    chance = np.random.default_rng(2)
    x = chance.normal(size=(50, 3)).astype(np.float32)
    valid = chance.random(50) < 0.5
    dirty = np.where(valid[:, None], x, np.float32(garbage))
    seen = normalize.update(normalize.init((3,)), x[:10])
    masked, smaller = normalize.update(seen, dirty, valid), normalize.update(seen, x[valid])
    assert int(masked.count) == int(smaller.count) == 10 + valid.sum()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), masked, smaller)
    for state in (seen, normalize.init((3,))):
        nothing = normalize.update(state, dirty, np.zeros(50, bool))
        equal(nothing, state)


@pytest.mark.parametrize("size", [100, 1_000_000])
def test_a_million_samples_far_from_zero_stay_accurate(size):
    """Mean 10^4, deviation 1, in float32, whose numbers there are 10^-3 apart."""
    x = np.random.default_rng(3).normal(1e4, 1, 1_000_000).astype(np.float32)

    @jax.jit
    def run(x):
        return jax.lax.scan(
            lambda s, b: (normalize.update(s, b), None), normalize.init(), x.reshape(-1, size)
        )[0]

    state, exact = run(x), x.astype(np.float64)
    assert int(state.count) == 1_000_000
    assert abs(mean(state) - exact.mean()) < 1e-5
    assert abs(float(state.variance) / exact.var() - 1) < 1e-4


@pytest.mark.parametrize("start", [10_000_000, normalize.COUNT_LIMIT])
def test_the_variance_stays_over_ten_million_late_updates(start):
    """Each would change the variance by less than its last digit if it weighed one in ``start``."""
    deviation = np.array([0.1, 1.3], np.float32)

    def one(carry, _):
        state, x = carry
        x = 1664525 * x + np.uint32(1013904223)  # Numerical Recipes' generator, as threefry takes minutes
        uniform = x.astype(jnp.float32) / 2.0**31 - 1
        return (normalize.update(state, deviation * 3**0.5 * uniform[None]), x), None

    state = normalize.init((2,)).replace(count=jnp.int32(start), variance=jnp.square(deviation))
    scan = jax.jit(lambda carry: jax.lax.scan(one, carry, None, length=10_000_000, unroll=4)[0])
    state = scan((state, jnp.array([1, 2**31], jnp.uint32)))[0]
    np.testing.assert_allclose(state.variance, deviation**2, rtol=1e-2)


def test_normalize_and_clip():
    x = np.random.default_rng(4).normal(5, 3, (1000, 2)).astype(np.float32)
    state = normalize.update(normalize.init((2,)), x)
    normal = normalize.normalize(state, x)
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(0), 1, rtol=1e-5)
    clipped = normalize.normalize(state, x, clip=0.5)
    assert float(clipped.max()) == 0.5
    assert float(clipped.min()) == -0.5


def test_the_count_stands_still_before_it_overflows():
    state = normalize.init().replace(count=jnp.int32(normalize.COUNT_LIMIT))
    state = normalize.update(state, jnp.ones(10))
    assert int(state.count) == normalize.COUNT_LIMIT
    assert np.isfinite(float(state.mean))


@pytest.mark.parametrize("value", [0.1, -1.3, 0.0, 1e30])
def test_equal_numbers_are_standardized_to_zero(value):
    """The float32 mean of thousands of them is not their value."""
    standard = jax.jit(normalize.standardized)
    np.testing.assert_array_equal(standard(jnp.full(4000, value)), 0)
    x = jnp.full(4000, value).at[7].set(jnp.nan).at[9].set(5e3)
    valid = jnp.ones(4000, bool).at[jnp.array([7, 9])].set(False)
    np.testing.assert_array_equal(standard(x, valid)[valid], 0)


def test_numbers_that_differ_in_the_last_digit_are_standardized_around_zero():
    apart = np.nextafter(np.float32(0.1), np.float32(1))
    standard = jax.jit(normalize.standardized)(jnp.array([0.1, apart] * 2000, jnp.float32))
    np.testing.assert_allclose(standard, [-1, 1] * 2000, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1.0, -300.0])
def test_unequal_numbers_are_standardized_as_before(offset):
    x = jnp.asarray(np.random.default_rng(0).normal(offset, 1, 4000), jnp.float32)
    valid = jnp.arange(4000) % 3 > 0
    expected = (x - x.mean(where=valid)) / x.std(where=valid)
    np.testing.assert_array_equal(normalize.standardized(x, valid), expected)
    assert np.all(normalize.standardized(x, jnp.zeros(4000, bool)) == 0)


def test_under_vmap_every_individual_has_its_own():
    x = np.random.default_rng(5).normal(size=(3, 20, 2)).astype(np.float32)
    together = jax.vmap(normalize.update, in_axes=(None, 0))(normalize.init((2,)), x)
    for i in range(3):
        alone = normalize.update(normalize.init((2,)), x[i])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[i], b, rtol=1e-6, atol=1e-7), together, alone)


def no_returns(lanes=()):
    return normalize.init(), jnp.zeros(lanes)


def test_return_statistics_equal_a_loop_over_time():
    """R <- gamma R + r; R joins the statistics; R <- 0 where done: Baselines' VecNormalize."""
    chance = np.random.default_rng(6)
    reward = chance.normal(1, 2, (40, 3)).astype(np.float32)
    done = chance.random((40, 3)) < 0.1
    returns, seen = np.zeros(3), []
    for r, d in zip(reward, done, strict=True):
        returns = 0.9 * returns + r
        seen.append(returns.copy())
        returns[d] = 0
    state = normalize.update_returns(*no_returns((3,)), reward, done, 0.9)
    np.testing.assert_allclose(state[0].variance, np.var(seen), rtol=1e-5)
    np.testing.assert_allclose(state[1], returns, rtol=1e-5, atol=1e-5)

    steps, update = no_returns((3,)), jax.jit(normalize.update_returns)
    for r, d in zip(reward, done, strict=True):
        steps = update(*steps, r[None], d[None], 0.9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), steps, state)


def test_steps_that_did_not_happen_do_not_reach_the_returns():
    reward = jnp.array([1.0, 2.0, jnp.nan, 3.0])
    done, valid = jnp.zeros(4, bool), jnp.array([True, True, False, True])
    masked = normalize.update_returns(*no_returns(), reward, done, 0.5, valid)
    played = normalize.update_returns(*no_returns(), jnp.array([1.0, 2.0, 3.0]), done[:3], 0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), masked, played)
    assert float(masked[1]) == 0.5 * (0.5 * 1 + 2) + 3
