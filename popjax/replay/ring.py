"""A ring of rows: uniform replay, and the genetic memories of PDERL.

Rows are any pytree. They are written in the order in which a sequential program would have written them, even
if some rows of a batch are masked out, and the oldest are overwritten. The state is a value: to clone a
memory, use the same value twice.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import tree
from popjax.core import Key, PyTree, Replay
from popjax.replay import packed
from popjax.shuffle import permuted


@struct.dataclass
class Ring:
    """State of a ring.

    rows:     as ``packed`` lays them out: [capacity, ...] per leaf, but lines on a TPU.
    position: int32 []  the slot that is written next.
    size:     int32 []  how many rows are stored: the latest ones, in the slots before ``position``.
    """

    rows: PyTree
    position: Array
    size: Array

    @property
    def capacity(self) -> int:
        """The number of slots."""
        return packed.capacity(self.rows)

    def take(self, slots: Array) -> PyTree:
        """Return the rows in ``slots`` int [...]."""
        return packed.take(self.rows, slots)

    def oldest(self, count: int) -> tuple[Array, Array]:
        """Return the slots int32 [count] of the oldest rows, oldest first, and which hold a row, bool
        [count]."""
        place = jnp.arange(count, dtype=jnp.int32)
        return (self.position - self.size + place) % self.capacity, place < self.size

    def stores(self, slots: Array) -> Array:
        """Return whether ``slots`` int [...] hold a row; a number that is no slot's, such as -1, does not."""
        return (slots >= 0) & (slots < self.capacity) & (self.age(slots) < self.size)

    def age(self, slots: Array) -> Array:
        """Return how many rows were written since those in ``slots`` int [...]; the newest has 0."""
        return (self.position - 1 - slots) % self.capacity

    def unpacked(self) -> PyTree:
        """Return the rows in all slots, [capacity, ...] per leaf."""
        return packed.unpack(self.rows)

    def holding(self, rows: PyTree) -> Ring:
        """Return this ring with ``rows`` [capacity, ...] of any kind in place of its rows."""
        return Ring(packed.pack(rows), self.position, self.size)


def full(rows: PyTree) -> Ring:
    """Return a ring that holds just ``rows`` [B, ...], the oldest first."""
    store = packed.pack(rows)
    return Ring(store, jnp.int32(0), jnp.int32(packed.capacity(store)))


def ring(capacity: int, *, replace: bool = True) -> Replay:
    """Return a ring of ``capacity`` rows.

    ``sample`` draws with replacement or, with ``replace=False``, without replacement inside a batch, which
    must then be no larger than the number of stored rows.

    Raises:
        ValueError: ``capacity`` is less than 1, or 2^31 or more.
    """
    if not 1 <= capacity < 2**31:
        raise ValueError(
            f"a replay holds at least 1 row and fewer than 2^31, got capacity {capacity};"
            " set the capacity within that range"
        )

    def init(row: PyTree) -> Ring:
        def empty(x: Any) -> Array:
            return jnp.zeros((capacity, *jnp.shape(x)), jnp.result_type(x))

        return Ring(packed.pack(jax.tree.map(empty, row)), jnp.int32(0), jnp.int32(0))

    def sample(state: Ring, key: Key, batch: int) -> PyTree:
        if replace:
            return state.take(uniform(state, key, batch))
        return draw(state, key, batch)[0]

    return Replay(init=init, add=add, sample=sample)


def add(state: Ring, rows: PyTree, valid: Array) -> Ring:
    """Write the valid rows of ``rows`` [B, ...] in order; if there are more than ``capacity``, the last are
    kept."""
    return write(state, rows, valid)[0]


def write(state: Ring, rows: PyTree, valid: Array) -> tuple[Ring, Array]:
    """Write as ``add`` does, and return the slots that were written: int32 [B], ``capacity`` for a row that
    was not kept."""
    capacity = state.capacity
    valid = jnp.asarray(valid, jnp.bool_)
    count = valid.sum(dtype=jnp.int32)
    slots = packed.places(capacity, state.position, valid)
    state = Ring(
        rows=packed.put(state.rows, state.position, rows, valid),
        position=(state.position + count) % capacity,
        size=jnp.minimum(state.size + count, capacity),
    )
    return state, slots


def without_oldest(state: Ring, count: Array) -> Ring:
    """Return the ring without its ``count`` [] oldest rows; their slots stay empty until they are next."""
    return Ring(state.rows, state.position, jnp.maximum(state.size - count, 0))


def uniform(state: Ring, key: Key, count: int) -> Array:
    """Return slots int32 [count], drawn with replacement, uniformly from the stored rows."""
    drawn = jax.random.randint(key, (count,), 0, jnp.maximum(state.size, 1))
    # A ring without drops begins at slot 0, whether it is full or not.
    first = jnp.where(state.size < state.capacity, state.position - state.size, 0)
    return (first + drawn) % state.capacity


def draw(state: Ring, key: Key, batch: int, *, newest: int | None = None) -> tuple[PyTree, Array]:
    """Draw ``batch`` rows uniformly without replacement, from all rows or only the ``newest`` (a number).

    Returns rows [B, ...] and valid bool [B]; if fewer than ``batch`` rows are stored, all of them come first,
    in random order, and the rest are marked invalid.
    """
    capacity = state.capacity
    population = state.size if newest is None else jnp.minimum(state.size, newest)
    place = jnp.arange(batch, dtype=jnp.int32)
    age = permuted(key, place, population)  # 0 = the newest row
    return state.take((state.position - 1 - age) % capacity), place < population


def neighbours(state: Ring, slots: Array, offsets: Array, stride: int) -> tuple[Array, Array]:
    """Return the slots of rows that the same lane wrote ``offsets`` [O] rows after or before those in
    ``slots`` [B].

    The ring must be filled by ``stride`` lanes in turn, one row each, and its capacity be a multiple of
    ``stride``. Returns slots int32 [B, O] and whether each holds that row, already or still, bool [B, O].
    """
    age = state.age(slots)
    ages = age[:, None] - offsets * stride
    return (slots[:, None] + offsets * stride) % state.capacity, (ages >= 0) & (ages < state.size)


def latest(state: Ring, count: int) -> tuple[PyTree, Array]:
    """Return the latest ``min(count, size)`` rows, the oldest of these first.

    Returns rows [min(count, capacity), ...] and valid bool of the same length; valid rows come first.
    """
    count = min(count, state.capacity)
    held = jnp.minimum(state.size, count)
    place = jnp.arange(count)
    slot = (state.position - held + place) % state.capacity
    return state.take(slot), place < held


def newest(state: Ring, count: int) -> Ring:
    """Return a ring of only the latest ``count`` rows, or of all if fewer are stored."""
    rows, valid = latest(state, count)
    held = valid.sum(dtype=jnp.int32)
    return Ring(packed.pack(rows), held % valid.shape[0], held)


def merge(x: Ring, y: Ring, key: Key) -> Ring:
    """Return a new ring of the latest half of ``x`` and the latest half of ``y``, shuffled.

    If a parent holds less than half a capacity, all that it holds is taken. New rows overwrite the inherited
    ones in no meaningful order. PDERL, algorithm 1, lines 1 to 3.

    Raises:
        ValueError: the capacities of the rings differ.
    """
    capacity = x.capacity
    if y.capacity != capacity:
        raise ValueError(f"only rings of equal capacity can be merged, got {capacity} and {y.capacity}")
    half = capacity // 2
    from_x, from_y = jnp.minimum(x.size, half), jnp.minimum(y.size, half)
    size = from_x + from_y
    source = permuted(key, jnp.arange(capacity, dtype=jnp.int32), size)  # [capacity]
    slot_x = (x.position - from_x + source) % capacity
    slot_y = (y.position - from_y + source - from_x) % capacity
    rows = tree.where(source < from_x, x.take(slot_x), y.take(slot_y))
    return Ring(packed.pack(rows), size % capacity, size)
