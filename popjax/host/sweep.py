"""Seeds as one more vmapped axis.

On the host a State always leads with the seed axis ``S``. For one seed the axis is squeezed away and put
back, which costs nothing; for several it is a ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def lift(function: Callable[..., Any], seeds: int) -> Callable[..., Any]:
    """``function`` of single-seed arguments, as a function of arguments [S, ...] to results [S, ...]."""
    if seeds > 1:
        return jax.vmap(function)

    def single(*arguments: Any) -> Any:
        result = function(*jax.tree.map(lambda x: jnp.squeeze(x, 0), arguments))
        return jax.tree.map(lambda x: jnp.expand_dims(x, 0), result)

    return single


def keys(seed: int, seeds: int) -> Array:
    """[S] typed keys: seed ``s`` of a sweep has the key that a run of that seed alone would have."""
    return jnp.stack([jax.random.key(seed + s) for s in range(seeds)])
