"""flashbax's prioritised flat buffer: a draw of a batch, and new priorities for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flashbax
import jax
import jax.numpy as jnp

from popjax import tree
from popjax.core import Transition


def build(
    capacity: int, batch: int, example: Transition, priority: Callable, exponent: float, added: int = 10_000
) -> tuple[Callable, Callable]:
    """Return (init, iterate): ``init(key)`` fills the buffer, an iteration draws and sets priorities.

    The buffer stores steps and draws pairs of neighbours, so that as much is read as for a ``Transition``.
    ``priority(drawn)`` [batch] gives the new priorities.
    """
    if capacity % added:
        raise ValueError(f"capacity {capacity} is not a multiple of the {added} steps added at once")
    buffer = flashbax.make_prioritised_flat_buffer(
        max_length=capacity,
        min_length=batch,
        sample_batch_size=batch,
        add_sequences=True,
        priority_exponent=exponent,
        device=jax.default_backend(),
    )
    step = {"obs": example.obs, "action": example.action, "reward": example.reward, "done": example.discount}

    def init(key: Any) -> Any:
        rows = tree.normal_like(key, jax.tree.map(lambda x: jnp.zeros((added, *x.shape)), step))
        state = buffer.init(step)
        state = jax.lax.fori_loop(0, capacity // added, lambda _, state: buffer.add(state, rows), state)
        return state, key

    def iterate(carry: Any) -> Any:
        state, key = carry
        key, key_sample = jax.random.split(key)
        drawn = buffer.sample(state, key_sample)
        new = priority((drawn.experience, drawn.probabilities))
        return buffer.set_priorities(state, drawn.indices, new), key

    return init, iterate
