"""Returns of policies in fresh episodes: for fitness, tests, retirement and the choice of the policy to
deploy.

All individuals play in one loop, so that the physics is compiled once whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from popjax import rollout, tree
from popjax.core import Act, Env, Key, Params, PyTree
from popjax.population import learning
from popjax.replay.ring import Ring


def returns(
    env: Env,
    act: Act,
    params: Params,
    memory: PyTree,
    key: Key,
    episodes: int,
    *,
    starts: Array | None = None,
) -> Array:
    """Return float32 [P, episodes]: the undiscounted returns of each of ``params`` [P] in fresh, greedy
    episodes, in the rewards that evaluations count.

    memory: of a policy at the start of an episode.
    starts: keys [episodes] of initial states that all individuals share; None: each episode has its own.
    """

    env = env.scored or env

    def one(params: Params, key: Key, first: Array | None) -> Array:
        fixed = env if first is None else env._replace(reset=lambda _: env.reset(first))

        def choose(memory: PyTree, obs: Array, key: Key) -> tuple[PyTree, Array]:
            return act(params, memory, obs, key, 0.0)[:2]

        return rollout.episode(fixed, choose, memory, key, record=lambda *_: ()).total

    count = jax.tree.leaves(params)[0].shape[0]
    over_episodes = jax.vmap(one, (None, 0, None if starts is None else 0))
    over_everyone = jax.vmap(over_episodes, (0, 0, None))
    return jnp.asarray(over_everyone(params, jax.random.split(key, (count, episodes)), starts))


def when(due: Array, play: Callable[[], Array]) -> Array:
    """Return the scores [...] of ``play()`` if they are ``due`` for any member of a sweep, else 0 without
    playing."""
    nothing = learning.zeros(jax.eval_shape(play))
    return jax.lax.cond(tree.any_lane(due), play, lambda: nothing)


def recent(returns: Ring) -> Array:
    """Return float32 []: the mean of a ring of episodes' returns; 0 if it is empty."""
    stored = jnp.arange(returns.capacity) < returns.size
    return jnp.where(stored, returns.unpacked(), 0.0).sum() / jnp.maximum(returns.size, 1)
