"""The scene of pictures and films of the Control Suite: dm_control's model with the episode's target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from popjax.envs.mujoco import marked

Place = Callable[[Any, Any], dict[str, Array]]
"""``(mujoco.MjModel, the goal that Task.reset drew) -> fields of the model, by name, that put the target at
the goal``."""


def finger(model: Any) -> Any:
    """Return the ``model`` of a ``finger`` task with geoms in place of the sites of tip and target."""
    import mujoco
    from dm_control.suite import finger

    xml, parts = finger.get_model_and_assets()
    return marked(mujoco.MjSpec.from_string(xml.decode(), include=parts), model)


def _finger(model: Any, goal: Any) -> dict[str, Array]:
    return {"geom_pos": _moved(model.geom_pos, model.geom("target_mark").id, goal, 0, 2)}


def _manipulator(model: Any, goal: Any) -> dict[str, Array]:
    target, half = model.body("target_ball").id, goal[2] / 2
    turn = jnp.stack([jnp.cos(half), jnp.sin(half)])
    return {
        "body_pos": _moved(model.body_pos, target, goal[:2], 0, 2),
        "body_quat": _moved(model.body_quat, target, turn, 0, 2),
    }


def _swimmer(model: Any, goal: Any) -> dict[str, Array]:
    light = _moved(model.light_pos, model.light("target_light").id, goal[:2], 0, 1)
    return {**_geom(model, goal), "light_pos": light}


def _geom(model: Any, goal: Any) -> dict[str, Array]:
    return {"geom_pos": _moved(model.geom_pos, model.geom("target").id, goal, *range(len(goal)))}


def _moved(places: Any, row: int, to: Any, *axes: int) -> Array:
    """Return ``places`` with these axes of one row set to ``to``."""
    return jnp.asarray(places, jnp.float32).at[row, jnp.array(axes)].set(to)


PLACES: dict[str, Place] = {
    "finger": _finger,
    "fish": _geom,
    "manipulator": _manipulator,
    "reacher": _geom,
    "swimmer": _swimmer,
}
"""The functions that place the target, for domains whose tasks draw one at the reset."""
