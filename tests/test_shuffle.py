"""Permutations of a run-time number of items: bijective, uniform, and cheap to take a part of."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import shuffle

permuted = jax.jit(shuffle.permuted)  # some hundreds of operations, which take seconds one by one


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 64, 641, 8000, 1_000_000])
def test_every_image_occurs_once(size, key):
    images = permuted(key, jnp.arange(size), size)
    np.testing.assert_array_equal(np.sort(images), np.arange(size))


@pytest.mark.parametrize("size", [0, 1, 5, 10])
def test_indices_outside_are_returned_as_they_are(size, key):
    index = jnp.array([-1, -7, size, size + 3, 2**30])
    assert permuted(key, index, size).tolist() == index.tolist()


def test_a_prefix_is_a_draw_without_replacement_whatever_the_static_length(key):
    whole = permuted(key, jnp.arange(641), 641)
    part = permuted(key, jnp.arange(128), 641)
    np.testing.assert_array_equal(part, whole[:128])
    assert len(set(part.tolist())) == 128


def test_the_size_may_be_traced_and_mapped(key):
    sizes, keys = jnp.array([1, 5, 100]), jax.random.split(key, 3)
    mapped = jax.vmap(permuted, in_axes=(0, None, 0))(keys, jnp.arange(100), sizes)
    for row, k, size in zip(mapped, keys, sizes.tolist(), strict=True):
        np.testing.assert_array_equal(row, permuted(k, jnp.arange(100), size))
        assert sorted(row[:size].tolist()) == list(range(size))


def shuffles(size, draws):
    """[draws, size]: one permutation for each of many keys."""
    keys = jax.random.split(jax.random.key(size), draws)
    return np.asarray(jax.vmap(lambda k: permuted(k, jnp.arange(size), size))(keys))


@pytest.mark.parametrize("size", [2, 3, 10, 33])
def test_every_item_is_equally_likely_at_every_place(size, chance):
    images = shuffles(size, 20_000)
    for place in range(0, size, 3):
        assert chance(np.bincount(images[:, place], minlength=size)) > 1e-3


@pytest.mark.parametrize("places", [(0, 1), (3, 9), (8, 2)])
def test_every_ordered_pair_is_equally_likely(places, chance):
    images = shuffles(10, 40_000)
    a, b = (images[:, place] for place in places)
    counts = np.bincount(a * 10 + b, minlength=100).reshape(10, 10)
    assert np.diag(counts).sum() == 0
    assert chance(counts[~np.eye(10, dtype=bool)]) > 1e-3


@pytest.mark.parametrize("size", [3, 4, 5])
def test_every_permutation_is_equally_likely(size, chance):
    images = shuffles(size, 40_000)
    codes = (images * size ** np.arange(size)).sum(1)
    every = [sum(v * size**i for i, v in enumerate(p)) for p in itertools.permutations(range(size))]
    assert set(codes) == set(every)
    assert chance([np.sum(codes == code) for code in every]) > 1e-3


def test_a_large_draw_is_spread_evenly(chance):
    """128 of a million, for many keys: 64 equal intervals are hit equally often."""
    keys = jax.random.split(jax.random.key(5), 1000)
    images = jax.vmap(lambda k: permuted(k, jnp.arange(128), 1_000_000))(keys)
    assert chance(np.histogram(images, 64, (0, 1_000_000))[0]) > 1e-3


def test_neighbours_do_not_stay_neighbours():
    keys = jax.random.split(jax.random.key(6), 200)
    images = np.asarray(jax.vmap(lambda k: permuted(k, jnp.arange(1000), 1000))(keys))
    steps = np.abs(np.diff(images, axis=1))
    assert abs(steps.mean() - 1001 / 3) < 2  # the mean distance of two different numbers below 1000
