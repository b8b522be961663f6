"""Proportional prioritized replay: a row is drawn with probability priority^exponent / sum of all of them.

Schaul et al., "Prioritized Experience Replay", ICLR 2016. Rows lie in a ring; this module adds their masses,
priority^exponent, and sums of masses: a tree with a wide fan-out and thus few levels, in one array. A draw
goes down the tree and an update goes up, with a constant number of small operations per level.

Exact where it matters:
- The sum of a changed parent is recomputed from its children, so sums never drift.
- A draw takes a fresh random number on every level, uniform over that part of the chosen child that lies in
  the draw's segment. One number for the whole descent would have too few bits: float32 tells 10^6 rows
  apart, but not how probable each one is. Small masses are summed with their neighbours, so that they
  are not lost in a large total.
- A row without mass, or a slot without a row, is never drawn while any row has mass, whatever the rounding.
  If no row has mass, the draw is uniform over the stored rows.

Priorities must be finite and not negative; one that is NaN shows as NaN in the probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from popjax import tree
from popjax.core import Key, PyTree
from popjax.replay import ring as plain
from popjax.replay.ring import Ring

FAN_OUT = 8
"""Children of a node. It affects only speed: of 4, 8, 16, 32 and 100, this is the fastest on a CPU."""
FORGOTTEN = 64
"""Rows whose masses are set to 0 at a time when rows are dropped."""
LARGEST_MASS = 1e28
"""Upper bound of a mass, so that the sum of 10^10 masses is still a float32."""


@struct.dataclass
class Prioritized:
    """State of a prioritized replay.

    ring:     the rows.
    nodes:    float32 [nodes, FAN_OUT]  the tree, level after level from the single node at the top. An entry
              of the last level is the mass of a slot, one of another level the sum of a node of the next;
              those beyond the last slot are 0.
    exponent: float32 []  exponent of priorities; 0 is uniform replay.
    """

    ring: Ring
    nodes: Array
    exponent: Array

    @property
    def capacity(self) -> int:
        """The number of slots."""
        return self.ring.capacity

    @property
    def size(self) -> Array:
        """int32 [], how many rows are stored."""
        return self.ring.size

    @property
    def total(self) -> Array:
        """float32 [], the sum of all masses."""
        return self.nodes[0].sum()

    @property
    def masses(self) -> Array:
        """float32 [capacity], priority^exponent of every slot, 0 if it has no row."""
        return self.nodes[first_nodes(self.capacity)[-1] :].reshape(-1)[: self.capacity]


class Draw(NamedTuple):
    """A drawn batch: slots int32 [B], for ``update``, and the probability of each, float32 [B]."""

    slots: Array
    probability: Array


class PrioritizedReplay(NamedTuple):
    """A store of rows (any pytree) with a fixed capacity, drawn by priority; new rows overwrite the oldest.

    init:   (example row, exponent) -> state; the exponent is data, so that it can be swept by ``vmap``
    add:    (state, rows [B, ...], valid [B], priority [B]) -> state; rows that are not valid leave no trace
    sample: (state, key, batch size) -> (rows [B, ...], Draw), with replacement
    update: (state, slots [B], priority [B]) -> state; equal slots must come with equal priorities, and a slot
            without a row, such as -1, is left alone. Call it before the next ``add``, which may give a
            slot to another row
    """

    init: Callable[[PyTree, Array | float], Prioritized]
    add: Callable[[Prioritized, PyTree, Array, Array], Prioritized]
    sample: Callable[[Prioritized, Key, int], tuple[PyTree, Draw]]
    update: Callable[[Prioritized, Array, Array], Prioritized]


def prioritized(capacity: int, *, stratified: bool = True) -> PrioritizedReplay:
    """Return a prioritized replay of ``capacity`` rows.

    ``stratified`` divides the total mass into as many equal segments as the batch has rows and draws one row
    from each, which comes closer to the distribution than independent draws do and has the same mean.
    """
    memory = plain.ring(capacity)

    def init(row: PyTree, exponent: Array | float) -> Prioritized:
        nodes = first_nodes(capacity)[-1] - (-capacity // FAN_OUT)
        empty = jnp.zeros((nodes, FAN_OUT), jnp.float32)
        return Prioritized(memory.init(row), empty, jnp.asarray(exponent, jnp.float32))

    def sample(state: Prioritized, key: Key, batch: int) -> tuple[PyTree, Draw]:
        draw = draw_slots(state, key, batch, stratified)
        return state.ring.take(draw.slots), draw

    return PrioritizedReplay(init=init, add=add, sample=sample, update=update)


def add(state: Prioritized, rows: PyTree, valid: Array, priority: Array) -> Prioritized:
    """Write the valid rows of ``rows`` [B, ...] in order; if there are more than ``capacity``, the last are
    kept."""
    ring, slots = plain.write(state.ring, rows, valid)
    return update(replace(state, ring=ring), slots, priority)


def update(state: Prioritized, slots: Array, priority: Array) -> Prioritized:
    """Give the rows in ``slots`` [B] new priorities [B]; slots without a row are left alone."""
    mass = jnp.minimum(jnp.asarray(priority, jnp.float32) ** state.exponent, LARGEST_MASS)
    return replace(state, nodes=_with_masses(state.ring, state.nodes, slots, mass))


def without_oldest(state: Prioritized, count: Array) -> Prioritized:
    """Return the replay without its ``count`` int32 [] oldest rows; for none, this costs nothing."""
    slots, _ = state.ring.oldest(min(FORGOTTEN, state.capacity))
    place = jnp.arange(len(slots))

    def some(loop: tuple[Array, Array]) -> tuple[Array, Array]:
        done, nodes = loop
        gone = jnp.where(done + place < count, (slots + done) % state.capacity, -1)
        return done + len(slots), _with_masses(state.ring, nodes, gone, jnp.zeros(len(slots)))

    loop = (jnp.int32(0), state.nodes)
    _, nodes = jax.lax.while_loop(lambda loop: tree.any_lane(loop[0] < count), some, loop)
    return replace(state, ring=plain.without_oldest(state.ring, count), nodes=nodes)


def _with_masses(ring: Ring, nodes: Array, slots: Array, mass: Array) -> Array:
    """Return ``nodes`` with new masses [B] of the rows in ``slots`` [B]; slots without a row are left
    alone."""
    stored = ring.stores(slots)

    def level(carry: Any, first: Array) -> tuple[Any, None]:
        nodes, index, mass = carry
        node = jnp.where(stored, first + index // FAN_OUT, len(nodes))  # len(nodes): dropped by the scatter
        nodes = nodes.at[node, index % FAN_OUT].set(mass, mode="drop")
        children = nodes.at[node].get(mode="clip")
        return (nodes, index // FAN_OUT, sum(children[:, place] for place in range(FAN_OUT))), None

    upwards = jnp.asarray(first_nodes(ring.capacity)[::-1])
    (nodes, _, _), _ = jax.lax.scan(level, (nodes, slots, mass), upwards)
    return nodes


def first_nodes(capacity: int) -> np.ndarray:
    """Return where each level of the tree begins, int32 [levels], from the top down to the masses."""
    counts = [-(-capacity // FAN_OUT)]
    while counts[0] > 1:
        counts.insert(0, -(-counts[0] // FAN_OUT))
    return np.cumsum([0, *counts[:-1]], dtype=np.int32)


def draw_slots(state: Prioritized, key: Key, batch: int, stratified: bool) -> Draw:
    """Draw ``batch`` slots; see ``prioritized``."""
    total = state.total
    low, high = jnp.zeros(batch), jnp.full(batch, total)
    if stratified:
        edges = total * (jnp.arange(batch + 1) / batch)
        low, high = edges[:-1], edges[1:]
    slots, mass = descend(state, low, high, key)
    # This branch is hardly ever entered. All lanes of a vmap enter it together, and each selects its own
    # result. One of the two draws is discarded, so they may share the key.
    uniform = jax.lax.cond(
        tree.any_lane(total == 0),
        lambda: plain.uniform(state.ring, key, batch),
        lambda: slots,
    )
    return Draw(
        slots=jnp.where(total == 0, uniform, slots),
        probability=jnp.where(total == 0, 1 / jnp.maximum(state.size, 1), mass / total),
    )


def descend(state: Prioritized, low: Array, high: Array, key: Key) -> tuple[Array, Array]:
    """Return slots [B] drawn by mass between the cumulative masses ``low`` and ``high`` [B], and their
    masses.

    If ``low`` equals ``high``, it is the first slot whose cumulative mass exceeds it.
    """
    levels = first_nodes(state.capacity)

    # Keep this loop rolled: XLA would fuse an unrolled level with the next one, which gathers FAN_OUT
    # children for every draw, and repeat all earlier work for each child.
    def level(carry: Any, now: tuple[Array, Array]) -> tuple[Any, None]:
        (index, low, high), (first, part) = carry, now
        children = state.nodes.at[first + index].get(mode="promise_in_bounds")
        chosen, before = choose(children, low, high, part)
        return (index * FAN_OUT + chosen, jnp.maximum(low - before, 0.0), high - before), None

    top = jnp.zeros(low.shape, jnp.int32), low, high
    parts = jax.random.uniform(key, (len(levels), *low.shape))
    (slots, _, _), _ = jax.lax.scan(level, top, (jnp.asarray(levels), parts))
    return slots, state.nodes[levels[-1] + slots // FAN_OUT, slots % FAN_OUT]


def choose(children: Array, low: Array, high: Array, part: Array) -> tuple[Array, Array]:
    """Return a child, and the sum of the masses before it, for each row of ``children`` [B, FAN_OUT].

    The target lies ``part`` [B] of the way from ``low`` [B] to ``high`` [B], or to the sum of all children if
    that is less. The child is the last one with mass that begins at or before the target: never one without
    mass, however sums are rounded.
    """
    end = begin = before = jnp.zeros(low.shape)
    chosen = jnp.zeros(low.shape, jnp.int32)
    # Written out, a running sum of a few numbers is one kernel; `cumsum` takes several times as long.
    for place in range(FAN_OUT):
        end = end + children[:, place]
    target = low + part * jnp.maximum(jnp.minimum(high, end) - low, 0.0)
    for place in range(FAN_OUT):
        here = (children[:, place] > 0) & (begin <= target)
        chosen, before = jnp.where(here, place, chosen), jnp.where(here, begin, before)
        begin = begin + children[:, place]
    return chosen, before


def importance_weights(probability: Array, size: Array | int, exponent: Array | float) -> Array:
    """Return weights [B] that undo the bias of drawing by priority: (N P)^-exponent, divided by the batch's
    largest.

    probability: float32 [B]  of the rows, from ``Draw``.
    size:        int32 []     N, rows stored now.
    exponent:    []           1 undoes the bias wholly, 0 not at all.
    """
    weight = unscaled_weights(probability, size, exponent)
    return weight / jnp.max(weight)


def unscaled_weights(probability: Array, size: Array | int, exponent: Array | float) -> Array:
    """Return (N P)^-exponent [B], which is 1 for a row drawn with uniform probability."""
    return (size * jnp.maximum(probability, jnp.finfo(jnp.float32).tiny)) ** -jnp.asarray(exponent)
