"""DIAYN: skills first and the task later, by the best of them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.agents import sac
from popjax.envs import make
from popjax.intrinsic import diayn as drive
from popjax.methods import diayn
from tests.support import Case, same

SMALL = diayn.Config(
    sac=sac.Config(hidden=(8,)),
    drive=drive.Config(skills=4, hidden=(8,)),
    batch=12,
    capacity=400,
    warmup=20,
    pretraining=60,
)


@lru_cache
def compiled(env="probe/corridor", pretraining=60):
    method = diayn.build(make(env), replace(SMALL, pretraining=pretraining))
    steps = jax.jit(lambda state, n: jax.lax.fori_loop(0, n, lambda _, s: method.step(s), state))
    return method, jax.jit(method.init), steps


def played(count, seed=0):
    method, init, steps = compiled()
    return steps(init(jax.random.key(seed), method.hyper), count)


def test_the_replay_holds_observations_with_their_skill():
    obs = played(50).replay.rows.obs
    assert obs.shape[-1] == 1 + 4
    assert (obs[:50, 1:].sum(-1) == 1).all()
    drawn = {int(played(0, seed).lanes.env.skill[0, 0]) for seed in range(8)}
    assert len(drawn) > 1


def test_the_task_is_nothing_to_the_pretraining_and_all_that_counts_later():
    """Rewards of the task change what is learned from the end of the pretraining on, and not before."""
    method, init, steps = compiled()
    state = steps(init(jax.random.key(0), method.hyper), 50)
    richer = replace(state.replay.rows, reward=state.replay.rows.reward + 1)
    rich = replace(state, replay=replace(state.replay, rows=richer))
    assert same(steps(state, 9).agents, steps(rich, 9).agents)
    assert not same(steps(state, 10).agents, steps(rich, 10).agents)
    # And the skill counts before, not later: another weight of it.
    more = replace(state.hyper, drive=replace(state.hyper.drive, weight=jnp.float32(3)))
    assert not same(steps(state, 1).agents, steps(replace(state, hyper=more), 1).agents)
    late = steps(state, 10)
    assert same(steps(late, 3).agents, steps(replace(late, hyper=more), 3).agents)


def test_it_goes_on_with_the_skill_that_returned_most():
    steps, state = compiled()[2], played(59)
    known = replace(state.drive.drive, returns=jnp.array([[-jnp.inf, -50.0, 20.0, -jnp.inf]]))
    later = steps(replace(state, drive=replace(state.drive, drive=known)), 120)
    assert (later.lanes.env.skill == 2).all()
    np.testing.assert_array_equal(later.lanes.obs[0, 0, 1:], [0, 0, 1, 0])
    np.testing.assert_array_equal(later.drive.drive.returns, known.returns)
    method = compiled()[0]
    policy, skill = method.policy(later)
    assert int(skill) == 2
    agent = sac.build(make("probe/corridor").spec._replace(obs_shape=(5,)), SMALL.sac)
    obs, key = jnp.full(1, 0.3), jax.random.key(0)
    expected = agent.act(policy, (), jnp.array([0.3, 0, 0, 1, 0]), key, 0.0).action
    np.testing.assert_array_equal(method.act((policy, skill), (), obs, key, 0.0).action, expected)


def test_the_temperature_stays():
    temperature = jnp.exp(played(60).agents.log_temperature)
    np.testing.assert_allclose(temperature, 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lanes": 0}, "lanes must be at least 1"),
        ({"capacity": 100}, "batch 256 exceeds the replay's capacity 100"),
        ({"updates_per_step": 0.3}, "updates_per_step 0.3 times 1 environment steps"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        diayn.Config(**options)


def test_images_are_refused():
    with pytest.raises(ValueError, match="diayn needs vector observations"):
        diayn.build(make("gymnax/Breakout-MinAtar"), SMALL)


CASES = {
    "diayn": Case(
        lambda: diayn.build(
            make("probe/delay"),
            diayn.Config(
                sac=sac.Config(hidden=(4,)),
                drive=drive.Config(skills=2, hidden=(4,)),
                batch=6,
                capacity=60,
                warmup=3,
                pretraining=4,
            ),
        ),
        1,
        slow_members=True,
    )
}
