"""Populations with replays: what others may take from them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from popjax.agents import ddpg
from popjax.core import as_arrays
from popjax.envs import make
from popjax.population import offpolicy


def test_batches_have_everybodys_own_discount(key):
    """The replay that all share keeps 1 in its place, and 0 where the task has ended."""
    config = offpolicy.Config(
        ddpg.Config(hidden=(4,), critic_branch=4, critic_hidden=4),
        population=2,
        steps=40,
        batch=64,
        capacity=80,
        shared_replay=True,
    )
    base = offpolicy.build(make("probe/delay"), config)
    hyper = ddpg.Hyper().replace(discount=jnp.array([0.9, 0.5]))
    state = offpolicy.State(**base.fields(key, hyper))
    state = jax.jit(base.collect)(state)
    assert set(np.unique(state.replay.rows.discount)) == {0.0, 1.0}
    rows = jax.jit(base.sample)(state, key)
    assert rows.reward.shape == (2, 64)
    for discount, gamma in zip(rows.discount, as_arrays(hyper).discount, strict=True):
        assert set(np.unique(discount)) == {np.float32(0), np.float32(gamma)}
