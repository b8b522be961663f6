"""Stages between a lane and a prioritized replay: the lane's n-step window and local buffer (Ape-X)."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import tree
from popjax.core import Timestep, Transition
from popjax.replay import nstep


@struct.dataclass
class Local:
    """The experience of one lane that the replay does not have yet.

    window: the steps whose n-step return is not complete yet.
    rows:   Transition [L] that wait for a priority; L leaves room for an episode's end in a full buffer.
    count:  int32 [] number of waiting rows.
    """

    window: nstep.Window
    rows: Transition
    count: Array


def empty(example: Transition, n_step: int, size: int) -> Local:
    """Return a lane before its first step, with a buffer of ``size`` returns of ``n_step`` rewards."""
    return Local(nstep.init(example, n_step), tree.repeat(example, size + n_step - 1), jnp.int32(0))


def remember(local: Local, obs: Array, action: Array, timestep: Timestep, discount: Array) -> Local:
    """Return the lane after one step; the returns that it completes join the buffer, in order of time."""
    flags = timestep.final, timestep.truncated
    window, rows, valid = nstep.push(
        local.window, obs, action, timestep.reward, *flags, timestep.next_obs, discount
    )
    place = jnp.where(valid, local.count + jnp.cumsum(valid) - 1, local.rows.reward.shape[0])
    return replace(
        local,
        window=window,
        rows=tree.put(local.rows, place, rows),
        count=local.count + valid.sum(dtype=jnp.int32),
    )


def emptied(locals_: Local, size: int) -> tuple[Local, Array, Array]:
    """Empty all buffers of at least ``size`` rows. Return the lanes [P, N]; the places int32 [P * N] of all
    lanes, those with full buffers first; and the number of full buffers, int32 []."""
    full = locals_.count >= size
    order = jnp.argsort(~full.reshape(-1), stable=True)
    return replace(locals_, count=jnp.where(full, 0, locals_.count)), order, full.sum(dtype=jnp.int32)


def contents(locals_: Local, place: Array, wanted: Array) -> tuple[Transition, Array]:
    """Return the rows [L] of the lane at ``place``, and which are valid: none if it is not ``wanted``."""
    rows, count = tree.take(tree.flatten((locals_.rows, locals_.count)), place)
    return rows, wanted & (jnp.arange(rows.reward.shape[0]) < count)
