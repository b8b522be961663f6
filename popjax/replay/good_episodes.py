"""A replay of all agents' transitions that also records the rows of good episodes.

The global and the local memory of "Cooperative Heterogeneous Deep Reinforcement Learning" (Zheng et al.,
2020). The paper's local memory holds copies of whole good episodes; here it holds the numbers of their rows,
counted since the first row ever written. Once a row is overwritten, its entry and all earlier entries no
longer count.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import counting, tree
from popjax.core import Key, Transition
from popjax.counting import Count
from popjax.replay import ring
from popjax.replay.ring import Ring


@struct.dataclass
class Memory:
    """The global and the local memory.

    replay:  transitions of all agents.
    written: Count [] of the rows ever written.
    local:   rows that are Counts, the numbers of the rows of good episodes.
    """

    replay: Ring
    written: Count
    local: Ring


@struct.dataclass
class Gate:
    """Conditions for an episode to be good.

    open:  bool [...] whether episodes of this lane can be good.
    bound: []         the return that an episode has to exceed.
    """

    open: Array
    bound: Array

    def passes(self, total: Array) -> Array:
        """Return whether episodes with returns ``total`` [...] enter the local memory."""
        return self.open & (total > self.bound)


def init(row: Transition, capacity: int, local_capacity: int) -> Memory:
    """Return empty memories for rows like ``row``."""
    return Memory(
        replay=ring.ring(capacity).init(row),
        written=counting.none(),
        local=ring.ring(local_capacity).init(counting.none()),
    )


def remember(memory: Memory, rows: Transition, valid: Array) -> tuple[Memory, Count]:
    """Write the valid rows of ``rows`` [B]; return the memory and the numbers [B] of the rows. An invalid row
    gets a number that no row ever has."""
    numbers = tree.where(
        valid, memory.written + (jnp.cumsum(valid) - valid), counting.none() + counting.LIMIT
    )
    memory = replace(
        memory,
        replay=ring.add(memory.replay, rows, valid),
        written=memory.written + valid.sum(dtype=jnp.int32),
    )
    return memory, numbers


def follow(
    memory: Memory, episode: Count, length: Array, number: Count, total: Array, ends: Array, gate: Gate
) -> tuple[Memory, Count, Array]:
    """Follow the episodes of lanes [E] through one step; those that end, pass the gate and have all their
    rows in the replay enter the local memory.

    episode: [E, L]       numbers of the rows of the episode under way, L the time limit.
    length:  int32 [E]    number of the episode's rows before this step.
    number:  [E]          number of this step's row.
    total:   [E]          return of the episode, if it ends.
    ends:    bool [E]

    Returns the memory, ``episode`` after the step, and which episodes entered, bool [E].
    """
    lanes, limit = episode.low.shape

    def followed(numbers: Array, number: Array) -> Array:
        return numbers.at[jnp.arange(lanes), length].set(number, mode="drop")

    episode = jax.tree.map(followed, episode, number)
    good, played = ends & gate.passes(total), jnp.arange(limit) <= length[:, None]

    def enter() -> tuple[Ring, Array]:
        enters = good & ((episode < memory.written) | ~played).all(1)
        worth = enters[:, None] & played
        return ring.add(memory.local, tree.flatten(episode), worth.ravel()), enters

    local, enters = jax.lax.cond(tree.any_lane(good), enter, lambda: (memory.local, good))
    return replace(memory, local=local), episode, enters


def local_size(memory: Memory) -> Array:
    """Return int32 []: how many entries of the local memory, from the newest on, come before the first whose
    row is overwritten."""
    local = memory.local
    age = local.age(jnp.arange(local.capacity))
    gone = (age >= local.size) | (memory.written - local.unpacked() >= memory.replay.capacity + 1)
    return jnp.min(jnp.where(gone, age, local.capacity)).astype(jnp.int32)


def sample(memory: Memory, key: Key, batch: int, share: Array | float, least: int) -> Transition:
    """Return a batch [B] drawn with replacement: with probability ``share`` wholly from the local memory,
    provided that it has more than ``least`` rows, else from all rows. Algorithm 3, lines 3 to 8."""
    key_which, key_row = jax.random.split(key)
    held = local_size(memory)
    here = jax.random.bernoulli(key_which, share) & (held > least)
    stored = jnp.maximum(memory.replay.size, 1)
    draw = jax.random.randint(key_row, (batch,), 0, jnp.where(here, held, stored))
    number = memory.local.take((memory.local.position - 1 - draw) % memory.local.capacity)
    back = (memory.written - number).low.astype(jnp.int32)  # at most the capacity for an entry that is held
    good = (memory.replay.position - back) % memory.replay.capacity
    return memory.replay.take(jnp.where(here, good, draw))


def sample_all(memory: Memory, key: Key, batch: int) -> Transition:
    """Return a batch [B] drawn with replacement from all stored rows."""
    return memory.replay.take(ring.uniform(memory.replay, key, batch))
