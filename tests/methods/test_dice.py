"""DiCE: equal shares of every agent, and actors that climb the bisector of two gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import tree
from popjax.agents import sac
from popjax.core import as_arrays
from popjax.envs import make
from popjax.methods import dice
from popjax.replay.ring import full
from tests.support import Case, same

SMALL = dice.Config(sac=sac.Config(hidden=(16,)), population=2, batch=12, capacity=200, warmup=20)


@lru_cache
def compiled():
    method = dice.build(make("probe/corridor"), SMALL)
    return method, jax.jit(method.init), jax.jit(method.step)


def played(count, **numbers):
    method, init, step = compiled()
    state = init(jax.random.key(0), replace(method.hyper, sac=sac.Hyper(**numbers)))
    for _ in range(count):
        state = step(state)
    return state


@pytest.mark.parametrize("shape", [(4, 1), (3, 2)])
def test_a_batch_has_equal_shares_of_every_agent(shape, key):
    owner = jnp.broadcast_to(jnp.arange(shape[0])[:, None], (10, *shape)).reshape(-1)  # [T, P, N]
    slots = dice.equal_shares(full(owner), key, 12, shape=shape)
    np.testing.assert_array_equal(np.bincount(owner[slots], minlength=shape[0]), [12 // shape[0]] * shape[0])
    drawn = dice.equal_shares(full(owner), key, 6000, shape=shape)
    assert len(np.unique(drawn)) == len(owner)


def test_an_actor_climbs_the_tasks_gradient_where_its_critic_of_diversity_is_flat():
    """Critics stand still and entropy counts nothing: the mean moves the way in which its value rises, and
    otherwise where the critic of diversity has an opinion."""
    still = {"critic_lr": 0.0, "init_temperature": 0.0, "temperature_lr": 0.0, "polyak": 0.0}
    state = played(9, **still)
    blank = replace(state.agents, critic=jax.tree.map(jnp.zeros_like, state.agents.critic))
    # Twins that grow with the action everywhere, whatever its noise.
    critics = jax.tree.map(jnp.zeros_like, state.agents.sac.critics)
    first, last = (critics["mlp"][name]["linear"] for name in ("Dense_0", "Dense_1"))
    first["kernel"] = first["kernel"].at[..., 1, :].set(1.0)  # the action's row
    first["bias"] = first["bias"] + 2.0
    last["kernel"] = last["kernel"] + 1.0
    rising = replace(state.agents.sac, critics=critics, target_critics=critics)

    def moved(agents):
        before = state.replace(agents=agents)
        after = compiled()[2](before).agents.sac.actor
        return jax.tree.map(lambda a, b: a - b, after, agents.sac.actor)

    up = moved(replace(blank, sac=rising))
    assert (up["mlp"]["Dense_1"]["linear"]["bias"] > 0).all()
    falling = jax.tree.map(jnp.copy, rising)
    falling.critics["mlp"]["Dense_1"]["linear"]["kernel"] = -last["kernel"]
    assert (moved(replace(blank, sac=falling))["mlp"]["Dense_1"]["linear"]["bias"] < 0).all()
    assert not same(moved(replace(state.agents, sac=rising)), up)


def test_an_actor_is_followed_by_its_slow_copy():
    state = played(11)
    later = state
    for _ in range(6):
        later = compiled()[2](later)
    gap = [
        sum(float(jnp.abs(a - b).sum()) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in (
            (later.agents.slow_actor, state.agents.slow_actor),
            (later.agents.sac.actor, state.agents.sac.actor),
        )
    ]
    assert 0 < gap[0] < gap[1]


def test_the_warm_up_ends_in_time():
    assert same(played(9).agents, played(0).agents)
    state = played(10)
    assert not same(state.agents, played(0).agents)
    assert int(state.env_steps) == int(state.replay.size) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 1}, "population must be at least 2, got 1"),
        ({"batch": 10}, "make batch 10 a multiple of population 4"),
        ({"capacity": 100}, "capacity 100 is less than a batch"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dice.Config(**options)


def test_every_agent_is_deployed_alone():
    method, state = compiled()[0], played(3)
    everyone = method.individuals(state)
    assert same(method.policy(state), tree.take(everyone, 0))
    assert same(everyone, state.agents.sac.actor)
    assert as_arrays(method.hyper).sac.discount == jnp.float32(0.99)


CASES = {
    "dice": Case(
        lambda: dice.build(
            make("probe/delay"),
            dice.Config(sac=sac.Config(hidden=(4,)), population=3, batch=6, capacity=60, warmup=3),
        ),
        3,
        slow_members=True,
    )
}
