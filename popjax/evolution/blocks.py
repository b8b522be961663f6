"""Mapping over individuals in blocks of a size that suits the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from popjax.core import PyTree


def mapped(one: Callable[[Any], PyTree], xs: PyTree, *, cpu: int, accelerator: int) -> PyTree:
    """Return the results of ``one`` for each of ``xs`` [P, ...], stacked [P, ...].

    cpu, accelerator: individuals computed at once on such a device. Small blocks fit the caches of a CPU; on
                      an accelerator every block costs a launch.
    """
    count = jax.tree.leaves(xs)[0].shape[0]

    def blocks_of(size: int) -> Callable[[PyTree], PyTree]:
        return jax.vmap(one) if size >= count else partial(jax.lax.map, one, batch_size=size)

    return jax.lax.platform_dependent(xs, cpu=blocks_of(cpu), default=blocks_of(accelerator))
