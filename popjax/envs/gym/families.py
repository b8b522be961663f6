"""Resets, observations and rewards of Gymnasium's MuJoCo tasks: ``(model, options, version) -> Task``."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax.core import Key
from popjax.envs.mujoco import Task, uniform


def _perturbed(model: Any, scale: float, gaussian: bool = False) -> Callable[[Key], tuple[Array, Array]]:
    """Return a reset to the initial state, with uniform noise on qpos and uniform or Gaussian on qvel."""

    def reset(key: Key) -> tuple[Array, Array]:
        key_position, key_velocity = jax.random.split(key)
        qpos = jnp.asarray(model.qpos0, jnp.float32) + uniform(key_position, model.nq, scale)
        normal = scale * jax.random.normal(key_velocity, (model.nv,))
        return qpos, normal if gaussian else uniform(key_velocity, model.nv, scale)

    return reset


def _between(low: float, x: Array, high: float) -> Array:
    return (low < x) & (x < high)


def _square(x: Array) -> Array:
    return jnp.sum(x * x)


def runner(
    model: Any,
    o: SimpleNamespace,
    version: int,
    *,
    hidden: int = 1,
    gaussian: bool = False,
    speed_bound: float = np.inf,
    position: Callable[[Any], Array] = lambda data: data.qpos[0],
    healthy: Callable[[Any], Array] | None = None,
    sensed: Callable[[Any], list[Array]] = lambda data: [],
    cost: Callable[[Any], Array | float] | None = None,
) -> Task:
    """Build a task of running forward: Hopper, Walker2d, HalfCheetah, Swimmer, Ant and Humanoid share it.

    hidden:   leading entries of qpos left out of the observation: the body's place in the world
    position: data -> the coordinate whose rate is rewarded, metres
    healthy:  data -> whether the body has not fallen; ``None``: it cannot fall
    sensed:   data -> further observations
    cost:     data -> contact cost; ``None``: no cost, and contact forces are not computed
    """
    hidden = hidden if o.exclude_current_positions_from_observation else 0
    dt = model.opt.timestep * o.frame_skip

    def observe(data: Any) -> Array:
        velocity = jnp.clip(data.qvel, -speed_bound, speed_bound)
        return jnp.concatenate([data.qpos[hidden:], velocity, *sensed(data)])

    def alive(data: Any) -> Array | float:
        if healthy is None:
            return 0.0
        # Version 4 rewards the step that ends the episode, version 5 does not.
        paid = True if version == 4 and o.terminate_when_unhealthy else healthy(data)
        return o.healthy_reward * jnp.float32(paid)

    def reward(before: Array, ctrl: Array, data: Any) -> Array:
        forward = o.forward_reward_weight * (position(data) - before) / dt
        return forward + alive(data) - o.ctrl_cost_weight * _square(ctrl) - (cost(data) if cost else 0.0)

    def terminated(data: Any) -> Array:
        return ~healthy(data) if healthy and o.terminate_when_unhealthy else jnp.bool_(False)

    reset = _perturbed(model, o.reset_noise_scale, gaussian)
    return Task(reset, observe, reward, terminated, position, wrenches=cost is not None)


def hopper(model: Any, o: SimpleNamespace, version: int) -> Task:
    """Build ``HopperEnv``, in which the angle and all coordinates but the first two must stay in bounds."""

    def healthy(data: Any) -> Array:
        rest = jnp.concatenate([data.qpos[2:], data.qvel])
        return jnp.all(_between(o.healthy_state_range[0], rest, o.healthy_state_range[1])) & _upright(o, data)

    return runner(model, o, version, speed_bound=10, healthy=healthy)


def _upright(o: SimpleNamespace, data: Any) -> Array:
    (low, high), (least, most) = o.healthy_z_range, o.healthy_angle_range
    return _between(low, data.qpos[1], high) & _between(least, data.qpos[2], most)


def walker2d(model: Any, o: SimpleNamespace, version: int) -> Task:
    """Build ``Walker2dEnv``; version 5 has the same friction on both feet."""
    return runner(model, o, version, speed_bound=10, healthy=lambda data: _upright(o, data))


def ant(model: Any, o: SimpleNamespace, version: int) -> Task:
    """Build ``AntEnv``; the torso's position is that of the integrator's last stage, as MuJoCo leaves it.

    Version 4 observes contact forces, those on the world included, and charges their cost only with
    ``use_contact_forces``; version 5 always charges it.
    """
    body = _body(f"gym/Ant-v{version}", model, o.main_body if version == 5 else "torso")
    contact = version == 5 or o.use_contact_forces
    seen = o.include_cfrc_ext_in_observation if version == 5 else o.use_contact_forces
    first = 1 if version == 5 else 0

    def forces(data: Any) -> Array:
        return jnp.clip(data._impl.cfrc_ext, *o.contact_force_range)

    def healthy(data: Any) -> Array:
        finite = jnp.all(jnp.isfinite(data.qpos)) & jnp.all(jnp.isfinite(data.qvel))
        return finite & (o.healthy_z_range[0] <= data.qpos[2]) & (data.qpos[2] <= o.healthy_z_range[1])

    return runner(
        model,
        o,
        version,
        hidden=2,
        gaussian=True,
        position=lambda data: data.xpos[body, 0],
        healthy=healthy,
        sensed=lambda data: [forces(data)[first:].ravel()] if seen else [],
        cost=(lambda data: o.contact_cost_weight * _square(forces(data))) if contact else None,
    )


def _body(env: str, model: Any, name: int | str) -> int:
    try:
        return int(model.body(name).id)
    except (KeyError, IndexError):
        known = ", ".join(filter(None, (model.body(i).name for i in range(model.nbody))))
        raise ValueError(f"{env}: option main_body: no body {name!r}; choose from {known}") from None


def _body_senses(o: SimpleNamespace, version: int) -> Callable[[Any], list[Array]]:
    """Return the function that observes a Humanoid's inertia, velocity, actuator and contact forces.

    Version 5 leaves out the values of the world and of the root joint, which are constant, and has an option
    for each kind.
    """
    body, joint = (1, 6) if version == 5 else (0, 0)

    def sensed(data: Any) -> list[Array]:
        kinds = (
            (o.include_cinert_in_observation, data._impl.cinert[body:]),
            (o.include_cvel_in_observation, data.cvel[body:]),
            (o.include_qfrc_actuator_in_observation, data.qfrc_actuator[joint:]),
            (o.include_cfrc_ext_in_observation, data._impl.cfrc_ext[body:]),
        )
        return [values.ravel() for seen, values in kinds if seen]

    return sensed


def humanoid(model: Any, o: SimpleNamespace, version: int) -> Task:
    """Build ``HumanoidEnv``, which rewards the centre of mass. Version 4 has no contact cost."""
    mass = jnp.asarray(model.body_mass / model.body_mass.sum(), jnp.float32)

    def cost(data: Any) -> Array | float:
        impact = o.contact_cost_weight * _square(data._impl.cfrc_ext)
        return jnp.clip(impact, *o.contact_cost_range) if version == 5 else 0.0

    return runner(
        model,
        o,
        version,
        hidden=2,
        position=lambda data: jnp.dot(mass, data.xipos[:, 0]),
        healthy=lambda data: _between(o.healthy_z_range[0], data.qpos[2], o.healthy_z_range[1]),
        sensed=_body_senses(o, version),
        cost=cost,
    )


def humanoid_standup(model: Any, o: SimpleNamespace, version: int) -> Task:
    """Build ``HumanoidStandupEnv``, which rewards height divided by the duration of a physics step.

    Gymnasium ignores its keyword ``uph_cost_weight``, so it is not an option here.
    """
    hidden = 2 if o.exclude_current_positions_from_observation else 0
    sensed = _body_senses(o, version)

    def observe(data: Any) -> Array:
        return jnp.concatenate([data.qpos[hidden:], data.qvel, *sensed(data)])

    def reward(_: Any, ctrl: Array, data: Any) -> Array:
        impact = jnp.clip(o.impact_cost_weight * _square(data._impl.cfrc_ext), *o.impact_cost_range)
        return data.qpos[2] / model.opt.timestep - o.ctrl_cost_weight * _square(ctrl) - impact + 1

    return Task(_perturbed(model, o.reset_noise_scale), observe, reward, wrenches=True)


def inverted_pendulum(model: Any, o: SimpleNamespace, version: int) -> Task:
    """Build ``InvertedPendulumEnv``; every step is rewarded with 1, except the last in version 5."""

    def observe(data: Any) -> Array:
        return jnp.concatenate([data.qpos, data.qvel])

    def terminated(data: Any) -> Array:
        return ~jnp.all(jnp.isfinite(observe(data))) | (jnp.abs(data.qpos[1]) > 0.2)

    def reward(_: Any, ctrl: Array, data: Any) -> Array:
        return jnp.float32(1) if version == 4 else jnp.float32(~terminated(data))

    return Task(_perturbed(model, o.reset_noise_scale), observe, reward, terminated)


def inverted_double_pendulum(model: Any, o: SimpleNamespace, version: int) -> Task:
    """Build ``InvertedDoublePendulumEnv``; the tip's position is that of the integrator's last stage."""
    forces = 1 if version == 5 else model.nv

    def observe(data: Any) -> Array:
        angles, rates = data.qpos[1:], jnp.concatenate([data.qvel, data.qfrc_constraint[:forces]])
        return jnp.concatenate([data.qpos[:1], jnp.sin(angles), jnp.cos(angles), jnp.clip(rates, -10, 10)])

    def terminated(data: Any) -> Array:
        return data.site_xpos[0, 2] <= 1

    def reward(_: Any, ctrl: Array, data: Any) -> Array:
        x, _, y = data.site_xpos[0]
        distance = 0.01 * x**2 + (y - 2) ** 2
        velocity = 0.001 * data.qvel[1] ** 2 + 0.005 * data.qvel[2] ** 2
        paid = jnp.float32(1) if version == 4 else jnp.float32(~terminated(data))
        return o.healthy_reward * paid - distance - velocity

    return Task(_perturbed(model, o.reset_noise_scale, gaussian=True), observe, reward, terminated)


def reacher(model: Any, o: SimpleNamespace, version: int) -> Task:
    """Build ``ReacherEnv``; version 4 rewards the state before the step."""
    fingertip, target = model.body("fingertip").id, model.body("target").id
    axes = 3 if version == 4 else 2

    def reset(key: Key) -> tuple[Array, Array]:
        key_arm, key_radius, key_angle, key_velocity = jax.random.split(key, 4)
        qpos = jnp.asarray(model.qpos0, jnp.float32) + uniform(key_arm, model.nq, 0.1)
        # Gymnasium draws from a square until the goal lies in the disc: uniform over the disc.
        radius = 0.2 * jnp.sqrt(jax.random.uniform(key_radius))
        angle = jax.random.uniform(key_angle, maxval=2 * jnp.pi)
        goal = radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        return qpos.at[-2:].set(goal), uniform(key_velocity, model.nv, 0.005).at[-2:].set(0)

    def offset(data: Any) -> Array:
        return data.xpos[fingertip] - data.xpos[target]

    def observe(data: Any) -> Array:
        arm, rest = data.qpos[:2], (data.qpos[2:], data.qvel[:2], offset(data)[:axes])
        return jnp.concatenate([jnp.cos(arm), jnp.sin(arm), *rest])

    def reward(before: Array, ctrl: Array, data: Any) -> Array:
        distance = jnp.linalg.norm(before if version == 4 else offset(data))
        return -o.reward_dist_weight * distance - o.reward_control_weight * _square(ctrl)

    return Task(reset, observe, reward, measure=offset)


def pusher(model: Any, o: SimpleNamespace, version: int) -> Task:
    """Build ``PusherEnv``, version 5."""
    tip, thing, goal = (model.body(name).id for name in ("tips_arm", "object", "goal"))

    def place(key: Key) -> Array:  # [2] uniform on a rectangle, but more than 0.17 m from the goal at 0
        def draw(loop: tuple[Key, Array]) -> tuple[Key, Array]:
            key, key_place = jax.random.split(loop[0])
            return key, jax.random.uniform(
                key_place, (2,), minval=jnp.array([-0.3, -0.2]), maxval=jnp.array([0, 0.2])
            )

        return jax.lax.while_loop(lambda loop: jnp.linalg.norm(loop[1]) <= 0.17, draw, (key, jnp.zeros(2)))[1]

    def reset(key: Key) -> tuple[Array, Array]:
        key_place, key_velocity = jax.random.split(key)
        qpos = jnp.asarray(model.qpos0, jnp.float32).at[-4:-2].set(place(key_place)).at[-2:].set(0)
        return qpos, uniform(key_velocity, model.nv, 0.005).at[-4:].set(0)

    def observe(data: Any) -> Array:
        return jnp.concatenate([data.qpos[:7], data.qvel[:7], *data.xpos[jnp.array([tip, thing, goal])]])

    def reward(_: Any, ctrl: Array, data: Any) -> Array:
        near = o.reward_near_weight * jnp.linalg.norm(data.xpos[thing] - data.xpos[tip])
        distance = o.reward_dist_weight * jnp.linalg.norm(data.xpos[thing] - data.xpos[goal])
        return -near - distance - o.reward_control_weight * _square(ctrl)

    return Task(reset, observe, reward)
