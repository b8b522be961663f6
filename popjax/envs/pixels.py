"""The DeepMind Control Suite seen by a camera: the tasks of ``dmc`` with pictures as observations.

Action repeats, cameras and sizes are those of jaxrl2's DrQ (Kostrikov et al., 2020), on which Collaborative
Exploration builds. A picture is cast by rays on the device, see ``popjax.envs.raycast``, one for each choice
of an action.

Differs from dm_control: physics is MJX's, and pictures resemble those of MuJoCo's renderer, without its
shadows, reflections and highlights; returns are only roughly comparable with those from its pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import Array

from popjax.core import Env, Key, PyTree, Timestep
from popjax.envs import dmc, raycast, wrappers
from popjax.envs.mujoco import in_view
from popjax.envs.options import check

REPEATS = {"cartpole-swingup": 8, "reacher-easy": 4, "cheetah-run": 4, "ball_in_cup-catch": 4}
"""Action repeat of tasks [environment steps of the physics per action]; 2 for all others."""
CAMERAS = {"quadruped": 2}
"""Camera by domain; the first for all others."""


BUDGET = 1_000_000
"""Steps of a task for which DrQ and Collaborative Exploration train."""


def choices(name: str) -> int | None:
    """Return the number of actions within ``BUDGET`` in "pixels/TASK"; None in other suites."""
    suite, _, task = name.partition("/")
    return BUDGET // REPEATS.get(task, 2) if suite == "pixels" else None


def tasks() -> Sequence[str]:
    """Return the ids of the tasks, which are those of ``dmc``."""
    return dmc.tasks()


def make(task: str, **options: Any) -> Env:
    """Return a task of the Control Suite from pixels, uint8 [size, size, 3 * frames], newest frame last.

    size:           height and width of a picture, 64 by default.
    frames:         latest pictures in an observation, 3 by default: an episode begins with one, repeated.
    repeat:         steps of the task for which an action is played, rewards summed; by default DrQ's for the
                    task, ``REPEATS`` or 2.
    camera:         number of the model's camera, by default ``CAMERAS`` or 0.
    episode_length: time limit, choices of an action; by default the task's, 1000 steps.

    Raises:
        ValueError: dm_control is missing, there is no such option, or a value is out of range.
    """
    o = settings(task, options)
    limit = {"episode_length": o["episode_length"] * o["repeat"]} if o["episode_length"] else {}
    env = wrappers.repeated(dmc.make(task, **limit), o["repeat"])
    env = pictured(env, task, o["size"], o["camera"])
    env = wrappers.stacked(env, o["frames"]) if o["frames"] > 1 else env
    return env._replace(spec=env.spec._replace(name=f"pixels/{task}"))


def settings(task: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return all options of a task with their values; ``episode_length`` None stands for the task's own.

    Raises:
        ValueError: there is no such option, or a value is out of range.
    """
    name = f"pixels/{task}"
    default = {
        "size": 64,
        "frames": 3,
        "repeat": REPEATS.get(task, 2),
        "camera": CAMERAS.get(task.partition("-")[0], 0),
        "episode_length": None,
    }
    o = {**default, **check(name, options, dict.fromkeys(default, int))}
    for option in ("size", "frames", "repeat", "episode_length"):
        if o[option] is not None and o[option] < 1:
            raise ValueError(f"{name}: option {option} must be at least 1, got {o[option]}")
    return o


def pictured(env: Env, task: str, size: int, camera: int) -> Env:
    """Return ``env``, of the task ``task`` of ``dmc``, with a camera's picture as observation, uint8 [size,
    size, 3].

    Raises:
        ValueError: the model has no such camera.
    """
    see = painter(task, size, size, camera)

    def reset(key: Key) -> tuple[PyTree, Array]:
        state, _ = env.reset(key)
        return state, see(*pose(state))

    def step(state: PyTree, action: Array) -> tuple[PyTree, Timestep]:
        state, timestep = env.step(state, action)
        seen = see(*pose(state))
        return state, replace(timestep, obs=seen, next_obs=seen)

    spec = env.spec._replace(obs_shape=(size, size, 3), obs_dtype=jnp.uint8)
    return env._replace(reset=reset, step=step, spec=spec)


def pose(state: Any) -> tuple[Array, tuple[PyTree, ...]]:
    """Return ``(qpos, goal)`` of a state of this suite or of ``dmc``, the arguments of a painter."""
    inner = (state[0] if isinstance(state, tuple) else state).inner  # without the stack of pictures
    return inner.qpos, inner.goal


def painter(task: str, height: int, width: int, camera: int) -> Any:
    """Return the function ``(qpos [nq], goal) -> uint8 [H, W, 3]`` that draws a task on the device.

    ``goal`` is that of the state: a tuple with the goal that the reset drew, or ().

    Raises:
        ValueError: the model has no such camera.
    """
    model, place = dmc.load(task), dmc.place(task)
    if not 0 <= camera < model.ncam:
        raise ValueError(f"pixels/{task}: option camera must be 0 to {model.ncam - 1}, got {camera}")
    posed, picture = in_view(model), raycast.camera(model, height, width, camera)

    def see(qpos: Array, goal: tuple[PyTree, ...]) -> Array:
        changed = place(model, *goal) if place and goal else {}
        return picture(*posed(qpos, changed))

    return see
