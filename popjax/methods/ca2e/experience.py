"""What lies between a lane and the replay: its n-step window and its local buffer."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import tree
from popjax.core import Timestep, Transition
from popjax.methods.ca2e.config import Config
from popjax.replay import nstep


@struct.dataclass
class Local:
    """Of one lane.

    window: the steps whose n-step return is not complete.
    rows:   Transition [L]  that wait for a priority; L leaves room for an episode's end in a full buffer.
    count:  int32 []        how many of them there are.
    """

    window: nstep.Window
    rows: Transition
    count: Array


def empty(example: Transition, config: Config) -> Local:
    """A lane that has not been played in."""
    room = config.local_buffer + config.n_step - 1
    return Local(nstep.init(example, config.n_step), tree.repeat(example, room), jnp.int32(0))


def remember(
    local: Local, obs: Array, action: Array, timestep: Timestep, discount: Array, clip_rewards: bool
) -> Local:
    """The lane after one step: every return that it completes joins the buffer, in order of time."""
    reward = jnp.clip(timestep.reward, -1.0, 1.0) if clip_rewards else timestep.reward
    flags = timestep.final, timestep.truncated
    window, rows, valid = nstep.push(local.window, obs, action, reward, *flags, timestep.next_obs, discount)
    place = jnp.where(valid, local.count + jnp.cumsum(valid) - 1, local.rows.reward.shape[0])
    return replace(
        local,
        window=window,
        rows=tree.put(local.rows, place, rows),
        count=local.count + valid.sum(dtype=jnp.int32),
    )


def emptied(locals_: Local, config: Config) -> tuple[Local, Array, Array]:
    """Lanes [P, N] with the full buffers emptied; the places int32 [P * N] of all lanes, full ones first; and
    how many these are, int32 []."""
    full = locals_.count >= config.local_buffer
    order = jnp.argsort(~full.reshape(-1), stable=True)
    return replace(locals_, count=jnp.where(full, 0, locals_.count)), order, full.sum(dtype=jnp.int32)


def contents(locals_: Local, place: Array, wanted: Array) -> tuple[Transition, Array]:
    """The rows [L] of the lane at ``place``, and which are valid: none if it is not ``wanted``."""
    lane = tree.take(tree.flatten(replace(locals_, window=())), place)  # type: ignore[arg-type]
    return lane.rows, wanted & (jnp.arange(lane.rows.reward.shape[0]) < lane.count)
