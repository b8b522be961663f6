"""The planar manipulator of the DeepMind Control Suite, ``dm_control.suite.manipulator``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax.core import Key
from popjax.envs.dmc.parts import addresses, pose, sensors, tolerance
from popjax.envs.mujoco import Task, posed, touching


def manipulator(model: Any, task: str) -> Task:
    """Build manipulator, a planar arm with a hand: bring a ball to a target."""
    names = ("arm_root", "arm_shoulder", "arm_elbow", "arm_wrist", "finger", "fingertip", "thumb", "thumbtip")
    arm, ball = addresses(model, *names), addresses(model, "ball_x", "ball_z", "ball_y")
    hand, thing, grip = model.body("hand").id, model.body("ball").id, model.site("grasp").id
    depth = model.body("target_ball").pos[1]
    touch = sensors(
        model, *(f"{part}_touch" for part in ("palm", "finger", "thumb", "fingertip", "thumbtip"))
    )
    view, draw = posed(model), pose(model)

    def again(loop: tuple[Key, Array, Array, Array]) -> tuple[Key, Array, Array, Array]:
        key, key_arm, key_target, key_kind, key_ball, key_speed = jax.random.split(loop[0], 6)
        finger, thumb = addresses(model, "finger", "thumb")
        qpos = draw(key_arm)
        qpos = qpos.at[finger].set(qpos[thumb])
        low, high = jnp.array([-0.4, 0.1, -jnp.pi]), jnp.array([0.4, 0.4, jnp.pi])
        target = jax.random.uniform(key_target, (3,), minval=low, maxval=high)
        data = view(qpos)
        place, frame = data.site_xpos[grip], data.site_xmat[grip]
        held = jnp.stack([place[0], place[2], jnp.pi - jnp.arctan2(frame[2, 0], frame[0, 0])])
        low, high = jnp.array([-0.5, 0, 0]), jnp.array([0.5, 0.7, 2 * jnp.pi])
        loose = jax.random.uniform(key_ball, (3,), minval=low, maxval=high)
        kind = jax.random.choice(key_kind, 3, p=jnp.array([0.1, 0.1, 0.8]))
        speed = jax.random.uniform(key_speed, minval=-5, maxval=5)
        # The speed of a failed attempt stays, as in dm_control.
        qvel = jnp.where(kind == 2, loop[2].at[ball[0]].set(speed), loop[2])
        return key, qpos.at[ball].set(jnp.stack([held, target, loose])[kind]), qvel, target

    def reset(key: Key) -> tuple[Array, Array, Array]:
        first = again((key, jnp.zeros(model.nq), jnp.zeros(model.nv), jnp.zeros(3)))
        return jax.lax.while_loop(lambda loop: touching(view(loop[1])), again, first)[1:]

    def planar(data: Any, body: int) -> list[Array]:
        return [data.xpos[body][np.array([0, 2])], data.xquat[body][np.array([0, 2])]]

    def observe(data: Any, goal: Array) -> Array:
        angles = data.qpos[arm]
        own = [
            jnp.stack([jnp.sin(angles), jnp.cos(angles)], 1).ravel(),
            data.qvel[arm],
            jnp.log1p(touch(data)),
        ]
        turn = jnp.stack([jnp.cos(goal[2] / 2), jnp.sin(goal[2] / 2)])
        return jnp.concatenate(
            [*own, *planar(data, hand), *planar(data, thing), data.qvel[ball], goal[:2], turn]
        )

    def reward(_: Any, ctrl: Array, data: Any, goal: Array) -> Array:
        target = jnp.stack([goal[0], depth, goal[1]])
        return tolerance(jnp.linalg.norm(target - data.xpos[thing]), 0, 0.01, 0.02)

    return Task(reset, observe, reward, felt=True)
