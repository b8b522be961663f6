"""Judging: who has diverged."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from popjax.population import judging


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_whoever_has_a_number_that_is_not_finite_has_diverged(dtype):
    numbers = {"loss": jnp.array([0.0, jnp.nan, 1.0], dtype), "size": jnp.ones((3, 2), jnp.int32)}
    assert judging.diverged(numbers, 3).tolist() == [False, True, False]
    numbers["weights"] = jnp.array([[1.0, jnp.inf], [0.0, 0.0], [0.0, 0.0]], dtype)
    assert judging.diverged(numbers, 3).tolist() == [True, True, False]


@pytest.mark.parametrize("numbers", [(), {"updates": jnp.arange(3)}])
def test_nobody_without_such_numbers_has(numbers):
    assert judging.diverged(numbers, 3).tolist() == [False] * 3
