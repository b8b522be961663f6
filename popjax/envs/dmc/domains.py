"""The domains of the DeepMind Control Suite: for each model its reset, observation and rewards.

Every domain is a function ``(model: mujoco.MjModel, task: str) -> Task`` that follows the module of the same
name in ``dm_control.suite``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax.core import Key
from popjax.envs.dmc.parts import (
    HINGE,
    INFINITE,
    addresses,
    at_least,
    long_tail,
    pose,
    sensors,
    small_control,
    state,
    still,
    tolerance,
    untouched,
)
from popjax.envs.mujoco import Task, posed, touching


def acrobot(model: Any, task: str) -> Task:
    """Build acrobot, two links with torque at the elbow: bring the tip to a target above the shoulder."""
    arms = np.array([model.body("upper_arm").id, model.body("lower_arm").id])
    target, tip = model.site("target").id, model.site("tip").id
    radius, margin = model.site_size[target, 0], 0.0 if task.endswith("sparse") else 1.0

    def observe(data: Any) -> Array:
        frames = data.xmat[arms]
        return jnp.concatenate([frames[:, 0, 2], frames[:, 2, 2], data.qvel])

    def reward(_: Any, ctrl: Array, data: Any) -> Array:
        distance = jnp.linalg.norm(data.site_xpos[target] - data.site_xpos[tip])
        return tolerance(distance, 0, radius, margin)

    return Task(still(model, pose(model)), observe, reward)


def ball_in_cup(model: Any, task: str) -> Task:
    """Build ball in cup: catch a ball on a string in a moving cup."""
    target, ball = model.site("target").id, model.body("ball").id
    room = jnp.float32(model.site_size[target, [0, 2]] - model.geom("ball").size[0])
    joints = addresses(model, "ball_x", "ball_z")

    def draw(key: Key) -> Array:
        place = jax.random.uniform(key, (2,), minval=jnp.array([-0.2, 0.2]), maxval=jnp.array([0.2, 0.5]))
        return jnp.float32(model.qpos0).at[joints].set(place)

    def reward(_: Any, ctrl: Array, data: Any) -> Array:
        offset = data.site_xpos[target] - data.xpos[ball]
        return jnp.float32(jnp.all(jnp.abs(offset[np.array([0, 2])]) < room))

    return Task(still(model, untouched(model, draw)), state, reward)


def cartpole(model: Any, task: str) -> Task:
    """Build cartpole: balance a pole on a cart, or swing it up first."""

    def reset(key: Key) -> tuple[Array, Array]:
        key_cart, key_pole, key_velocity = jax.random.split(key, 3)
        if task.startswith("swingup"):
            cart, pole = (0.01 * jax.random.normal(k, (1,)) for k in (key_cart, key_pole))
            pole = pole + jnp.pi
        else:
            cart = jax.random.uniform(key_cart, (1,), minval=-0.1, maxval=0.1)
            pole = jax.random.uniform(key_pole, (1,), minval=-0.034, maxval=0.034)
        return jnp.concatenate([cart, pole]), 0.01 * jax.random.normal(key_velocity, (model.nv,))

    def observe(data: Any) -> Array:
        pole = data.xmat[2]
        return jnp.concatenate([data.qpos[:1], jnp.stack([pole[2, 2], pole[0, 2]]), data.qvel])

    def sparse(_: Any, ctrl: Array, data: Any) -> Array:
        # A cosine may exceed 1 by rounding, so that it has no upper bound here.
        return tolerance(data.qpos[0], -0.25, 0.25) * tolerance(data.xmat[2, 2, 2], 0.995, INFINITE)

    def smooth(_: Any, ctrl: Array, data: Any) -> Array:
        upright = (data.xmat[2, 2, 2] + 1) / 2
        centered = (1 + tolerance(data.qpos[0], margin=2)) / 2
        slow = (1 + tolerance(data.qvel[1], margin=5)) / 2
        return upright * small_control(ctrl) * slow * centered

    return Task(reset, observe, sparse if task.endswith("sparse") else smooth)


def cheetah(model: Any, task: str) -> Task:
    """Build cheetah: run at 10 m/s, in a plane."""
    velocity = sensors(model, "torso_subtreelinvel")

    def draw(key: Key) -> Array:
        limited = np.asarray(model.jnt_limited, bool)  # every joint has one coordinate
        return jnp.where(limited, pose(model)(key), jnp.float32(model.qpos0))

    def reward(_: Any, ctrl: Array, data: Any) -> Array:
        return at_least(velocity(data)[0], 10, margin=10)

    def observe(data: Any) -> Array:
        return state(data)[1:]

    return Task(still(model, draw), observe, reward, settle=200)


def finger(model: Any, task: str) -> Task:
    """Build finger, two links beside a hinged body: spin the body, or turn its tip to a target."""
    posture = sensors(model, "proximal", "distal")
    velocity = sensors(model, "proximal_velocity", "distal_velocity", "hinge_velocity")
    touch = sensors(model, "touchtop", "touchbottom")
    tip, spinner = sensors(model, "tip"), sensors(model, "spinner")
    draw, flat = untouched(model, pose(model)), np.array([0, 2])

    def sensed(data: Any) -> list[Array]:
        place = (tip(data) - spinner(data))[flat]
        return [posture(data), place, velocity(data), jnp.log1p(touch(data))]

    if task == "spin":

        def spinning(_: Any, ctrl: Array, data: Any) -> Array:
            return jnp.float32(velocity(data)[2] <= -15)

        return Task(still(model, draw), lambda data: jnp.concatenate(sensed(data)), spinning, felt=True)

    radius = model.site("target").size[0]
    hinge = np.asarray(model.body(model.joint("hinge").bodyid[0]).pos + model.joint("hinge").pos)[flat]
    reach = model.geom("cap1").size.sum()

    def reset(key: Key) -> tuple[Array, Array, Array]:
        key_pose, key_target = jax.random.split(key)
        angle = jax.random.uniform(key_target, minval=-jnp.pi, maxval=jnp.pi)
        goal = hinge + reach * jnp.stack([jnp.sin(angle), jnp.cos(angle)])
        return draw(key_pose), jnp.zeros(model.nv), goal

    def distance(data: Any, goal: Array) -> Array:
        return jnp.linalg.norm(goal - tip(data)[flat]) - radius

    def observe(data: Any, goal: Array) -> Array:
        target = goal - spinner(data)[flat]
        return jnp.concatenate([*sensed(data), target, distance(data, goal)[None]])

    def reward(_: Any, ctrl: Array, data: Any, goal: Array) -> Array:
        return jnp.float32(distance(data, goal) <= 0)

    return Task(reset, observe, reward, felt=True)


def fish(model: Any, task: str) -> Task:
    """Build fish: stay upright, or swim until the mouth meets a target."""
    fins = ("finright_roll", "finright_pitch", "finleft_roll", "finleft_pitch")
    joints = addresses(model, "tail1", "tail_twist", "tail2", *fins)
    torso, mouth = model.body("torso").id, model.geom("mouth").id
    radii = model.geom("mouth").size[0] + model.geom("target").size[0]
    low, high = jnp.array([-0.4, -0.4, 0.1]), jnp.array([0.4, 0.4, 0.3])

    def reset(key: Key) -> tuple[Array, ...]:
        key_turn, key_joints, key_target = jax.random.split(key, 3)
        turn = jax.random.normal(key_turn, (4,))
        angles = jax.random.uniform(key_joints, joints.shape, minval=-0.2, maxval=0.2)
        qpos = jnp.float32(model.qpos0).at[joints].set(angles).at[3:7].set(turn / jnp.linalg.norm(turn))
        goal = jax.random.uniform(key_target, (3,), minval=low, maxval=high)
        return (qpos, jnp.zeros(model.nv), goal) if task == "swim" else (qpos, jnp.zeros(model.nv))

    def to_target(data: Any, goal: Array) -> Array:
        return (goal - data.geom_xpos[mouth]) @ data.geom_xmat[mouth]

    def observe(data: Any, *goal: Array) -> Array:
        target = [to_target(data, *goal)] if goal else []
        return jnp.concatenate([data.qpos[joints], data.xmat[torso, 2, 2:], *target, data.qvel])

    def reward(_: Any, ctrl: Array, data: Any, *goal: Array) -> Array:
        upright = data.xmat[torso, 2, 2]
        if not goal:
            return tolerance(upright, 1, 1, margin=1)
        in_target = tolerance(jnp.linalg.norm(to_target(data, *goal)), 0, radii, 2 * radii)
        return (7 * in_target + (upright + 1) / 2) / 8

    return Task(reset, observe, reward)


def hopper(model: Any, task: str) -> Task:
    """Build hopper, planar with one leg: stand, or hop at 2 m/s."""
    velocity, touch = sensors(model, "torso_subtreelinvel"), sensors(model, "touch_toe", "touch_heel")
    torso, foot = model.body("torso").id, model.body("foot").id

    def observe(data: Any) -> Array:
        return jnp.concatenate([state(data)[1:], jnp.log1p(touch(data))])

    def reward(_: Any, ctrl: Array, data: Any) -> Array:
        standing = tolerance(data.xipos[torso, 2] - data.xipos[foot, 2], 0.6, 2)
        if task == "stand":
            return standing * small_control(ctrl)
        return standing * at_least(velocity(data)[0], 2, margin=1, at_margin=0.5)

    return Task(still(model, pose(model)), observe, reward, felt=True)


def humanoid(model: Any, task: str) -> Task:
    """Build humanoid, with 21 joints: stand, walk at 1 m/s or run at 10 m/s."""
    velocity = sensors(model, "torso_subtreelinvel")
    torso, head = model.body("torso").id, model.body("head").id
    limbs = np.array(
        [model.body(f"{side}_{limb}").id for side in ("left", "right") for limb in ("hand", "foot")]
    )
    speed = {"stand": 0, "walk": 1, "run": 10}[task]

    def observe(data: Any) -> Array:
        frame = data.xmat[torso]
        extremities = (data.xpos[limbs] - data.xpos[torso]) @ frame
        height = data.xpos[head, 2:]
        return jnp.concatenate(
            [data.qpos[7:], height, extremities.ravel(), frame[2], velocity(data), data.qvel]
        )

    def reward(_: Any, ctrl: Array, data: Any) -> Array:
        standing = tolerance(data.xpos[head, 2], 1.4, INFINITE, margin=1.4 / 4)
        upright = at_least(data.xmat[torso, 2, 2], 0.9, margin=1.9)
        along = velocity(data)[:2]
        if speed == 0:
            move = tolerance(along, margin=2).mean()
        else:
            move = (5 * at_least(jnp.linalg.norm(along), speed, margin=speed) + 1) / 6
        return small_control(ctrl) * standing * upright * move

    return Task(still(model, untouched(model, pose(model))), observe, reward)


def pendulum(model: Any, task: str) -> Task:
    """Build pendulum: swing up a pole too heavy for its motor."""
    pole, least = model.body("pole").id, np.cos(np.deg2rad(8))

    def observe(data: Any) -> Array:
        return jnp.concatenate([data.xmat[pole, 2, 2:], data.xmat[pole, 0, 2:], data.qvel])

    def reward(_: Any, ctrl: Array, data: Any) -> Array:
        return tolerance(data.xmat[pole, 2, 2], least, INFINITE)  # a cosine may exceed 1 by rounding

    return Task(still(model, pose(model)), observe, reward)


def point_mass(model: Any, task: str) -> Task:
    """Build point mass: drive a mass in the plane to the centre with two motors."""
    target, mass = model.geom("target").id, model.geom("pointmass").id
    size = model.geom_size[target, 0]

    def reward(_: Any, ctrl: Array, data: Any) -> Array:
        distance = jnp.linalg.norm(data.geom_xpos[target] - data.geom_xpos[mass])
        return tolerance(distance, 0, size, margin=size) * small_control(ctrl)

    return Task(still(model, pose(model)), state, reward)


def quadruped(model: Any, task: str) -> Task:
    """Build quadruped, with 12 filtered actuators: move forward at 0.5 or 5 m/s."""
    velocimeter, imu = sensors(model, "velocimeter"), sensors(model, "imu_accel", "imu_gyro")
    ends = [model.sensor(i).name for i in range(model.nsensor)]
    forces = sensors(model, *(name for name in ends if name.startswith(("force_", "torque_"))))
    torso, hinges = model.body("torso").id, model.jnt_type == HINGE
    angles, rates = model.jnt_qposadr[hinges], model.jnt_dofadr[hinges]
    speed, view = {"walk": 0.5, "run": 5}[task], posed(model)

    def reset(key: Key) -> tuple[Array, Array]:
        turn = jax.random.normal(key, (4,))
        root = jnp.zeros(7).at[3:].set(turn / jnp.linalg.norm(turn))
        qpos = jnp.float32(model.qpos0).at[:7].set(root)
        # Move up in steps of a centimetre until nothing touches the floor; count steps so that rounding does
        # not add up.
        height = jax.lax.while_loop(
            lambda n: touching(view(qpos.at[2].set(0.01 * n))), lambda n: n + 1, jnp.float32(0)
        )
        return qpos.at[2].set(0.01 * height), jnp.zeros(model.nv)

    def observe(data: Any) -> Array:
        own = [data.qpos[angles], data.qvel[rates], data.act, velocimeter(data), data.xmat[torso, 2, 2:]]
        return jnp.concatenate([*own, imu(data), jnp.arcsinh(forces(data))])

    def reward(_: Any, ctrl: Array, data: Any) -> Array:
        upright = at_least(data.xmat[torso, 2, 2], 1, margin=2)
        return upright * at_least(velocimeter(data)[0], speed, margin=speed, at_margin=0.5)

    return Task(reset, observe, reward, felt=True)


def reacher(model: Any, task: str) -> Task:
    """Build reacher, two links in the plane: bring the finger to a target of radius 0.05 or 0.015 m."""
    finger, radii = model.geom("finger").id, model.geom("target").size[0] + model.geom("finger").size[0]

    def reset(key: Key) -> tuple[Array, Array, Array]:
        key_pose, key_angle, key_radius = jax.random.split(key, 3)
        angle = jax.random.uniform(key_angle, maxval=2 * jnp.pi)
        radius = jax.random.uniform(key_radius, minval=0.05, maxval=0.20)
        goal = radius * jnp.stack([jnp.sin(angle), jnp.cos(angle)])
        return pose(model)(key_pose), jnp.zeros(model.nv), goal

    def to_target(data: Any, goal: Array) -> Array:
        return goal - data.geom_xpos[finger, :2]

    def observe(data: Any, goal: Array) -> Array:
        return jnp.concatenate([data.qpos, to_target(data, goal), data.qvel])

    def reward(_: Any, ctrl: Array, data: Any, goal: Array) -> Array:
        return tolerance(jnp.linalg.norm(to_target(data, goal)), 0, radii)

    return Task(reset, observe, reward)


def swimmer(model: Any, task: str) -> Task:
    """Build swimmer, a chain of 6 or 15 links in a viscous plane: bring the nose to a target."""
    nose, head = model.geom("nose").id, model.body("head").id
    size, height = model.geom("target").size[0], model.geom("target").pos[2]

    def reset(key: Key) -> tuple[Array, Array, Array]:
        key_pose, key_close, key_target = jax.random.split(key, 3)
        box = jnp.where(jax.random.bernoulli(key_close, 0.2), 0.3, 2.0)
        target = box * jax.random.uniform(key_target, (2,), minval=-1)
        return pose(model)(key_pose), jnp.zeros(model.nv), jnp.append(target, height)

    def to_target(data: Any, goal: Array) -> Array:
        return ((goal - data.geom_xpos[nose]) @ data.xmat[head])[:2]

    def observe(data: Any, goal: Array) -> Array:
        bodies = data.sensordata[12:].reshape(-1, 6)[:, np.array([0, 1, 5])]
        return jnp.concatenate([data.qpos[3:], to_target(data, goal), bodies.ravel()])

    def reward(_: Any, ctrl: Array, data: Any, goal: Array) -> Array:
        return tolerance(jnp.linalg.norm(to_target(data, goal)), 0, size, 5 * size, long_tail)

    return Task(reset, observe, reward)


def walker(model: Any, task: str) -> Task:
    """Build walker, a planar biped: stand, walk at 1 m/s or run at 8 m/s."""
    velocity, torso = sensors(model, "torso_subtreelinvel"), model.body("torso").id
    speed = {"stand": 0, "walk": 1, "run": 8}[task]

    def observe(data: Any) -> Array:
        frames = data.xmat[1:, 0][:, np.array([0, 2])]
        return jnp.concatenate([frames.ravel(), data.xpos[torso, 2:], data.qvel])

    def reward(_: Any, ctrl: Array, data: Any) -> Array:
        standing = tolerance(data.xpos[torso, 2], 1.2, INFINITE, margin=0.6)
        stand = (3 * standing + (1 + data.xmat[torso, 2, 2]) / 2) / 4
        if speed == 0:
            return stand
        move = at_least(velocity(data)[0], speed, margin=speed / 2, at_margin=0.5)
        return stand * (5 * move + 1) / 6

    return Task(still(model, pose(model)), observe, reward)
