"""The cross-entropy method's numbers, and that it climbs."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.core import as_arrays
from popjax.evolution import cem

HYPER = as_arrays(cem.Hyper())


def test_weights_of_five_parents():
    expected = [0.429544, 0.263374, 0.166170, 0.097203, 0.043709]
    np.testing.assert_allclose(cem.weights(5), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("divide", "variance"), [(True, [0.004603, 0.006342]), (False, [0.008255, 0.011734])]
)
def test_the_worked_example(divide, variance):
    config = cem.Config(population=4, parents=2, divide_by_parents=divide)
    population = jnp.array([[0.1, 0], [-0.1, 0], [0, 0.2], [0, -0.2]])
    state = cem.tell(cem.init(jnp.zeros(2), HYPER), population, jnp.array([1.0, 3, 2, 0]), HYPER, config)
    np.testing.assert_allclose(cem.weights(2), [0.730423, 0.269577], atol=1e-6)
    np.testing.assert_allclose(state.mean, [-0.073042, 0.053915], atol=1e-6)
    np.testing.assert_allclose(state.damp, 9.505e-4, rtol=1e-6)
    np.testing.assert_allclose(state.variance, variance, atol=1e-6)


def test_the_damp_falls_as_in_the_code():
    state, damps = cem.init(jnp.zeros(3), HYPER), []
    for _ in range(10):
        state = cem.tell(state, jnp.zeros((10, 3)), jnp.zeros(10), HYPER)
        damps.append(float(state.damp))
    np.testing.assert_allclose(
        [damps[i] for i in (0, 1, 4, 9)], [9.505e-4, 9.03475e-4, 7.760431e-4, 6.027496e-4], rtol=1e-5
    )


def test_antithetic_individuals_mirror_each_other(key):
    state = cem.init(jnp.arange(4.0), HYPER)
    population = cem.ask(state, key)
    np.testing.assert_allclose(
        population[:5] + population[5:], 2 * jnp.broadcast_to(state.mean, (5, 4)), atol=1e-6
    )
    free = cem.ask(state, key, cem.Config(population=7, parents=3, antithetic=False))
    assert free.shape == (7, 4)


def test_individuals_are_spread_as_the_variance_says(key):
    state = replace(cem.init(jnp.array([1.0, -2.0]), HYPER), variance=jnp.array([4.0, 0.25]))
    population = cem.ask(state, key, cem.Config(population=20_000, parents=2))
    np.testing.assert_allclose(population.mean(0), [1, -2], atol=1e-4)
    np.testing.assert_allclose(population.var(0), [4, 0.25], rtol=0.03)


def test_order_of_the_individuals_does_not_matter(key):
    state = cem.init(jnp.zeros(3), HYPER)
    population = cem.ask(state, key)
    fitness, order = population.sum(1), jax.random.permutation(key, 10)
    one = cem.tell(state, population, fitness, HYPER)
    two = cem.tell(state, population[order], fitness[order], HYPER)
    np.testing.assert_allclose(one.mean, two.mean, atol=1e-7)
    np.testing.assert_allclose(one.variance, two.variance, atol=1e-7)


def test_it_finds_the_top_of_a_hill(key):
    top = jnp.array([0.5, -0.3, 0.2])

    def generation(state, key):
        population = cem.ask(state, key)
        fitness = -jnp.square(population - top).sum(1)
        return cem.tell(state, population, fitness, HYPER), fitness.mean()

    state, fitness = jax.lax.scan(generation, cem.init(jnp.zeros(3), HYPER), jax.random.split(key, 150))
    np.testing.assert_allclose(state.mean, top, atol=0.03)
    assert fitness[-10:].mean() > 0.1 * fitness[:3].mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parents": 11}, "parents must be in 1 to the population 10, got 11"),
        ({"population": 7}, "come in pairs, the population is 7"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cem.Config(**options)
