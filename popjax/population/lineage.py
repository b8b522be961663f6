"""Lineage of a population whose hyperparameters evolve: a table in the State.

It has a row for the start and one for each ready point. It is written in place, and saved and restored with
the State.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array


@struct.dataclass
class Lineage:
    """Table of R rows for P slots with F hyperparameters.

    count:      int32 []          filled rows, including the start.
    generation: int32 [R]         iterations before the ready point.
    source:     int32 [R, P]      slot whose agent each slot took over; its own if it kept its agent, -1 for a
                newcomer.
    fitness:    float32 [R, P]    fitness on which the decision was based; 0 at the start.
    numbers:    float32 [R, P, F] hyperparameters with which each slot continued.
    """

    count: Array
    generation: Array
    source: Array
    fitness: Array
    numbers: Array


def begin(numbers: Array, rows: int) -> Lineage:
    """Return a table of ``rows`` rows; the first holds the hyperparameters [P, F] at the start."""
    population = numbers.shape[0]
    empty = Lineage(
        count=jnp.int32(0),
        generation=jnp.zeros(rows, jnp.int32),
        source=jnp.zeros((rows, population), jnp.int32),
        fitness=jnp.zeros((rows, population)),
        numbers=jnp.zeros((rows, *numbers.shape)),
    )
    return record(empty, jnp.int32(0), jnp.arange(population), jnp.zeros(population), numbers)


def record(table: Lineage, generation: Array, source: Array, fitness: Array, numbers: Array) -> Lineage:
    """Return the table with one more row, see ``Lineage``; unchanged if it is full."""
    row = table.count
    return replace(
        table,
        count=jnp.minimum(row + 1, len(table.source)),
        generation=table.generation.at[row].set(generation, mode="drop"),
        source=table.source.at[row].set(source.astype(jnp.int32), mode="drop"),
        fitness=table.fitness.at[row].set(fitness, mode="drop"),
        numbers=table.numbers.at[row].set(numbers, mode="drop"),
    )


def line(table: Lineage, slot: int) -> list[tuple[int, int]]:
    """Return the (row, slot) pairs of the line that leads to ``slot``, from its beginning on; on the host."""
    found, source = [], np.asarray(table.source)
    for row in reversed(range(int(table.count))):
        found.append((row, slot))
        parent = int(source[row, slot])
        if parent < 0:
            break
        slot = parent
    return found[::-1]


def schedule(table: Lineage, winner: int, names: Sequence[str], steps: int) -> dict[str, Any]:
    """Return the schedule of the ``winner``'s line, and all selections, for JSON; on the host.

    ``names`` [F] are the names of the hyperparameters, ``steps`` the environment steps of an agent in an
    iteration. Environment steps of a line are counted from its first agent.
    """
    table = jax.tree.map(np.asarray, table)
    rows = line(table, winner)
    start = int(table.generation[rows[0][0]])
    count = int(table.count)
    return {
        "names": list(names),
        "winner": winner,
        "line": [
            {
                "env_steps": (int(table.generation[row]) - start) * steps,
                "slot": slot,
                "parent": int(table.source[row, slot]) if row else None,
                "numbers": dict(zip(names, map(float, table.numbers[row, slot]), strict=True)),
            }
            for row, slot in rows
        ],
        "selections": {
            "env_steps": (table.generation[:count].astype(np.int64) * steps).tolist(),
            "source": table.source[:count].tolist(),
            "fitness": [list(map(float, row)) for row in table.fitness[:count]],
            "numbers": [[list(map(float, own)) for own in row] for row in table.numbers[:count]],
        },
    }
