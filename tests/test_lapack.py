"""Batches of LAPACK calls: the values of single calls, and no deadlock however few the threads."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest

from popjax import core  # noqa: F401 - changes how JAX lowers batches

SPLITS = jaxlib.version.__version_info__ < (0, 11, 1)


def positive(count: int, n: int) -> jax.Array:
    """Return symmetric positive definite matrices [count, n, n]."""
    x = jax.random.normal(jax.random.key(0), (count, n, n))
    return x @ jnp.swapaxes(x, -1, -2) + n * jnp.eye(n)


FUNCTIONS = {
    "cholesky": jnp.linalg.cholesky,
    "eigh": jnp.linalg.eigh,
    "qr": jnp.linalg.qr,
    "solve": lambda a: jnp.linalg.solve(a, a[..., :3]),
    "triangular": lambda a: jax.scipy.linalg.solve_triangular(a, a[..., :3], lower=True),
    "triangular, transposed": lambda a: jax.scipy.linalg.solve_triangular(a, a[..., :3], trans=1),
    "slogdet's gradient": jax.grad(lambda a: jnp.linalg.slogdet(a)[1].sum()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_matrix_of_a_large_batch_has_the_result_of_a_call_of_its_own(name: str) -> None:
    batch = positive(210, 20)
    function = jax.jit(FUNCTIONS[name])
    singly = [function(matrix) for matrix in batch]
    for got, wanted in zip(
        jax.tree.leaves(function(batch.reshape(3, 70, 20, 20))),
        jax.tree.leaves(jax.tree.map(lambda *x: jnp.stack(x), *singly)),
        strict=True,
    ):
        np.testing.assert_array_equal(got.reshape(wanted.shape), wanted)


def test_only_a_batch_that_would_be_split_becomes_a_loop() -> None:
    def loops(count: int, n: int) -> bool:
        matrices = jax.ShapeDtypeStruct((count, n, n), jnp.float32)
        return "stablehlo.while" in jax.jit(jnp.linalg.cholesky).lower(matrices).as_text()

    # n^3 / 3 operations each: 200,000 are 823 matrices of size 9, 30 of size 27 or one of size 85.
    assert not loops(823, 9)
    assert not loops(1, 300)
    assert not loops(0, 9)
    assert loops(824, 9) == loops(31, 27) == loops(2, 300) == SPLITS


def test_independent_batches_do_not_wait_for_each_other() -> None:
    """Two threads, sixteen batches at once, three hundred times: split, they deadlock within a few."""
    program = """
import jax, jax.numpy as jnp
from popjax import core

def together(x):
    roots = [jnp.linalg.cholesky(x[i] * (1 + i)) for i in range(16)]
    return jnp.stack([y @ jnp.swapaxes(y, -1, -2) / (1 + i) for i, y in enumerate(roots)])

x = jnp.tile(jnp.eye(27), (16, 64, 1, 1))
jax.block_until_ready(jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda _, x: together(x), x))(x))
"""
    few = os.environ | {"NPROC": "2", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=few, timeout=120)
