"""Reading a ring along episodes: pairs of nearby states, and the rewards that follow a state.

The ring is filled in order of time by ``stride`` lanes in turn (1: episode after episode). Its rows are
``Episodic``, and its capacity is a multiple of the stride.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax.core import Key, Transition
from popjax.replay.ring import Ring, neighbours, uniform


@struct.dataclass
class Episodic(Transition):
    """Transitions numbered by episode.

    episode: int32 [...]  equal throughout an episode, different in the lane's next one.
    """

    episode: Array

    @property
    def plain(self) -> Transition:
        """The transitions without their numbers."""
        return Transition(self.obs, self.action, self.reward, self.discount, self.next_obs)


def numbered(rows: Transition, episode: Array) -> Episodic:
    """Return ``rows`` with the number of their ``episode``."""
    return Episodic(rows.obs, rows.action, rows.reward, rows.discount, rows.next_obs, episode)


def pairs(store: Ring, key: Key, count: int, stride: int, horizon: int) -> tuple[Array, Array, Array]:
    """Return observations [B, *obs], a partner for each [B, *obs], and whether there is one, bool [B]; B is
    ``count``.

    A partner is drawn uniformly from the observations at most ``horizon`` steps before or after in the same
    episode.
    """
    key_slot, key_choice = jax.random.split(key)
    anchors = uniform(store, key_slot, count)
    offsets = jnp.array([offset for offset in range(-horizon, horizon + 1) if offset])
    near, there = neighbours(store, anchors, offsets, stride)
    first = store.take(anchors)
    valid = there & (store.take(near).episode == first.episode[:, None])
    choice = jax.random.categorical(key_choice, jnp.where(valid, 0.0, -jnp.inf))
    partner = jnp.take_along_axis(near, choice[:, None], 1)[:, 0]
    return first.obs, store.take(partner).obs, valid.any(-1)


def following(store: Ring, at: Array, stride: int, horizon: int) -> tuple[Array, Array]:
    """Return the undiscounted sum [B] of ``horizon`` rewards from each slot ``at`` [B] on, cut off at the end
    of its episode, and whether all of these rewards are stored, bool [B]."""
    near, there = neighbours(store, at, jnp.arange(horizon), stride)
    rows = store.take(near)
    same = there & (rows.episode == store.take(at).episode[:, None])
    # All rewards are known if the window ends among the stored rows, or the lane has begun another episode.
    complete = same[:, -1] | (there & ~same).any(1)
    return jnp.where(same, rows.reward, 0.0).sum(1), complete
