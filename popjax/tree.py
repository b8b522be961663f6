"""Algebra of pytrees along their leading axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap

T = TypeVar("T")


def take(tree: T, index: Array | int | slice) -> T:
    """Return rows ``index`` (int, or int array [...]) of every leaf's leading axis."""
    return jax.tree.map(lambda x: x[index], tree)


def put(tree: T, index: Array | int | slice, rows: Any) -> T:
    """Return ``tree`` with rows ``index`` of every leaf's leading axis replaced by ``rows``; an index beyond
    the end writes nothing."""
    return jax.tree.map(lambda x, row: x.at[index].set(row, mode="drop"), tree, rows)


def concat(trees: Sequence[T]) -> T:
    """Join trees of equal structure along the leading axis."""
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *trees)


def stack(trees: Sequence[T]) -> T:
    """Join trees of equal structure along a new leading axis."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def repeat(tree: T, count: int) -> T:
    """Return ``count`` equal copies of every leaf along a new leading axis."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), tree)


def where(condition: Array, if_true: T, if_false: T) -> T:
    """Select leaf by leaf; ``condition`` [...] matches the leading axes of every leaf."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (jnp.ndim(a) - condition.ndim)), a, b)

    return jax.tree.map(choose, if_true, if_false)


def finite(tree: Any, axes: int = 1) -> Array:
    """Return bool over the ``axes`` leading axes: whether all floating-point numbers of all leaves along the
    other axes are finite."""
    return _everywhere(jnp.isfinite, tree, axes)


def nan(tree: Any) -> Array:
    """Return bool over the leading axis: whether any number of any leaf along the other axes is NaN."""
    return ~_everywhere(lambda x: ~jnp.isnan(x), tree, 1)


def _everywhere(holds: Callable[[Array], Array], tree: Any, axes: int) -> Array:
    shape = jax.tree.leaves(tree)[0].shape[:axes]
    found = jnp.ones(shape, jnp.bool_)
    for x in jax.tree.leaves(tree):
        if jnp.issubdtype(x.dtype, jnp.floating):
            found &= holds(x).all(tuple(range(axes, x.ndim)))
    return found


def flatten(tree: T, axes: int = 2) -> T:
    """Merge the ``axes`` leading axes of every leaf into one."""
    return jax.tree.map(lambda x: x.reshape(math.prod(x.shape[:axes]), *x.shape[axes:]), tree)


def named(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield every leaf with its dotted path."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def keys_like(key: Array, tree: T) -> T:
    """Return a tree of independent keys, one per leaf of ``tree``."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, list(jax.random.split(key, max(len(leaves), 1)))[: len(leaves)])


def normal_like(key: Array, tree: T) -> T:
    """Draw standard normal noise in the shapes and dtypes of ``tree``, independent across leaves."""
    return jax.tree.map(lambda k, x: jax.random.normal(k, x.shape, x.dtype), keys_like(key, tree), tree)


def align(x: Array | float, like: Array) -> Array:
    """Return ``x`` with trailing axes of size 1, so that it has as many axes as ``like``: [P] against [P, N]
    becomes [P, 1]."""
    x = jnp.asarray(x)
    return x.reshape(x.shape + (1,) * (jnp.ndim(like) - x.ndim))


def axes(tree: T) -> T:
    """Return the ``in_axes`` by which ``vmap`` maps the arrays of ``tree`` and shares its scalars."""
    return jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, tree)


def polyak(target: T, online: T, rate: Array | float) -> T:
    """Return ``(1 - rate) * target + rate * online``, leafwise: the soft update of a target network."""
    return jax.tree.map(lambda t, o: t + rate * (o - t), target, online)


@custom_vmap
def any_lane(condition: Array) -> Array:
    """Return whether ``condition`` holds anywhere, in this lane or in any lane of any enclosing ``vmap``.

    The result is the same for all lanes, so a ``lax.cond`` or ``lax.while_loop`` steered by it stays one
    branch or one loop under ``vmap`` instead of becoming a select that runs both sides and copies every
    carried leaf. Use it only where the answer changes the amount of work, never the result.
    """
    return jnp.any(condition)


@any_lane.def_vmap
def _any_lane_of_batch(axis_size: int, in_batched: list[bool], condition: Array) -> tuple[Array, bool]:
    return any_lane(condition), False


@custom_vmap
def in_company(condition: Array) -> Array:
    """Return ``condition`` under a ``vmap``, and True without one.

    Use it to mask the results of a loop or branch steered by ``any_lane(condition)``. Without a ``vmap``, the
    branch is entered only if the condition holds, so nothing needs masking; under one, another lane may have
    caused it.
    """
    return jnp.ones_like(condition)


@in_company.def_vmap
def _in_company_of_batch(axis_size: int, in_batched: list[bool], condition: Array) -> tuple[Array, bool]:
    return (condition, True) if in_batched[0] else (in_company(condition), False)


@custom_vmap
def largest(count: Array) -> Array:
    """Return the largest of ``count`` in this lane and in all lanes of any enclosing ``vmap``.

    Use it as the number of iterations of a loop if that is equal in all lanes, such as gradient steps due by
    a common clock. With a count for each lane, the loop would select, and so copy, its carry every time.
    """
    return jnp.max(count)


@largest.def_vmap
def _largest_of_batch(axis_size: int, in_batched: list[bool], count: Array) -> tuple[Array, bool]:
    return largest(count), False
