"""What is read from the shared replay: batches, states that lie close in an episode, and what followed."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import tree
from popjax.core import Key, Transition
from popjax.methods.ce.learners import Batch
from popjax.replay.ring import Ring, neighbours


@struct.dataclass
class Row:
    """What a replay slot holds.

    episode: int32 []   counts the episodes of a lane
    members: bool [P]   whose loss counts it (SUNRISE), or ()
    """

    transition: Transition
    episode: Array
    members: Any


class Lanes(NamedTuple):
    """The order of rows in the replay: one of every lane in turn, ``lanes`` of each of ``actors`` agents."""

    actors: int
    lanes: int

    @property
    def stride(self) -> int:
        """Rows between two steps of a lane."""
        return self.actors * self.lanes

    def owner(self, slots: Array) -> Array:
        """The agent that acted."""
        return slots % self.stride // self.lanes


def slots_of(store: Ring, key: Key, batch: int) -> Array:
    """int32 [batch] slots, uniform over what is stored."""
    return jax.random.randint(key, (batch,), 0, jnp.maximum(store.size, 1))


def batch(store: Ring, key: Key, size: int, order: Lanes, equal_shares: bool) -> Batch:
    """A uniform batch; with ``equal_shares`` as many rows of every agent."""
    key_slot, key_lane = jax.random.split(key)
    slots = slots_of(store, key_slot, size)
    if equal_shares:
        share = jnp.arange(size) * order.actors // size
        lane = jax.random.randint(key_lane, (size,), 0, order.lanes)
        slots = slots // order.stride * order.stride + share * order.lanes + lane
    row: Row = tree.take(store.rows, slots)
    return Batch(row.transition, order.owner(slots), row.members)


def pairs(store: Ring, key: Key, size: int, order: Lanes, horizon: int) -> tuple[Array, Array, Array]:
    """Observations [B, D]; of each another at most ``horizon`` steps before or after in the same episode
    [B, D], all of these as likely; and whether there was any, bool [B]."""
    key_slot, key_choice = jax.random.split(key)
    slots = slots_of(store, key_slot, size)
    offsets = jnp.array([offset for offset in range(-horizon, horizon + 1) if offset])
    near, there = neighbours(store, slots, offsets, order.stride)
    episode, obs = store.rows.episode, store.rows.transition.obs
    valid = there & (episode[near] == episode[slots, None])
    choice = jax.random.categorical(key_choice, jnp.where(valid, 0.0, -jnp.inf))
    partner = jnp.take_along_axis(near, choice[:, None], 1)[:, 0]
    return obs[slots], obs[partner], valid.any(-1)


def following(store: Ring, slots: Array, order: Lanes, horizon: int) -> tuple[Array, Array]:
    """Undiscounted sum of the ``horizon`` rewards from each slot on, up to the end of its episode, [B]; and
    whether all of them have been played, bool [B]."""
    near, there = neighbours(store, slots, jnp.arange(horizon), order.stride)
    same = there & (store.rows.episode[near] == store.rows.episode[slots, None])
    # All is known where the window ends inside what is stored, or the lane has begun another episode.
    complete = same[:, -1] | (there & ~same).any(1)
    return jnp.where(same, store.rows.transition.reward[near], 0.0).sum(1), complete
