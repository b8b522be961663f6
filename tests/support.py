"""Comparisons of pytrees and cases of methods, for all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.core import Method


class Case(NamedTuple):
    """A method, small enough to compile often, that ``test_conformance`` checks.

    build:        makes it, by a ``recorded`` build.
    population:   how many individuals it has.
    alone:        every individual acts alone, by parameters of its own.
    mean:         none of them is deployed, but the mean of what they are drawn from.
    slow:         a second case of its method.
    slow_members: a sweep of it takes long to compile.
    eager:        it is also stepped operation by operation.
    members:      members of a sweep equal single runs; not where the last bit decides what is drawn.
    """

    build: Callable[[], Method]
    population: int
    alone: bool = True
    mean: bool = False
    slow: bool = False
    slow_members: bool = False
    eager: bool = False
    members: bool = True


def slow_except(quick: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """Return ``values`` as parameters of a test, those that are not in ``quick`` marked slow."""
    quick = list(quick)
    return [pytest.param(x, marks=[pytest.mark.slow] * (x not in quick)) for x in values]


def bare(tree: Any) -> Any:
    """Return ``tree`` with random keys as the integers they are made of, so that NumPy can compare them."""

    def numbers(x: Any) -> Any:
        return jax.random.key_data(x) if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key) else x

    return jax.tree.map(numbers, tree)


def same(a: Any, b: Any) -> bool:
    """Return whether two trees of one structure agree in every element."""
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, bare(a), bare(b))))


def equal(a: Any, b: Any) -> None:
    """Assert that two trees of one structure agree in every element; NaN equals NaN."""
    jax.tree.map(np.testing.assert_array_equal, bare(a), bare(b))


def close(a: Any, b: Any, rtol: float = 2e-4, atol: float = 2e-6) -> None:
    """Assert that two trees of one structure agree: floats within the tolerances, all else exactly."""

    def compare(x: Any, y: Any) -> None:
        if jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)
        else:
            np.testing.assert_array_equal(x, y)

    jax.tree.map(compare, bare(a), bare(b))


def out_of_step(method: Any, init: Any, step: Any, ahead: int) -> None:
    """Check that a member goes on as if alone beside one that is ``ahead`` so many steps, in whatever phase
    either is; as when members join a sweep that has begun."""
    states = [init(jax.random.key(number), method.hyper) for number in range(2)]
    for _ in range(ahead):
        states[1] = step(states[1])
    together, sweep_step = jax.tree.map(lambda *xs: jnp.stack(xs), *states), jax.jit(jax.vmap(method.step))
    for _ in range(ahead + 2):
        together, states = sweep_step(together), [step(state) for state in states]
        for place, state in enumerate(states):
            close(jax.tree.map(lambda x, place=place: x[place], together), state, rtol=2e-3, atol=2e-4)
