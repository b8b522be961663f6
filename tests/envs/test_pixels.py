"""Tasks of the Control Suite from pixels."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import envs, testing
from popjax.contract import check_env
from popjax.envs import dmc, pixels
from tests.support import same

pytest.importorskip("dm_control")
TASK, SIDE = "pendulum-swingup", 24


STEPS = 3
ACTIONS = np.float32([[0.3], [-0.9], [0.5]])


@functools.cache
def played(name: str, repeat: int = 1, **options: Any) -> tuple[Any, Any, Any]:
    """(environment, first observations, timesteps [N, T]) of two lanes, each action ``repeat`` times."""
    env = envs.make(name, episode_length=STEPS * repeat, **options)

    @jax.jit
    @jax.vmap
    def play(key: Any) -> Any:
        state, obs = env.reset(key)
        return obs, jax.lax.scan(env.step, state, jnp.repeat(ACTIONS, repeat, 0))[1]

    return env, *play(jax.random.split(jax.random.key(0), 2))


def test_an_observation_is_the_latest_pictures() -> None:
    env, first, steps = played(f"pixels/{TASK}", size=SIDE)
    assert (env.spec.obs_shape, env.spec.obs_dtype, env.spec.stack) == ((SIDE, SIDE, 9), jnp.uint8, 3)
    obs = np.concatenate([np.asarray(first)[:, None], steps.next_obs], 1)  # [N, T, ...]
    pictures = obs[..., -3:]
    for t in range(obs.shape[1]):
        for age in range(3):
            shown = obs[:, t, ..., 3 * (2 - age) : 3 * (3 - age)]
            np.testing.assert_array_equal(shown, pictures[:, max(t - age, 0)])
    assert not same(pictures[:, 0], pictures[:, -1])
    assert not same(pictures[0, 0], pictures[1, 0])
    assert env.spec.dt == pytest.approx(0.04)
    assert env.spec.highest_return == 2 * STEPS
    assert steps.truncated.tolist() == [[False, False, True]] * 2
    assert not steps.terminated.any()


@pytest.mark.slow
def test_an_action_is_repeated_and_rewards_are_summed() -> None:
    _, _, steps = played("pixels/cartpole-swingup", size=SIDE)
    _, _, bare = played("dmc/cartpole-swingup", 8)
    np.testing.assert_allclose(steps.reward, bare.reward.reshape(2, STEPS, 8).sum(-1), rtol=1e-4)
    assert (steps.reward > 0).any()


@pytest.mark.slow
def test_the_contract_of_environments_is_kept() -> None:
    testing.check_env(envs.make(f"pixels/{TASK}", size=SIDE), steps=10)


@pytest.mark.slow
def test_a_goal_is_where_the_episode_has_it() -> None:
    """The target of a reacher moves with the goal alone, and is seen."""
    see = jax.jit(pixels.painter("reacher-easy", 32, 32, 0))
    here, there = (see(jnp.zeros(2), (jnp.float32(goal),)) for goal in ([0.1, 0.1], [-0.1, 0.1]))
    changed = np.argwhere((np.asarray(here) != there).any(-1))
    assert 0 < len(changed) < 100
    assert {bool(x < 16) for _, x in changed} == {True, False}


def test_every_task_of_the_suite_has_drqs_settings() -> None:
    assert set(pixels.tasks()) == set(dmc.tasks())
    repeats = {task: pixels.settings(task, {})["repeat"] for task in pixels.tasks()}
    assert {task: n for task, n in repeats.items() if n != 2} == {
        "cartpole-swingup": 8,
        "reacher-easy": 4,
        "cheetah-run": 4,
        "ball_in_cup-catch": 4,
    }
    cameras = {task: pixels.settings(task, {})["camera"] for task in pixels.tasks()}
    assert {task: n for task, n in cameras.items() if n} == {"quadruped-walk": 2, "quadruped-run": 2}
    assert {pixels.settings(task, {})["size"] for task in pixels.tasks()} == {64}


@pytest.mark.slow
@pytest.mark.parametrize("task", pixels.tasks())
def test_every_task_can_be_made(task: str) -> None:
    env = envs.make(f"pixels/{task}")
    check_env(env)
    assert env.spec.episode_length == -(-1000 // pixels.settings(task, {})["repeat"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "option size must be at least 1, got 0"),
        ({"frames": 0}, "option frames must be at least 1, got 0"),
        ({"repeat": 2.5}, "option repeat must be an integer, got 2.5"),
        ({"camera": 2}, "option camera must be 0 to 1, got 2"),
        ({"camera": "side"}, "option camera must be an integer, got 'side'"),
        ({"sice": 84}, "has no option 'sice'; did you mean 'size'?"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^pixels/{TASK}") as refusal:
        envs.make(f"pixels/{TASK}", **options)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
