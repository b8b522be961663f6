"""Options of every task: repeated actions, stacked frames, scaled and clipped rewards."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.agents import td3
from popjax.contract import check_env
from popjax.core import Env, Spec, Timestep
from popjax.envs import make, wrappers
from popjax.host.training.evaluation import play
from popjax.methods import independent

KEY = jax.random.key(0)


def counter(length: int = 7, ends_at: int = 100) -> Env:
    """Its observation is the number of steps and its negative; the reward of step t is t."""

    def step(state: jax.Array, action: jax.Array) -> tuple[jax.Array, Timestep]:
        state = state + 1
        obs = jnp.stack([state, -state]).astype(jnp.float32)
        return state, Timestep(obs, obs, state.astype(jnp.float32), state >= ends_at, state >= length)

    spec = Spec("mine/counter", (2,), 1, length, dt=0.5, highest_return=28.0)
    return Env(lambda key: (jnp.int32(0), jnp.zeros(2)), step, spec)


def played(env: Env, count: int) -> list[Timestep]:
    state, _ = env.reset(KEY)
    found = []
    for _ in range(count):
        state, timestep = env.step(state, jnp.zeros(1))
        found.append(timestep)
    return found


def test_an_action_is_repeated() -> None:
    env = wrappers.repeated(counter(), 3)
    assert (env.spec.episode_length, env.spec.dt) == (3, 1.5)
    steps = played(env, 3)
    assert [float(step.reward) for step in steps] == [1 + 2 + 3, 4 + 5 + 6, 7]
    assert [bool(step.truncated) for step in steps] == [False, False, True]
    assert steps[2].next_obs.tolist() == [7, -7]
    ended = played(wrappers.repeated(counter(ends_at=2), 3), 1)[0]
    assert (float(ended.reward), bool(ended.terminated), ended.next_obs.tolist()) == (3, True, [2, -2])


def test_frames_are_stacked() -> None:
    env = wrappers.stacked(counter(), 3)
    assert env.spec.obs_shape == (6,)
    assert env.reset(KEY)[1].tolist() == [0] * 6
    second = played(env, 2)[1]
    assert second.next_obs.tolist() == second.obs.tolist() == [0, 0, 1, -1, 2, -2]
    image = make("gymnax/Breakout-MinAtar", frame_stack=2)
    assert image.spec.obs_shape == (10, 10, 8)
    frame = image.reset(KEY)[1]
    np.testing.assert_array_equal(frame[..., :4], frame[..., 4:])


def cut_after(count: int) -> Env:
    """``counter`` with a cut in step ``count``, behind which the observation to act on is 50."""
    env = counter()

    def step(state: jax.Array, action: jax.Array) -> tuple[jax.Array, Timestep]:
        state, timestep = env.step(state, action)
        cut = state == count
        obs = jnp.where(cut, 50.0, timestep.next_obs)
        return state, replace(timestep, obs=obs, cut=cut)

    return env._replace(step=step)


def test_a_repeated_action_stops_at_a_cut() -> None:
    steps = played(wrappers.repeated(cut_after(2), 3), 2)
    assert [float(step.reward) for step in steps] == [1 + 2, 3 + 4 + 5]
    assert [bool(step.cut) for step in steps] == [True, False]
    assert steps[0].next_obs.tolist() == [2, -2]


def test_stacked_frames_begin_anew_behind_a_cut() -> None:
    env = wrappers.stacked(cut_after(2), 3)
    assert env.spec.stack == 3
    steps = played(env, 3)
    assert steps[1].next_obs.tolist() == [0, 0, 1, -1, 2, -2], "the true successor goes on"
    assert steps[1].obs.tolist() == [50] * 6
    assert steps[2].obs.tolist() == [50, 50, 50, 50, 3, -3]


def test_observations_of_repeated_steps_are_no_stack() -> None:
    """From one to the next more than one frame is new: a replay cannot put them together from single ones."""
    env = wrappers.repeated(wrappers.stacked(counter(), 3), 2)
    first, second = (step.next_obs.tolist() for step in played(env, 2))
    assert (first, second) == ([0, 0, 1, -1, 2, -2], [2, -2, 3, -3, 4, -4])
    assert env.spec.stack == 1
    assert wrappers.repeated(wrappers.stacked(counter(), 3), 1).spec.stack == 3


def test_rewards_are_scaled_then_clipped() -> None:
    env = wrappers.wrapped(counter(), {"reward_scale": 0.5, "reward_clip": 2})
    assert [float(step.reward) for step in played(env, 7)] == [0.5, 1, 1.5, 2, 2, 2, 2]
    assert (env.spec.highest_return, env.scored.spec.highest_return) == (None, 28.0)


def test_all_together_and_evaluations_count_the_tasks_rewards() -> None:
    options = {"action_repeat": 2, "frame_stack": 2, "reward_scale": 10.0, "reward_clip": 15}
    env = make("probe/endless", **options)
    check_env(env)
    assert (env.spec.episode_length, env.spec.obs_shape) == (3, (2,))
    config = independent.Config(agent=td3.Config(hidden=(8,)), batch=4, capacity=20, warmup=4, steps=6)
    method = independent.build(env, config)
    state = jax.jit(method.step)(jax.jit(method.init)(KEY, method.hyper))
    assert state.replay.rows.reward[0, :6].tolist() == [15, 15, 10, 15, 15, 10]
    assert float(state.metrics.fitness[0]) == 40
    totals, lengths = play(env, method, method.policy(state), KEY, 2)
    assert (totals.tolist(), lengths.tolist()) == ([5, 5], [3, 3])


@pytest.mark.parametrize("times", [2, 3, 4])
def test_a_repeated_action_stops_at_a_limit_that_only_the_spec_has(times: int) -> None:
    env = counter(length=100)
    env = wrappers.wrapped(env._replace(spec=env.spec._replace(episode_length=7)), {"action_repeat": times})
    steps = played(env, env.spec.episode_length)
    assert sum(float(step.reward) for step in steps) == 28  # 1 + ... + 7
    assert [bool(step.truncated) for step in steps] == [False] * (len(steps) - 1) + [True]


def test_options_upon_options_are_scored_by_the_task_itself() -> None:
    """A user's function may return a task with options; its rewards of 1 are a tenth there."""
    env = make("probe/endless", reward_scale=0.1)
    for options, shape, limit, total in (
        ({"action_repeat": 2}, (1,), 3, 5),
        ({"frame_stack": 3}, (3,), 5, 5),
        ({"reward_clip": 0.05}, (1,), 5, 5),
    ):
        scored = wrappers.wrapped(env, options).scored
        assert (scored.spec.obs_shape, scored.spec.episode_length) == (shape, limit)
        assert sum(float(step.reward) for step in played(scored, limit)) == total


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"action_repeat": 0}, "action_repeat must be above 0, got 0"),
        ({"frame_stack": 1.5}, "frame_stack must be an integer"),
        ({"reward_clip": -1}, "reward_clip must be above 0"),
        ({"reward_clip": math.nan}, r"reward_clip must be from .* or infinite, got nan"),
        ({"reward_scale": np.float32("nan")}, "or infinite, got nan"),
        ({"reward_scale": 10**400}, r"from -3.4e\+38 to 3.4e\+38, or infinite, got a number beyond that"),
        ({"reward_scale": math.inf}, "reward_scale must be finite, got inf"),
        ({"reward_scale": "x"}, "reward_scale must be a number"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make("probe/endless", **options)


def test_a_repeated_step_stands_in_a_program_once() -> None:
    env = counter()

    def step(state: jax.Array, action: jax.Array) -> tuple[jax.Array, Timestep]:
        return env.step(state, jnp.sin(action))

    repeated = wrappers.repeated(env._replace(step=step), 3)
    program = str(jax.make_jaxpr(repeated.step)(jnp.int32(0), jnp.zeros(1)))
    assert program.count(" sin ") == 1
