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


def search(mean, variance):
    return replace(cem.init(jnp.array(mean), HYPER), variance=jnp.array(variance))


def test_the_density_is_the_normals():
    one = cem.log_density(search([1.0, -2.0], [4.0, 0.25]), jnp.array([[1.0, -2.0], [3.0, -1.5]]))
    np.testing.assert_allclose(one, [-np.log(2 * np.pi), -np.log(2 * np.pi) - 1], rtol=1e-6)


def test_acceptance_by_hand():
    """From N(0, 1) to N(1, 1) the ratio of densities at z is exp(z - 1/2)."""
    z = jnp.array([[0.0], [0.5], [2.0]])
    stay, join = cem.acceptance(search([0.0], [1.0]), search([1.0], [1.0]), z, z)
    np.testing.assert_allclose(stay, [0.606531, 1, 1], atol=1e-6)
    np.testing.assert_allclose(join, [0, 0, 0.776870], atol=1e-6)


def test_mixing_keeps_everyone_of_a_search_that_stands_still_and_nobody_of_one_far_away(key):
    near, far = search([0.0, 0.0], [1.0, 1.0]), search([50.0, 0.0], [1.0, 1.0])
    old = jax.random.normal(key, (5, 2))
    mixed, source = cem.mix(near, near, old, jnp.bool_(True), key)
    np.testing.assert_array_equal(mixed, old)
    np.testing.assert_array_equal(source, np.arange(5))
    for other, usable in ((far, True), (near, False)):
        mixed, source = cem.mix(near, other, old, jnp.bool_(usable), key)
        np.testing.assert_array_equal(source, np.full(5, -1))
        np.testing.assert_allclose(mixed.mean(0), other.mean, atol=1.5)


def test_mixed_individuals_are_spread_as_the_new_search(key):
    before, after = search([0.0, 0.0], [1.0, 1.0]), search([0.4, 0.0], [0.5, 1.5])

    def once(key):
        key_old, key_mix = jax.random.split(key)
        old = jax.random.normal(key_old, (500, 2))
        mixed, source = cem.mix(before, after, old, jnp.bool_(True), key_mix)
        return mixed, source, jnp.where((source >= 0)[:, None], old[source] - mixed, 0.0)

    mixed, source, apart = jax.vmap(once)(jax.random.split(key, 160))
    assert not apart.any()
    assert 0.5 < (source >= 0).mean() < 0.9
    np.testing.assert_allclose(mixed.mean((0, 1)), after.mean, atol=0.015)
    np.testing.assert_allclose(mixed.var((0, 1)), after.variance, rtol=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parents": 11}, "parents must be in 1 to the population 10, got 11"),
        ({"population": 7}, "even population, got 7; use 8 or unset antithetic"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cem.Config(**options)
