"""Batches of LAPACK calls: the values of single calls, and no deadlock however few the threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.core import lapack


def positive(count: int, n: int) -> jax.Array:
    """Return symmetric positive definite matrices [count, n, n]."""
    x = jax.random.normal(jax.random.key(0), (count, n, n))
    return x @ jnp.swapaxes(x, -1, -2) + n * jnp.eye(n)


def triangular(a: jax.Array, **options: Any) -> jax.Array:
    return jax.lax.linalg.triangular_solve(a, jnp.swapaxes(a, -1, -2), **options)


FUNCTIONS: dict[str, Callable[[jax.Array], Any]] = {
    "cholesky": jnp.linalg.cholesky,
    "cholesky, complex": lambda a: jnp.linalg.cholesky(a + 0j),
    "eigh": jnp.linalg.eigh,
    "svd": jnp.linalg.svd,
    "qr": jnp.linalg.qr,
    "qr, tall": lambda a: jnp.linalg.qr(a[..., :7]),
    "qr, wide": lambda a: jnp.linalg.qr(a[..., :7, :]),
    "solve": lambda a: jnp.linalg.solve(a, a[..., :3]),
    "triangular": lambda a: triangular(a, lower=True),
    "triangular, from the right": lambda a: triangular(a, left_side=False),
    "triangular, transposed": lambda a: triangular(a, left_side=True, transpose_a=True),
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


@pytest.mark.parametrize(
    ("count", "n", "dtype", "split"),
    [
        (824, 9, "float32", False),  # 9^3 / 3 operations each, and 200,000 for a thread
        (825, 9, "float32", True),
        (31, 27, "float32", False),
        (32, 27, "float32", True),
        (11, 27, "complex64", False),  # three times as many operations
        (12, 27, "complex64", True),
        (1, 300, "float32", False),
        (2, 300, "float32", True),
        (0, 9, "float32", False),
    ],
)
def test_only_a_batch_that_would_be_split_becomes_a_loop(count: int, n: int, dtype: str, split: bool) -> None:
    lowered = jax.jit(jnp.linalg.cholesky).lower(jax.ShapeDtypeStruct((count, n, n), dtype))
    assert ("stablehlo.while" in lowered.as_text()) == (split and lapack.SPLITS)


def test_a_batch_on_several_devices_stays_there() -> None:
    """A loop over its parts would gather it."""
    program = """
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from popjax import core

spread = NamedSharding(Mesh(jax.devices(), ("population",)), PartitionSpec("population"))
batch = jax.device_put(jnp.tile(jnp.eye(27), (64, 1, 1)), spread)
print(jax.jit(jnp.linalg.cholesky).lower(batch).compile().as_text())
"""
    compiled = run(program, JAX_NUM_CPU_DEVICES="2")
    assert "potrf" in compiled
    assert "all-gather" not in compiled


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
    run(program, NPROC="2")


def run(program: str, **variables: str) -> str:
    """Return what a Python program prints, within two minutes."""
    inherited = {name: value for name, value in os.environ.items() if "NPROC" not in name}
    return subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env=inherited | {"OPENBLAS_NUM_THREADS": "1"} | variables,
        cwd=Path(__file__).parents[1],
        timeout=120,
        capture_output=True,
        text=True,
    ).stdout
