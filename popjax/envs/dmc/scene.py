"""What a film of the Control Suite draws: dm_control's model, and the target where an episode has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Place = Callable[[Any, np.ndarray], None]
"""``(mujoco.MjModel, the goal that Task.reset drew)``: writes into the model where the target is."""


def marked(model: Any) -> Any:
    """``model``, that of a ``finger`` task, with geoms for tip and target: these are sites, which ray tracers
    do not draw. As it has to be compiled anew, what the task's reset has changed is taken over."""
    import mujoco
    from dm_control.suite import finger

    xml, parts = finger.get_model_and_assets()
    spec = mujoco.MjSpec.from_string(xml.decode(), include=parts)
    for site in spec.sites:
        if site.name in ("tip", "target"):
            geom = site.parent.add_geom(name=f"{site.name}_mark", type=site.type, pos=site.pos)
            geom.size, geom.rgba = model.site(site.name).size, model.site(site.name).rgba
            geom.material, geom.mass, geom.contype, geom.conaffinity = site.material, 0, 0, 0
            site.rgba[3] = 0
    return spec.compile()


def _finger(model: Any, goal: np.ndarray) -> None:
    model.geom("target_mark").pos[[0, 2]] = goal


def _manipulator(model: Any, goal: np.ndarray) -> None:
    target = model.body("target_ball")
    target.pos[[0, 2]] = goal[:2]
    target.quat[[0, 2]] = np.cos(goal[2] / 2), np.sin(goal[2] / 2)


def _swimmer(model: Any, goal: np.ndarray) -> None:
    _geom(model, goal)
    model.light("target_light").pos[:2] = goal[:2]


def _geom(model: Any, goal: np.ndarray) -> None:
    model.geom("target").pos[: len(goal)] = goal


PLACES: dict[str, Place] = {
    "finger": _finger,
    "fish": _geom,
    "manipulator": _manipulator,
    "reacher": _geom,
    "swimmer": _swimmer,
}
"""The domains with tasks whose target is drawn at the reset."""
