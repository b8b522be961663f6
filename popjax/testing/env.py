"""Check of an environment."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax import contract, numerics, tree
from popjax.arguments import typed
from popjax.core import Env, PyTree, Timestep
from popjax.testing.compare import same


@typed()
@numerics.standardized
def check_env(env: Env, *, steps: int = 100) -> None:
    """Check that ``env`` keeps the contract of ``Env``, also in an episode of up to ``steps`` random actions.

    Shapes and types must be those of its Spec. Equal keys must give equal episodes, alone and in lanes side
    by side; every number must be finite, and no step may reset.

    Raises:
        ValueError: the environment breaks the contract; the message names it and the field.
    """
    contract.check_env(env)
    name, keys = env.spec.name, jax.random.split(jax.random.key(0), 3)
    play = partial(_random_episode, contract.checked(env), steps)
    alone, lanes = jax.jit(play), jax.jit(jax.vmap(play))
    rows, played = alone(keys[0])
    if not same(rows, alone(keys[0])[0]):
        raise ValueError(f"{name}: the same key gives another episode; keep everything in the state")
    for field, x in vars(rows).items():
        for step in range(int(played)):
            if not np.isfinite(np.asarray(x[step], np.float64)).all():
                raise ValueError(f"{name}: {field} is not finite in step {step + 1} of random actions")
    goes_on = ~np.asarray(rows.cut[: int(played)])
    if not same(*(jax.tree.map(lambda x: x[: int(played)][goes_on], y) for y in (rows.obs, rows.next_obs))):
        raise ValueError(f"{name}: obs differs from next_obs; let no step reset, or mark the row as cut")
    side_by_side = tree.take(lanes(keys)[0], 0)
    both = (jax.tree.map(lambda x: np.asarray(x[: int(played)], np.float64), y) for y in (rows, side_by_side))
    if not all(np.allclose(x, y, 1e-3, 1e-3) for x, y in zip(*map(jax.tree.leaves, both), strict=True)):
        raise ValueError(
            f"{name}: an episode differs in lanes side by side; let every lane follow its own state"
        )


def _random_episode(env: Env, steps: int, key: Array) -> tuple[Timestep, Array]:
    """Return timesteps [T] of random actions after a reset, and how many belong to the first episode."""
    spec, (key_reset, *keys) = env.spec, jax.random.split(key, steps + 1)

    def one(state: PyTree, key: Array) -> tuple[PyTree, Timestep]:
        if spec.discrete:
            return env.step(state, jax.random.randint(key, (), 0, spec.action_dim))
        return env.step(state, jax.random.uniform(key, (spec.action_dim,), minval=-1.0, maxval=1.0))

    rows = jax.lax.scan(one, env.reset(key_reset)[0], jnp.stack(keys))[1]
    ended = jnp.cumsum(rows.done) - rows.done
    return rows, (ended == 0).sum()
