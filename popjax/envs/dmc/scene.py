"""Scene that a film of the Control Suite draws: dm_control's model, and the target where an episode has
it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from popjax.envs.mujoco import marked

Place = Callable[[Any, np.ndarray], None]
"""``(mujoco.MjModel, the goal that Task.reset drew)``: writes into the model where the target is."""


def finger(model: Any) -> Any:
    """``model``, that of a ``finger`` task, with tip and target, which are sites, as geoms."""
    import mujoco
    from dm_control.suite import finger

    xml, parts = finger.get_model_and_assets()
    return marked(mujoco.MjSpec.from_string(xml.decode(), include=parts), model)


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
