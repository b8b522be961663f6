"""Batches of LAPACK calls that cannot deadlock on a CPU.

jaxlib before 0.11.1 splits a large batch over XLA's threads while one of these threads waits for the result.
As many such batches at once as there are threads wait for each other forever: on a machine with two cores,
the factorizations of MuJoCo's solver and the orthogonal weights of several agents hang.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
from jax._src.interpreters import mlir
from jax._src.lax import linalg
from jax._src.sharding_impls import ShardingContext

SPLITS = jaxlib.version.__version_info__ < (0, 11, 1)
"""Whether jaxlib splits batches. Batches on several devices are left to it: XLA spreads a batch over devices,
but would gather it if a loop took it apart."""

_PART = 200_000
"""The fewest operations that jaxlib hands to a thread."""

_OPERATIONS: dict[Any, Callable[..., int]] = {
    linalg.cholesky_p: lambda a: math.prod(a) * a[0] // 3,
    linalg.triangular_solve_p: lambda a, b: math.prod(b) * a[0],
    linalg.lu_p: lambda a: math.prod(a) * min(a),
    linalg.geqrf_p: lambda a: 2 * math.prod(a) * min(a),
    linalg.householder_product_p: lambda a, scales: 4 * math.prod(a) * min(a),
    linalg.eigh_p: lambda a: 5 * math.prod(a) * a[0],
    linalg.svd_p: lambda a: 10 * math.prod(a) * min(a),
}
"""Shapes of one call's operands -> the operations that jaxlib expects, or a bound on them. popjax and the
libraries that it traces make no other calls."""


def split_no_batch() -> None:
    """Have this process lower large batches to a loop over parts that jaxlib does not split.

    Every matrix has the same result as before. The lowering rules are private to JAX, but the versions that
    need this no longer change.
    """
    if not SPLITS:
        return
    rules = mlir._platform_specific_lowerings["cpu"]
    for primitive, operations in _OPERATIONS.items():
        rule = partial(_lower, primitive, rules[primitive].rule, operations)
        mlir.register_lowering(primitive, rule, platform="cpu")


def _lower(
    primitive: Any,
    rule: Callable[..., Any],
    operations: Callable[..., int],
    context: Any,
    *operands: Any,
    **options: Any,
) -> Any:
    """Lower ``primitive`` as ``rule`` does, but in a loop if jaxlib would split the batch.

    context: holds the shapes of the operands, the first of which is [batch..., n, m].
    """
    shapes = [operand.shape for operand in context.avals_in]
    batch = shapes[0][:-2]
    axes = context.module_context.axis_context
    spread = isinstance(axes, ShardingContext) and axes.num_devices > 1
    if spread or not all(isinstance(n, int) for shape in shapes for n in shape):
        return rule(context, *operands, **options)
    cost = operations(*(shape[len(batch) :] for shape in shapes))
    cost *= 3 if jnp.issubdtype(context.avals_in[0].dtype, jnp.complexfloating) else 1
    part = math.ceil(_PART / max(1, cost))
    if math.prod(batch) <= part:
        return rule(context, *operands, **options)

    def in_parts(*arrays: jax.Array) -> Any:
        flat = [x.reshape(-1, *x.shape[len(batch) :]) for x in arrays]
        done = jax.lax.map(lambda row: primitive.bind(*row, **options), flat, batch_size=part)
        return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), done)

    return mlir.lower_fun(in_parts, primitive.multiple_results)(context, *operands)
