"""Clipping is Optax's, and a GPU computes the norm in few kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from popjax import optimize


@pytest.fixture
def gradient() -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"kernel": (100, 80), "bias": (80,), "head": (80, 3), "scale": ()}
    pairs = zip(shapes.items(), keys, strict=True)
    return {name: jax.random.normal(key, shape) for (name, shape), key in pairs}


@pytest.mark.parametrize("limit", [0.5, 1e3, np.inf])
def test_clipping_is_that_of_optax(gradient, limit):
    def clipped(clip):
        return jax.jit(lambda x: clip(limit).update(x, optax.EmptyState())[0])(gradient)

    ours, theirs = clipped(optimize.clip_by_global_norm), clipped(optax.clip_by_global_norm)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(("size", "limit"), [(0.0, 0.0), (1e20, np.inf)])
def test_a_gradient_as_long_as_the_limit_is_left_alone(size, limit):
    gradient = {"kernel": jnp.array([size, 0.0]), "bias": jnp.zeros(1)}
    clipped, _ = jax.jit(optimize.clip_by_global_norm(limit).update)(gradient, optax.EmptyState())
    jax.tree.map(np.testing.assert_array_equal, clipped, gradient)


def test_a_gpu_sums_small_leaves_together(gradient):
    def sums(platform):
        program = jax.export.export(jax.jit(optimize.global_norm), platforms=[platform])(gradient)
        return program.mlir_module().count("stablehlo.reduce(")

    assert [sums(platform) for platform in ("cpu", "tpu", "cuda", "rocm")] == [4, 4, 2, 2]


@pytest.mark.parametrize("few", [0, optimize.FEW])
def test_the_norm_is_the_same_however_leaves_are_joined(few):
    leaves = [jnp.array([3.0]), jnp.full((80, 80), 0.05), jnp.zeros(())]
    np.testing.assert_allclose(optimize._norm(leaves, few), 5.0, rtol=1e-6)
    assert jnp.isnan(optimize._norm([jnp.array([1.0, jnp.nan]), jnp.zeros(2)], few))
