"""Clipping is Optax's, and a GPU computes the norm in few kernels."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from popjax import optimize
from popjax.replay import packed


@pytest.fixture
def gradient() -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"kernel": (100, 80), "bias": (80,), "head": (80, 3), "scale": ()}
    return {
        name: jax.random.normal(key, shape) for (name, shape), key in zip(shapes.items(), keys, strict=True)
    }


@pytest.mark.parametrize("limit", [0.5, 1e3, np.inf])
def test_clipping_is_that_of_optax(gradient, limit):
    def clipped(clip, gradient):
        return jax.jit(lambda x: clip(limit).update(x, optax.EmptyState())[0])(gradient)

    ours, theirs = (
        clipped(optimize.clip_by_global_norm, gradient),
        clipped(optax.clip_by_global_norm, gradient),
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    jax.clear_caches()
    with mock.patch.object(packed, "platform", return_value="gpu"):
        on_gpu = clipped(optimize.clip_by_global_norm, gradient)
    jax.clear_caches()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), on_gpu, theirs)


def test_a_gpu_sums_small_leaves_together(gradient):
    def sums():
        jaxpr = jax.make_jaxpr(lambda x: optimize.global_norm(x))(gradient)  # a new function is traced anew
        return sum(str(each.primitive) == "reduce_sum" for each in jaxpr.jaxpr.eqns)

    assert sums() == 4
    with mock.patch.object(packed, "platform", return_value="gpu"):
        assert sums() == 2


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_norm_of_a_number_that_is_none_is_none(platform):
    with mock.patch.object(packed, "platform", return_value=platform):
        assert jnp.isnan(optimize.global_norm([jnp.array([1.0, jnp.nan]), jnp.zeros(2)]))
        np.testing.assert_allclose(
            optimize.global_norm([jnp.array([3.0]), jnp.full((80, 80), 0.05)]), 5.0, rtol=1e-6
        )
