"""Returns of n steps: from consecutive steps of one lane to transitions that bootstrap n steps later.

Written for one lane, in order of time; lift it with ``vmap``. With gamma the discount, a step gives

    reward   = r_t + gamma r_t+1 + ... + gamma^(m-1) r_t+m-1
    discount = gamma^m, 0 where the task terminated
    next_obs = the observation after r_t+m-1, before any reset

with m = n, or fewer steps where the episode ended: a terminal or a time limit completes all pending returns.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import tree
from popjax.core import Transition


@struct.dataclass
class Window:
    """The latest steps of a lane that have no return yet, oldest first; fewer than n between two pushes.

    obs:    [n, *obs]  observations acted on; entries from ``count`` on are unused.
    action: [n, ...]   actions.
    reward: [n]        rewards of one step each.
    count:  int32 []   how many steps are held.
    """

    obs: Array
    action: Array
    reward: Array
    count: Array


def init(example: Transition, n: int) -> Window:
    """Return an empty window for returns of ``n`` steps of a lane whose transitions look like ``example``.

    Raises:
        ValueError: ``n`` is less than 1.
    """
    if n < 1:
        raise ValueError(f"an n-step return needs n of at least 1, got {n}")

    def empty(x: Array) -> Array:
        return jnp.zeros((n, *jnp.shape(x)), jnp.result_type(x))

    return Window(empty(example.obs), empty(example.action), empty(example.reward), jnp.int32(0))


def push(
    window: Window,
    obs: Array,
    action: Array,
    reward: Array,
    terminated: Array,
    truncated: Array,
    next_obs: Array,
    discount: Array | float,
) -> tuple[Window, Transition, Array]:
    """Add one step, and return the transitions that it completes.

    ``next_obs`` is the true successor, ``discount`` [] is gamma. A step that both terminated and was
    truncated counts as terminated.

    Returns the window, transitions [n] and valid bool [n]: the valid ones come first, oldest first. Once n
    steps are held, one is valid; at the end of the episode, one for each held step; otherwise none.
    """
    n = len(window.reward)
    steps = tree.put((window.obs, window.action, window.reward), window.count, (obs, action, reward))
    held = window.count + 1
    done = jnp.asarray(terminated | truncated, jnp.bool_)
    place = jnp.arange(n)

    def back(later: Any, step: tuple[Array, Array]) -> tuple[Any, Any]:
        """Return R_j = r_j + gamma R_j+1, and the same for the discount, from the newest step to the
        oldest."""
        (total, factor), (reward, inside) = later, step
        now = tree.where(inside, (reward + discount * total, discount * factor), later)
        return now, now

    end = jnp.zeros(()), jnp.where(terminated, 0.0, 1.0)
    _, (total, factor) = jax.lax.scan(back, end, (steps[2], place < held), reverse=True, unroll=min(n, 8))
    transitions = Transition(
        obs=steps[0],
        action=steps[1],
        reward=total,
        discount=factor,
        next_obs=jnp.broadcast_to(next_obs, (n, *jnp.shape(next_obs))),
    )
    full = held == n
    kept = tree.where(full, jax.tree.map(lambda x: jnp.roll(x, -1, 0), steps), steps)
    window = Window(kept[0], kept[1], kept[2], jnp.where(done, 0, held - full).astype(jnp.int32))
    return window, transitions, jnp.where(done, place < held, (place == 0) & full)
