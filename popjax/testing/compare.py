"""Comparisons of pytrees for the checks: forms, values and choices of policies."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax.core import Choice, PyTree, Spec


def told(x: Any) -> str:
    """Return type and shape of an array in the form used in messages."""
    return f"{'weak ' if x.weak_type else ''}{x.dtype} {list(x.shape)}"


def where(path: Any) -> str:
    """Return the name of a leaf of a State."""
    return f"State{jax.tree_util.keystr(path)}"


def is_key(x: Any) -> bool:
    """Return whether a leaf is a typed random key."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def numbers(state: PyTree) -> PyTree:
    """Return a tree with its PRNG keys replaced by their integers."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, state)


def alike(a: PyTree, b: PyTree) -> bool:
    """Return whether two trees have one structure."""
    structures: Any = jax.tree.structure(a), jax.tree.structure(b)
    return structures[0] == structures[1]


def same(a: PyTree, b: PyTree) -> bool:
    """Return whether two trees of one structure agree in every element; NaN equals NaN."""
    pairs = zip(jax.tree.leaves(numbers(a)), jax.tree.leaves(numbers(b)), strict=True)
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in pairs)


def check_same_form(before: Any, after: Any, what: str = "a step") -> None:
    """Check that ``what`` keeps structure, shapes and types of a State, none of them weak or float64."""
    if not alike(before, after):
        old, new = ({where(path) for path, _ in jax.tree.leaves_with_path(s)} for s in (before, after))
        raise ValueError(
            f"{what} changes the structure of the State:"
            f" it adds {sorted(new - old) or 'nothing'} and removes {sorted(old - new) or 'nothing'}"
        )
    both = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, x), y in both:
        if x.weak_type or x.dtype == jnp.float64:
            raise ValueError(f"init makes {where(path)} {told(x)}; give it a dtype, as in jnp.float32(0)")
        if (x.shape, x.dtype, x.weak_type) != (y.shape, y.dtype, y.weak_type):
            raise ValueError(f"{where(path)} is {told(x)} before {what} and {told(y)} after it")


def check_choice(choice: Any, before: PyTree, spec: Spec) -> None:
    """Check that ``act`` returns an action that the task takes, and a memory like the one ``before`` it."""
    if not isinstance(choice, Choice):
        raise ValueError(f"act must return a core.Choice, got {type(choice).__name__}")
    if not alike(choice.memory, before):
        raise ValueError("act returns a memory whose structure differs from the given one")
    action = choice.action
    shape, dtype = ((), jnp.int32) if spec.discrete else ((spec.action_dim,), jnp.float32)
    if (action.shape, action.dtype) != (shape, dtype):
        takes = f"{dtype.__name__} {list(shape)}"
        raise ValueError(f"act gives an action {told(action)}, where {spec.name} takes {takes}")
    low, high = (0, spec.action_dim - 1) if spec.discrete else (-1, 1)
    if not low <= action.min() <= action.max() <= high:
        raise ValueError(f"act gives the action {action}, which must be in {low} to {high}")


def check_close(found: PyTree, expected: PyTree, who: str, steps: int) -> None:
    """Check that two States agree after ``steps`` steps, floats up to the order of summation.

    After one step, integers and keys must agree exactly. Later, only floats are compared, and more loosely,
    since rounding errors grow.
    """
    rtol, atol = (2e-3, 2e-4) if steps == 1 else (5e-2, 5e-2)
    leaves = jax.tree.leaves_with_path(numbers(expected))
    for (path, x), y in zip(leaves, jax.tree.leaves(numbers(found)), strict=True):
        if jnp.issubdtype(x.dtype, jnp.floating):
            close = np.allclose(y, x, rtol, atol, equal_nan=True)
        else:
            close = steps > 1 or np.array_equal(x, y)
        if not close:
            apart = np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)))
            raise ValueError(
                f"{where(path)} of {who} is {apart:g} from that of a single run after step {steps}; let no"
                " member read another's numbers, and steer branches and loops by tree.any_lane"
            )


def through_the_host(x: Array) -> Array:
    """Return a leaf as a checkpoint gives it back."""
    if is_key(x):
        numbers = np.array(jax.random.key_data(x))
        return jax.random.wrap_key_data(jnp.array(numbers), impl=jax.random.key_impl(x))
    return jnp.array(np.array(x))
