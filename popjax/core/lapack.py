"""Batches of LAPACK calls that cannot deadlock on a CPU.

jaxlib before 0.11.1 splits a batch over XLA's threads while one of them waits for it. As many simultaneous
batches as there are threads wait for each other: two on a machine with two cores, where the factorizations of
MuJoCo's solver and the orthogonal weights of several agents hang. It splits only batches that are worth it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jaxlib.version
from jax._src.interpreters import mlir
from jax._src.lax import linalg

_SPLIT = 200_000
"""Operations from which jaxlib splits a batch."""

_OPERATIONS: dict[Any, Callable[..., int]] = {
    linalg.cholesky_p: lambda a: math.prod(a) * a[0] // 3,
    linalg.triangular_solve_p: lambda a, b: math.prod(b) * a[0],
    linalg.lu_p: lambda a: math.prod(a) * min(a),
    linalg.geqrf_p: lambda a: 2 * math.prod(a) * min(a),
    linalg.householder_product_p: lambda a, scales: 4 * math.prod(a) * min(a),
    linalg.eigh_p: lambda a: 5 * math.prod(a) * a[0],
}
"""Shapes of one call's operands -> the operations that jaxlib expects, or a bound on them."""


def split_no_batch() -> None:
    """Have this process lower large batches to a loop over parts that jaxlib does not split.

    Every matrix has the same result as before. The lowering rules are private to JAX, but no longer change:
    later versions need none of this.
    """
    if jaxlib.version.__version_info__ >= (0, 11, 1):
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
    """Lower ``primitive`` as ``rule`` does, but in a loop where jaxlib would split the batch.

    context: says the shapes of the operands, the first of which is [batch..., n, m].
    """
    batch = context.avals_in[0].shape[:-2]
    cost = operations(*(operand.shape[len(batch) :] for operand in context.avals_in))
    part = max(1, (_SPLIT - 1) // max(1, cost))
    if not all(isinstance(n, int) for n in batch) or math.prod(batch) <= part:
        return rule(context, *operands, **options)

    def in_parts(*arrays: jax.Array) -> Any:
        flat = [x.reshape(-1, *x.shape[len(batch) :]) for x in arrays]
        done = jax.lax.map(lambda row: primitive.bind(*row, **options), flat, batch_size=part)
        return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), done)

    return mlir.lower_fun(in_parts, primitive.multiple_results)(context, *operands)
