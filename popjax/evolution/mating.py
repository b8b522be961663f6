"""Choice of mates: a symmetric score [P, P] of all pairs, and the rules by which pairs are formed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from popjax.checks import check_least, check_types
from popjax.core import Key, Params
from popjax.replay.ring import Ring, draw


@dataclass(frozen=True)
class Mating:
    """Options of scoring and forming pairs. Bodnar et al., parent selection mechanism.

    A distance compares the actions that the actors would take now, not those that were played.
    """

    # score of a pair: its summed fitness, or its difference in behaviour
    score: Literal["greedy", "distance"] = "greedy"
    batch: int = 256  # distance: states per individual
    newest: int = 1_000  # distance: number of newest states of a memory to draw from

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, 1, "batch", "newest")


Behave: TypeAlias = Callable[[Params, Array], Array]
"""(policy, obs [..., *obs]) -> greedy actions [..., A]; one-hot if they are discrete."""


def scores(config: Mating, behave: Behave, actors: Params, memories: Ring, fitness: Array, key: Key) -> Array:
    """Return the mating score of every pair, float [P, P].

    actors, memories: [P]; a memory's rows have a field ``obs`` [D]. fitness: float [P].
    """
    if config.score == "greedy":
        return fitness[:, None] + fitness[None, :]
    return behaviour_distance(config, behave, actors, memories, key)


def behaviour_distance(config: Mating, behave: Behave, actors: Params, memories: Ring, key: Key) -> Array:
    """Return ``E_{s~x} |mu_x(s) - mu_y(s)|^2 + E_{s~y} |mu_x(s) - mu_y(s)|^2`` for every pair, [P, P].

    Each term averages over min(batch, sizes of both memories) of the owner's newest states.
    """
    batch = config.batch
    keys = jax.random.split(key, memories.size.shape[0])
    rows, _ = jax.vmap(lambda memory, key: draw(memory, key, batch, newest=config.newest))(memories, keys)
    each_actor_on_each_memory = jax.vmap(jax.vmap(behave, (0, None)), (None, 0))
    actions = each_actor_on_each_memory(actors, rows.obs)  # [owner of the states, actor, B, A]
    own = jax.vmap(behave)(actors, rows.obs)
    squared = jnp.sum((actions - own[:, None]) ** 2, -1)  # [owner, actor, B]
    held = jnp.minimum(memories.size, config.newest)
    count = jnp.minimum(batch, jnp.minimum(held[:, None], held[None, :]))  # [owner, actor]
    counted = jnp.arange(batch) < count[..., None]
    term = jnp.where(counted, squared, 0.0).sum(-1) / jnp.maximum(count, 1)
    return term + term.T
