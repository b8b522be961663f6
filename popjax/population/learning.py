"""Gradient steps of a population, in loops that read a replay without carrying it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import chex
import jax
import jax.numpy as jnp
from jax import Array

from popjax import tree
from popjax.core import Key, PyTree

F = TypeVar("F", bound=Callable[..., Any])

Update: TypeAlias = Callable[[Any, Key], tuple[Any, PyTree]]
"""``(what learns, key) -> (what learns, losses)``: one gradient step of all agents, batch included."""


Learn: TypeAlias = Callable[..., tuple[Any, PyTree]]
"""``(state, data, hyper, key) -> (state, losses)``, such as ``Agent.learn``."""


def steps(
    update: Update, state: Any, count: Array | int, key: Key, losses: PyTree, *, ready: Array | None = None
) -> tuple[Any, PyTree]:
    """Take ``count`` [] gradient steps; return the state after them and the losses of the last, or ``losses``
    if there was none.

    ready: bool []; while false, as during a warm-up, no step is taken.

    This is a loop and not a branch, because ``lax.cond`` copies the whole State on an accelerator. Where
    possible, pass a ``count`` that is equal for all members of a sweep and express their differences by
    ``ready``: members that are not ready are computed and masked, whereas different counts make the loop
    select the state in every step. ``update`` closes over the replay, so that the loop does not carry it.
    """

    chex.assert_rank(count, 0)
    if ready is None:
        turns, own = count, None
    else:
        chex.assert_rank(ready, 0)
        turns, own = jnp.where(tree.any_lane(ready), count, 0), tree.in_company(ready)

    def one(i: Array, carry: tuple[Any, PyTree]) -> tuple[Any, PyTree]:
        after = update(carry[0], jax.random.fold_in(key, i))
        return after if own is None else tree.where(own, after, carry)

    return jax.lax.fori_loop(0, turns, one, (state, losses))


def once(
    update: Callable[[Any], tuple[Any, PyTree]], state: Any, ready: Array, losses: PyTree
) -> tuple[Any, PyTree]:
    """Return ``update(state)`` if ``ready`` bool [], else ``(state, losses)``; compute the update only if
    some member of a sweep is ready."""
    return steps(lambda state, _: update(state), state, 1, jax.random.key(0), losses, ready=ready)


def whole_updates(per_step: float, taken: int) -> int:
    """Return the number of gradient steps in an iteration of ``taken`` environment steps, at ``per_step``
    gradient steps for each.

    Raises:
        ValueError: the result is not a whole number of at least 1.
    """
    count = per_step * taken
    if not 0.5 <= count < math.inf or abs(count - round(count)) > 1e-6:
        raise ValueError(
            f"updates_per_step {per_step} times {taken} environment steps of an iteration must be a whole"
            " number of updates, at least 1; change updates_per_step, lanes or steps"
        )
    return round(count)


class _TracedOnce:
    """A function for ``traced_once`` that can be sent to another process, which a jitted one cannot."""

    def __init__(self, function: Callable[..., Any]):
        self.jitted, self.__wrapped__ = jax.jit(function, inline=True), function

    def __call__(self, *args: Any) -> Any:
        return self.jitted(*args)

    def __reduce__(self) -> Any:
        return _TracedOnce, (self.__wrapped__,)


def traced_once(function: F) -> F:
    """Return ``function`` for use in programs: JAX traces it only once for ``init``, which needs the shapes
    of its results, and for ``step``, which needs the results. What is computed stays the same.

    It must not close over values that are themselves computed in a program.
    """
    return cast(F, _TracedOnce(function))


def no_losses(update: Callable[..., tuple[Any, PyTree]], *args: Any) -> PyTree:
    """Return zeros in the shapes of the losses of ``update(*args)``, as losses before the first
    step, without computing it."""
    # Within another function it would be traced for that one as well.
    traced = update.jitted if isinstance(update, _TracedOnce) else update
    return zeros(jax.eval_shape(traced, *args)[1])


def zeros(shapes: PyTree) -> PyTree:
    """Return arrays of zeros in the shapes and dtypes of ``shapes``."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def everyone(learn: Learn) -> Learn:
    """Lift ``learn(state, data, hyper, key)`` of one agent to ``(states [P], data [P, ...], hyper, key)``.
    A leaf of ``hyper`` is [] or [P]."""

    def learn_all(states: PyTree, data: Any, hyper: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        count = jax.tree.leaves(states)[0].shape[0]
        return jax.vmap(learn, (0, 0, tree.axes(hyper), 0))(states, data, hyper, jax.random.split(key, count))

    return learn_all
