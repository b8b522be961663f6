"""Observations by reference: rows hold the numbers of frames, and each frame is kept once.

An observation of ``Spec.stack`` frames shares all but one of them with the next, and a row has two
observations. Stored whole, a million transitions of an Atari game take 56 GB; by reference, 7.5 GB. Frames
lie in a ring of their own. An observation is ``ids`` int32 [stack], oldest frame first; frame k lies in slot
k mod F. Rows hold ids in place of ``obs`` and ``next_obs``, so that rings, priorities and windows of n steps
need no change. Learners look up the frames first.

An episode of n steps has n + 1 frames. Where episodes are so short that their frames overwrite those of
stored rows, the oldest rows are dropped in time, and the replay holds fewer than its capacity, but no less
than half of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import tree
from popjax.core import PyTree, Spec, Transition, example_transition
from popjax.replay.ring import Ring

T = TypeVar("T", bound=Transition)
SPARE = 64
"""Fewest frames of each lane to keep beyond those of the replay."""
SMALL = 1_024
"""Largest frame, in bytes, of which a replay keeps two for each row: enough for episodes of any length."""


@struct.dataclass
class Frames:
    """Frames of some lanes, and the observations on which the lanes act next.

    pixels: [F, ..., C]          frames as the environment gives them.
    count:  int32 []             number of the next frame; numbers restart at a multiple of F near 2^30.
    ids:    int32 [L, stack]     of the observation that each lane acts on next.
    """

    pixels: Array
    count: Array
    ids: Array


class Sight(NamedTuple):
    """Storage of the observations of a task in rows: as ids, or whole if they are not stacks.

    example: a row as it is kept, all zeros
    start:   first observations [L, *obs] of the lanes -> frames; None if observations are kept whole
    see:     (frames, obs [T, L, *obs], next_obs [T, L, *obs], obs [L, *obs] after them, anew bool [T, L]) ->
             (frames, obs and next_obs as rows keep them, [T, L, ...] each). After a step that is ``anew``,
             the end of an episode or a cut, the lane goes on with one frame repeated
    look:    (frames, observations [...] as rows keep them) -> [..., *obs]
    lost:    (frames, ring of rows) -> int32 [] number of its oldest rows to drop after every ``see``, before
             rows are looked up: all up to the newest that has lost a frame, rounded up to a multiple of
             lanes, so that the rows of a step stay together; None if observations are kept whole
    """

    example: Transition
    start: Callable[[Array], Frames | None]
    see: Callable[..., tuple[Frames | None, Array, Array]]
    look: Callable[..., Array]
    lost: Callable[[Any, Ring], Array] | None


def slots(capacity: int, lanes: int, spare: int = SPARE, *, small: bool = False) -> int:
    """Return the number of frames to keep for ``capacity`` rows of ``lanes``.

    Each episode or life begins with an extra frame. There is room for the extra frames of episodes of 16
    steps on average or, if frames are ``small``, of one step; and for at least ``spare`` frames of each lane.
    The replay holds fewer rows if episodes are shorter.
    """
    return capacity + (capacity if small else capacity // 16) + lanes * max(SPARE, spare)


def sight(spec: Spec, capacity: int, lanes: int, in_flight: int) -> Sight:
    """Return the storage of observations for a replay of ``capacity`` rows that ``lanes`` fill.

    The row of a step is stored at most ``in_flight`` steps of its lane later; so many steps at most are seen
    at once.

    Raises:
        ValueError: the observations of ``spec`` cannot be divided into its ``stack``.
    """
    row = example_transition(spec)
    if spec.stack == 1:
        return Sight(row, lambda obs: None, lambda *seen: seen[:3], lambda _, obs: obs, None)
    depth = spec.stack
    channels = spec.obs_shape[-1] // depth
    if channels * depth != spec.obs_shape[-1]:
        raise ValueError(
            f"{spec.name}: observations of shape {spec.obs_shape} are not a stack of {depth} frames along the"
            " last axis; correct stack of the Spec"
        )

    small = row.obs.nbytes // depth <= SMALL
    size = slots(capacity, lanes, 2 * (depth + in_flight), small=small)
    period = 2**30 // size * size  # numbers restart here: 32 bits suffice for a run of any length

    def newest(obs: Array) -> Array:
        return obs[..., -channels:]

    def start(obs: Array) -> Frames:
        pixels = jnp.zeros((size, *spec.obs_shape[:-1], channels), spec.obs_dtype)
        ids = jnp.broadcast_to(jnp.arange(lanes, dtype=jnp.int32)[:, None], (lanes, depth))
        return Frames(pixels.at[:lanes].set(newest(obs)), jnp.int32(lanes), ids)

    def see(
        frames: Frames, obs: Array, next_obs: Array, after: Array, anew: Array
    ) -> tuple[Frames, Array, Array]:
        chex.assert_shape(anew, (None, lanes))
        begun = jnp.concatenate([obs[1:], after[None]])
        shown = jnp.stack([newest(next_obs), newest(begun)], 1)  # [T, 2, L, ..., C]
        written = jnp.stack([jnp.ones_like(anew), anew], 1)  # [T, 2, L]
        later = (jnp.cumsum(written.ravel()) - 1).reshape(written.shape).astype(jnp.int32)
        number = (frames.count + later) % period

        def one(ids: Array, step: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            (latest, first), anew = step
            next_ids = jnp.concatenate([ids[:, 1:], latest[:, None]], 1)
            following = jnp.where(anew[:, None], first[:, None], next_ids)
            return following, (ids, next_ids)

        ids, (obs_ids, next_obs_ids) = jax.lax.scan(one, frames.ids, (number, anew))
        slots = jnp.where(written, number % size, size).ravel()  # size: dropped by the scatter
        pixels = frames.pixels.at[slots].set(tree.flatten(shown, 3), mode="drop")
        count = (frames.count + written.sum(dtype=jnp.int32)) % period
        return Frames(pixels, count, ids), obs_ids, next_obs_ids

    def look(frames: Frames, ids: Array) -> Array:
        found = frames.pixels[ids % size]  # [..., stack, H, W, C]
        found = jnp.moveaxis(found, ids.ndim - 1, -2)
        return found.reshape(*found.shape[:-2], -1)

    def lost(frames: Frames, store: Ring) -> Array:
        # A lane writes at most two frames a step. Those of a row are at most depth + in_flight steps old when
        # it is stored, and rows are stored in order: one that has just lost a frame is among these oldest.
        slots, stored = store.oldest(min(4 * lanes * (depth + in_flight), store.capacity))
        oldest = store.take(slots).obs[:, 0]
        gone = stored & ((frames.count - oldest) % period > size)
        newest = jnp.max(jnp.where(gone, jnp.arange(1, len(slots) + 1), 0)).astype(jnp.int32)
        return -(-newest // lanes) * lanes

    seen = jnp.zeros(depth, jnp.int32)
    return Sight(replace(row, obs=seen, next_obs=seen), start, see, look, lost)


def keep(sight: Sight, frames: PyTree, rows: T, after: Array, anew: Array) -> tuple[PyTree, T]:
    """Return frames and ``rows`` [T, L] as they are stored; see ``Sight.see``."""
    given: Any = rows
    frames, obs, next_obs = sight.see(frames, given.obs, given.next_obs, after, anew)
    return frames, replace(given, obs=obs, next_obs=next_obs)


def looked(sight: Sight, frames: PyTree, rows: T) -> T:
    """Return stored ``rows`` [...], such as a batch, with their observations looked up."""
    kept: Any = rows
    return replace(kept, obs=sight.look(frames, kept.obs), next_obs=sight.look(frames, kept.next_obs))
