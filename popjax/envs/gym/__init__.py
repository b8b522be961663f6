"""Gymnasium's MuJoCo tasks on device, from Gymnasium's own model files. https://gymnasium.farama.org

Every formula in ``families`` is that of the class named beside it in ``gymnasium.envs.mujoco``, versions 4
and 5. Constructor keywords, their defaults, the time limit and the number of physics steps are read off the
installed library. Scores that papers report for ``-v2`` are comparable with those of ``-v4``.

Differs from Gymnasium: MJX is not MuJoCo in C (see ``popjax.envs.mujoco``). Actions are in [-1, 1], rescaled
to the model's bounds; control costs are computed from the rescaled action, as in Gymnasium. Humanoid and
HumanoidStandup ask for the PGS solver, which MJX lacks; Newton's solves the same problem. Pusher-v4 is
absent because Gymnasium itself refuses it on MuJoCo 3.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

from popjax import libraries
from popjax.core import Env
from popjax.envs.gym import families
from popjax.envs.mujoco import Solver, Task, simulation
from popjax.envs.options import check, keywords, types

NEWTON = 2  # mujoco.mjtSolver.mjSOL_NEWTON


class _Family(NamedTuple):
    """A task in all its versions.

    task:   (model, options, version) -> Task
    solver: the fewest iterations and line-search iterations that are as exact as 100 and 50
    xml4:   the model file of version 4 if it differs from that of version 5
    """

    task: Callable[[Any, SimpleNamespace, int], Task]
    solver: Solver
    versions: tuple[int, ...] = (4, 5)
    xml4: str | None = None


def tasks() -> Sequence[str]:
    """Return the ids of the tasks, as Gymnasium spells them."""
    return tuple(f"{name}-v{v}" for name, family in FAMILIES.items() for v in family.versions)


def make(task: str, episode_length: int | None = None, **options: Any) -> Env:
    """Return a Gymnasium task on MJX.

    episode_length: time limit, environment steps; by default the one Gymnasium registers.
    options:        ``impl``, jax or warp, MJX's implementation of the physics; keywords of the original's
                    constructor, except those for rendering.

    Raises:
        ValueError: Gymnasium, Warp or the model file is missing, the original's constructor has no such
            keyword, or a value is of the wrong type.
    """
    name, _, version = task.partition("-v")
    family = FAMILIES[name]
    o = _options(task, options if episode_length is None else {"episode_length": episode_length, **options})
    if o.frame_skip < 1:
        raise ValueError(f"gym/{task}: option frame_skip must be at least 1, got {o.frame_skip}")
    model = _load(task, o.xml_file)
    try:
        return simulation(
            f"gym/{task}",
            model,
            family.task(model, o, int(version)),
            family.solver,
            frame_skip=o.frame_skip,
            episode_length=o.episode_length,
            impl=o.impl,
        )
    except (KeyError, IndexError, NotImplementedError, TypeError) as cause:  # a model of another kind of body
        if "xml_file" not in options:
            raise
        said = " ".join(str(cause).split())[:200] or type(cause).__name__
        option = f"option xml_file={o.xml_file!r}"
        raise ValueError(f"gym/{task}: {option} is not a model for it: {said}") from cause


def load(task: str, **options: Any) -> Any:
    """Return a task's ``mujoco.MjModel`` for rendering, with a camera "view" if the original has none."""
    return _load(task, _options(task, options).xml_file, watched=True)


def _options(task: str, options: dict[str, Any]) -> SimpleNamespace:
    """Return the time limit, the implementation and the value of every keyword of any version.

    Version 5's keywords are constants in version 4, with the same values, except Walker2d's model file.
    """
    try:
        import gymnasium

        spec = gymnasium.spec(task)
        own, latest = _keywords(spec), _keywords(gymnasium.spec(f"{task[:-1]}5"))
    except ImportError as absent:
        raise ValueError(f"gym/{task} needs Gymnasium: pip install 'popjax[gym]' ({absent})") from absent
    options = check(f"gym/{task}", options, {"episode_length": int, "impl": str, **types(own)})
    values = {name: keyword.default for name, keyword in {**latest, **own}.items()}
    if task.endswith("4") and (xml := FAMILIES[task[:-3]].xml4):
        values["xml_file"] = xml
    ours = {"episode_length": spec.max_episode_steps, "impl": "jax"}
    return SimpleNamespace(**{**ours, **values, **options})


def _keywords(spec: Any) -> dict[str, inspect.Parameter]:
    """Return the keywords of the original's constructor, without those for rendering and those it ignores."""
    module, _, name = spec.entry_point.partition(":")
    with libraries.physics():
        found = keywords(getattr(importlib.import_module(module), name))
    return {k: keyword for k, keyword in found.items() if "camera" not in k and k != "uph_cost_weight"}


@contextmanager
def _no_advice() -> Iterator[None]:
    """Keep MuJoCo from advising users, also in a log file in their directory, on what a model's authors
    should change.

    HalfCheetah's file sets the total mass in a deprecated way.
    """
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(
        lambda message: None if "deprecated" in message else warnings.warn(message, stacklevel=2)
    )
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _load(task: str, xml: str, watched: bool = False) -> Any:
    import mujoco
    from gymnasium.envs.mujoco.mujoco_env import expand_model_path

    try:
        with _no_advice():
            model = mujoco.MjModel.from_xml_path(path := expand_model_path(xml))
    except (OSError, ValueError) as failure:
        raise ValueError(f"gym/{task}: option xml_file={xml!r}: {failure}") from None
    if watched and not model.ncam:
        spec = mujoco.MjSpec.from_file(path)
        spec.worldbody.add_camera(name="view")
        model = spec.compile()
    return model


# Four iterations are as exact as a hundred where few contacts act at once; two are too few for HalfCheetah.
# In 256 states of random play, six iterations reduce the largest error from 3e-3 to 2e-5 for Walker2d, and
# eight from 2e-1 to 3e-4 for Ant and from 2 to 6e-4 for HumanoidStandup; a hundred reduce it no further.
FAMILIES = {
    "Hopper": _Family(families.hopper, Solver(4, 4)),
    "Walker2d": _Family(families.walker2d, Solver(6, 6), xml4="walker2d.xml"),
    "HalfCheetah": _Family(partial(families.runner, gaussian=True), Solver(4, 4)),
    "Ant": _Family(families.ant, Solver(8, 4)),
    "Humanoid": _Family(families.humanoid, Solver(8, 8, algorithm=NEWTON)),
    "HumanoidStandup": _Family(families.humanoid_standup, Solver(8, 8, algorithm=NEWTON)),
    "Swimmer": _Family(partial(families.runner, hidden=2), Solver(4, 4)),
    "Reacher": _Family(families.reacher, Solver(4, 4)),
    "InvertedPendulum": _Family(families.inverted_pendulum, Solver(4, 4)),
    "InvertedDoublePendulum": _Family(families.inverted_double_pendulum, Solver(4, 4)),
    "Pusher": _Family(families.pusher, Solver(4, 4), versions=(5,)),
}
