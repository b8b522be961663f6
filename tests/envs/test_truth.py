"""Every task of gymnax and Brax against the library itself, from the states of 256 steps of random play.

The default run has a few tasks of gymnax (``test_adapters`` has one of Brax). All of them take about
ten minutes on two cores:

    pytest -m "slow or not slow" tests/envs/test_truth.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from popjax import envs
from tests.envs import truth
from tests.support import slow_except

FEW = {
    "Breakout-MinAtar",
    "CartPole-v1",
    "DeepSea-bsuite",
    "FourRooms-misc",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
}


@pytest.mark.parametrize("task", slow_except(FEW, envs.tasks("gymnax")))
def test_gymnax_equals_the_library_in_every_task(task):
    truth.assert_equals_the_library("gymnax", task)


@pytest.mark.parametrize("task", [pytest.param(task, marks=pytest.mark.slow) for task in envs.tasks("brax")])
def test_brax_equals_the_library_in_every_task(task):
    truth.assert_equals_the_library("brax", task)


def test_brax_swimmer_steps_although_jax_has_dropped_a_keyword_it_uses(key):
    env = envs.make("brax/swimmer")
    state, _ = jax.eval_shape(env.reset, key)
    _, timestep = jax.eval_shape(env.step, state, jnp.zeros(2))
    assert timestep.next_obs.shape == env.spec.obs_shape


@pytest.mark.parametrize("task", [task for task in envs.tasks("gymnax") if task.endswith("-MinAtar")])
def test_minatar_observes_height_width_channels(task):
    height, width, channels = envs.make(f"gymnax/{task}").spec.obs_shape
    assert (height, width) == (10, 10)
    assert 4 <= channels <= 10


@pytest.mark.parametrize("task", ["Breakout-MinAtar", "Catch-bsuite", "FourRooms-misc", "Swimmer-misc"])
def test_random_play_goes_on_across_resets(task):
    env = envs.make(f"gymnax/{task}", max_steps_in_episode=5)
    _, (state, _, timestep) = jax.jit(lambda key: truth.random_play(env, key, 12))(jax.random.key(0))
    assert timestep.done.any()
    # The step after an end is the first of its episode.
    after = jnp.roll(timestep.done, 1).at[0].set(True)
    assert ((state.steps == 0) == after).all()
