"""What the team has seen, and what of it is worth more: a ring of transitions and a ring of indices into it.

The local memory of the paper holds copies of whole good episodes. Here it holds the numbers of their rows,
counted since the first row ever written, and a row that has been overwritten is no longer there: older than
the replay's capacity, it and everything that entered before it are left out.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import tree
from popjax.core import Key, Transition
from popjax.replay import ring
from popjax.replay.ring import Ring


@struct.dataclass
class Memory:
    """replay: Transition rows of everybody; written: int32 [] rows so far; local: int32 rows, numbers of
    rows of good episodes."""

    replay: Ring
    written: Array
    local: Ring


@struct.dataclass
class Gate:
    """Which episodes an agent may leave to the local memory.

    open:  bool [] whether any.
    bound: []      the return that an episode has to exceed; with ``strict`` False, to reach.
    """

    open: Array
    bound: Array
    strict: bool = struct.field(pytree_node=False, default=True)

    def passes(self, total: Array) -> Array:
        """Whether episodes with returns ``total`` [...] may enter."""
        return self.open & ((total > self.bound) if self.strict else (total >= self.bound))


def init(row: Transition, capacity: int, local_capacity: int) -> Memory:
    """An empty memory for rows like ``row``."""
    return Memory(
        replay=ring.ring(capacity).init(row),
        written=jnp.int32(0),
        local=ring.ring(local_capacity).init(jnp.int32(0)),
    )


def remember(memory: Memory, rows: Transition, valid: Array) -> tuple[Memory, Array]:
    """Writes the valid rows of ``rows`` [B]; returns the numbers int32 [B] that they have from now on."""
    numbers = memory.written + jnp.cumsum(valid) - 1
    memory = replace(
        memory,
        replay=ring.add(memory.replay, rows, valid),
        written=memory.written + valid.sum(dtype=jnp.int32),
    )
    return memory, numbers.astype(jnp.int32)


def after(memory: Memory, updates: Array) -> Memory:
    """The same memory, to be written when a learner that reads it has got to its ``updates`` [].

    The order must follow from data, here of a kind that the compiler cannot see to be none: where it is free,
    the compiler copies the replay.
    """
    never = updates < 0
    replay = replace(memory.replay, position=jnp.where(never, 0, memory.replay.position))
    return replace(memory, replay=replay, written=jnp.where(never, 0, memory.written))


def remember_locally(memory: Memory, numbers: Array, valid: Array) -> Memory:
    """Enters the rows with these numbers [B] into the local memory."""
    return replace(memory, local=ring.add(memory.local, numbers, valid))


def local_size(memory: Memory) -> Array:
    """int32 [] entries of the local memory, newest first, before the first whose row is overwritten."""
    local, age = memory.local, jnp.arange(memory.local.capacity)
    numbers = local.rows[(local.position - 1 - age) % local.capacity]
    gone = (age >= local.size) | (memory.written - numbers > memory.replay.capacity)
    return jnp.where(gone.any(), jnp.argmax(gone), local.capacity).astype(jnp.int32)


def sample(memory: Memory, key: Key, batch: int, share: Array | float, least: int) -> Transition:
    """A batch [B] drawn with replacement: with probability ``share`` wholly from the local memory, provided
    that it has more than ``least`` rows, else from everything. Algorithm 3, lines 3 to 8."""
    key_which, key_row = jax.random.split(key)
    held = local_size(memory)
    here = jax.random.bernoulli(key_which, share) & (held > least)
    stored = jnp.maximum(memory.replay.size, 1)
    draw = jax.random.randint(key_row, (batch,), 0, jnp.where(here, held, stored))
    number = memory.local.rows[(memory.local.position - 1 - draw) % memory.local.capacity]
    return tree.take(memory.replay.rows, jnp.where(here, number % memory.replay.capacity, draw))


def sample_all(memory: Memory, key: Key, batch: int) -> Transition:
    """A batch [B] drawn with replacement from everything."""
    draw = jax.random.randint(key, (batch,), 0, jnp.maximum(memory.replay.size, 1))
    return tree.take(memory.replay.rows, draw)


@struct.dataclass
class Underway:
    """The episode that a lane is playing, which may span phases.

    numbers: int32 [L] of its rows so far, L the time limit; length: int32 []; total: [] its return so far.
    """

    numbers: Array
    length: Array
    total: Array


def underway(limit: int) -> Underway:
    """Before the first step of an episode of at most ``limit`` steps."""
    return Underway(jnp.zeros(limit, jnp.int32), jnp.int32(0), jnp.float32(0))


def track_episodes(
    memory: Memory, lanes: Underway, number: Array, reward: Array, done: Array, gate: Gate
) -> tuple[Memory, Underway, Array]:
    """One step of every lane, all [E]; episodes that end and pass the gate enter the local memory.

    Returns the memory, the lanes, and how many episodes entered, int32 [].
    """
    place = jnp.arange(lanes.numbers.shape[1])
    numbers = jnp.where(place == lanes.length[:, None], number[:, None], lanes.numbers)
    length, total = lanes.length + 1, lanes.total + reward
    enters = done & gate.passes(total)
    local = jax.lax.cond(
        tree.any_lane(enters),
        lambda: ring.add(
            memory.local, numbers.ravel(), (enters[:, None] & (place < length[:, None])).ravel()
        ),
        lambda: memory.local,
    )
    lanes = Underway(numbers, jnp.where(done, 0, length), jnp.where(done, 0.0, total))
    return replace(memory, local=local), lanes, enters.sum(dtype=jnp.int32)
