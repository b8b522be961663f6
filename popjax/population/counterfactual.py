"""Worth of a search's decisions, measured by continuing it from one State with and without each of them.

All continuations draw the same random numbers, so that they differ only in the decision and its consequences.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from popjax.core import Method


class Worth(NamedTuple):
    """Outcomes of a ready point with all its decisions, and with each of them undone.

    source:  int32 [P]       individual that each slot took over; its own index if it kept its own.
    decided: float32 [P]     final fitness of all individuals with all decisions.
    undone:  float32 [P, P]  final fitness if the slot (row) had kept its own individual.
    """

    source: Array
    decided: Array
    undone: Array

    @property
    def best(self) -> Array:
        """float32 [P]: gain in the best individual's fitness from the decision on each slot."""
        return self.decided.max() - self.undone.max(1)

    @property
    def mean(self) -> Array:
        """float32 [P]: gain in the mean fitness from the decision on each slot."""
        return self.decided.mean() - self.undone.mean(1)


def outcomes(
    method: Method, state: Any, interventions: Array, iterations: int, at_once: int | None = None
) -> tuple[Array, Array]:
    """Return the final fitness float32 [M, P] and the selections int32 [M, P] of M continuations of
    ``state``.

    interventions: int32 [M, 2], (slot, parent) at the next ready point; (-1, -1) changes nothing.
    iterations:    length of each continuation; it must include a ready point.
    at_once:       continuations computed side by side, each with its own copy of the State; None: all.

    Raises:
        ValueError: a continuation meets no ready point, or the table of selections is full.
    """
    row, rows = int(state.lineage.count), len(state.lineage.source)
    if row >= rows:
        raise ValueError(f"the State has had all {rows - 1} ready points that it has room for; raise rounds")

    def one(state: Any, pair: Array) -> tuple[Array, Array, Array]:
        begun = replace(state, intervene=pair.astype(jnp.int32))
        after = jax.lax.fori_loop(0, iterations, lambda _, s: method.step(s), begun)
        return after.metrics.fitness, after.lineage.source[row], after.lineage.count

    def run(state: Any, interventions: Array) -> tuple[Array, Array, Array]:
        size = len(interventions) if at_once is None else at_once
        found: tuple[Array, Array, Array] = jax.lax.map(partial(one, state), interventions, batch_size=size)
        return found

    fitness, source, count = jax.jit(run)(state, interventions)  # a constant State would be copied
    if int(count.min()) == row:
        raise ValueError(f"no ready point within {iterations} iterations; raise iterations")
    return fitness, source


def worth(method: Method, state: Any, iterations: int, at_once: int | None = None) -> Worth:
    """Return the worth of each slot's decision at the next ready point of ``state``; see ``outcomes``."""
    slots = jnp.arange(len(state.metrics.fitness))
    undone = jnp.stack([slots, slots], 1)
    fitness, source = outcomes(
        method, state, jnp.concatenate([jnp.full((1, 2), -1), undone]), iterations, at_once
    )
    return Worth(source[0], fitness[0], fitness[1:])
