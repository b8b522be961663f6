"""DeepMind Control Suite on device, from dm_control's own models. Tassa et al., 2018. arXiv:1801.00690

Every formula is that of the module of ``dm_control.suite`` named like the domain. Model, physics steps in an
environment step and time limit are read off the installed library. Observations are its dictionaries,
concatenated in their order. No task terminates: an episode ends at its limit of 1000 steps.

Differs from dm_control: MJX is not MuJoCo in C (see ``popjax.envs.mujoco``); the first of the 200 physics
steps that let a cheetah come to rest uses accelerations of the pose that was drawn, not those of the model's
initial pose. MuJoCo Playground has tasks of the same names with other physics: suite ``playground``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from popjax import libraries
from popjax.core import Env
from popjax.envs.dmc import domains, scene
from popjax.envs.dmc.manipulator import manipulator
from popjax.envs.mujoco import Solver, Task, simulation
from popjax.envs.options import check


class _Domain(NamedTuple):
    """Parts that the tasks on one model share.

    task:   (model, task) -> Task
    solver: the fewest iterations and line-search iterations that are as exact as 100 and 50
    tasks:  the names of the tasks
    """

    task: Callable[[Any, str], Task]
    solver: Solver
    tasks: tuple[str, ...]


def tasks() -> Sequence[str]:
    """Return the ids of the tasks, "domain-task"."""
    return tuple(f"{name}-{task}" for name, domain in DOMAINS.items() for task in domain.tasks)


def make(task: str, episode_length: int | None = None, **options: Any) -> Env:
    """Return a task of the DeepMind Control Suite on MJX.

    episode_length: time limit, environment steps; by default dm_control's 1000.
    options:        ``impl``, jax or warp, MJX's implementation of the physics. There are no others.

    Raises:
        ValueError: dm_control or Warp is missing, there are other options, or one is of the wrong type.
    """
    given = options if episode_length is None else {"episode_length": episode_length, **options}
    given = check(f"dmc/{task}", given, {"episode_length": int, "impl": str})
    name, _, kind = task.partition("-")
    original = _original(task)
    model, domain = original.physics.model.ptr, DOMAINS[name]
    env = simulation(
        f"dmc/{task}",
        model,
        domain.task(model, kind)._replace(synced=True),
        domain.solver,
        frame_skip=round(original.control_timestep() / model.opt.timestep),
        episode_length=given.get("episode_length", round(original._step_limit)),
        impl=given.get("impl", "jax"),
    )
    # A reward is at most 1.
    return env._replace(spec=env.spec._replace(highest_return=float(env.spec.episode_length)))


def load(task: str) -> Any:
    """Return the ``mujoco.MjModel`` of a task, for rendering."""
    model = _original(task).physics.model.ptr
    return scene.finger(model) if task.startswith("finger") else model


def place(task: str) -> scene.Place | None:
    """Return the function that puts an episode's target into the model of ``load``; None if it never
    moves."""
    return scene.PLACES.get(task.partition("-")[0])


def _original(task: str) -> Any:
    """Return dm_control's environment after a reset, which sets the sizes that a task changes."""
    try:
        with warnings.catch_warnings(), libraries.physics():
            warnings.simplefilter("ignore")  # it warns if there is no display
            from dm_control import suite
    except ImportError as absent:
        new = sys.version_info >= (3, 13)
        where = " with Python 3.12, since its labmaze has no wheel for later ones" if new else ""
        raise ValueError(
            f"dmc/{task} needs dm_control: pip install 'popjax[dmc]'{where} ({absent})"
        ) from absent
    original = suite.load(*task.split("-"), task_kwargs={"random": 0})
    original.reset()
    return original


DOMAINS = {
    "acrobot": _Domain(domains.acrobot, Solver(1, 1), ("swingup", "swingup_sparse")),
    "ball_in_cup": _Domain(domains.ball_in_cup, Solver(4, 4), ("catch",)),
    "cartpole": _Domain(
        domains.cartpole, Solver(4, 4), ("balance", "balance_sparse", "swingup", "swingup_sparse")
    ),
    "cheetah": _Domain(domains.cheetah, Solver(4, 4), ("run",)),
    "finger": _Domain(domains.finger, Solver(4, 4), ("spin", "turn_easy", "turn_hard")),
    "fish": _Domain(domains.fish, Solver(1, 1), ("upright", "swim")),
    "hopper": _Domain(domains.hopper, Solver(6, 4), ("stand", "hop")),
    "humanoid": _Domain(domains.humanoid, Solver(8, 4), ("stand", "walk", "run")),
    "manipulator": _Domain(manipulator, Solver(8, 4), ("bring_ball",)),
    "pendulum": _Domain(domains.pendulum, Solver(1, 1), ("swingup",)),
    "point_mass": _Domain(domains.point_mass, Solver(4, 4), ("easy",)),
    "quadruped": _Domain(domains.quadruped, Solver(8, 4), ("walk", "run")),
    "reacher": _Domain(domains.reacher, Solver(1, 1), ("easy", "hard")),
    "swimmer": _Domain(domains.swimmer, Solver(4, 4), ("swimmer6", "swimmer15")),
    "walker": _Domain(domains.walker, Solver(8, 4), ("stand", "walk", "run")),
}
