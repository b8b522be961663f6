"""Gymnasium's MuJoCo tasks on device, from Gymnasium's own model files. https://gymnasium.farama.org

Every formula below is that of ``gymnasium.envs.mujoco``, versions 4 and 5, the class named at it. Constructor
keywords, their defaults, the time limit and the number of physics steps are read off the installed library.
The scores that papers report for ``-v2`` compare with ``-v4``.

Differs from Gymnasium: MJX is not MuJoCo in C (see ``popjax.envs.mujoco``). Actions are in [-1, 1], rescaled
to the model's bounds; control costs are computed from the rescaled action, as there. Humanoid and
HumanoidStandup ask for the PGS solver, which MJX has not; Newton's solves the same problem. Pusher-v4 is
absent because Gymnasium itself refuses it on MuJoCo 3.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax.core import Env, Key
from popjax.envs.mujoco import Solver, Task, simulation, uniform
from popjax.envs.options import check, keywords, types

NEWTON = 2  # mujoco.mjtSolver.mjSOL_NEWTON


class _Family(NamedTuple):
    """A task in all its versions.

    task:   (model, options, version) -> Task
    solver: the fewest iterations that leave the transition error where 100 / 50 have it
    xml4:   the model file of version 4 where it is another than that of version 5
    """

    task: Callable[[Any, SimpleNamespace, int], Task]
    solver: Solver
    versions: tuple[int, ...] = (4, 5)
    xml4: str | None = None


def tasks() -> Sequence[str]:
    """The ids of the tasks, as Gymnasium spells them."""
    return tuple(f"{name}-v{v}" for name, family in FAMILIES.items() for v in family.versions)


def make(task: str, episode_length: int | None = None, **options: Any) -> Env:
    """A Gymnasium task on MJX.

    episode_length: time limit, environment steps; by default the one Gymnasium registers.
    options:        keywords of the original's constructor, but for rendering.

    Raises:
        ValueError: Gymnasium or the model file is missing, the original's constructor has no such keyword, or
            a value is of the wrong type.
    """
    name, _, version = task.partition("-v")
    family = FAMILIES[name]
    o = _options(task, options if episode_length is None else {"episode_length": episode_length, **options})
    if o.frame_skip < 1:
        raise ValueError(f"gym/{task}: option frame_skip must be at least 1, got {o.frame_skip}")
    model = _load(task, o.xml_file)
    return simulation(
        f"gym/{task}",
        model,
        family.task(model, o, int(version)),
        family.solver,
        frame_skip=o.frame_skip,
        episode_length=o.episode_length,
    )


def load(task: str, **options: Any) -> Any:
    """The ``mujoco.MjModel`` of a task to look at: with a camera, "view", where the original has none."""
    return _load(task, _options(task, options).xml_file, watched=True)


def _options(task: str, options: dict[str, Any]) -> SimpleNamespace:
    """The time limit and the value of every keyword of any version. Version 4 writes as constants what
    version 5 has as keywords, with the same values; the model file of Walker2d is the one exception."""
    try:
        import gymnasium

        spec = gymnasium.spec(task)
        own, latest = _keywords(spec), _keywords(gymnasium.spec(f"{task[:-1]}5"))
    except ImportError as absent:
        raise ValueError(f"gym/{task} needs Gymnasium: pip install 'popjax[gym]' ({absent})") from absent
    check(f"gym/{task}", options, {"episode_length": int, **types(own)})
    values = {name: keyword.default for name, keyword in {**latest, **own}.items()}
    if task.endswith("4") and (xml := FAMILIES[task[:-3]].xml4):
        values["xml_file"] = xml
    return SimpleNamespace(**{"episode_length": spec.max_episode_steps, **values, **options})


def _keywords(spec: Any) -> dict[str, inspect.Parameter]:
    module, _, name = spec.entry_point.partition(":")
    found = keywords(getattr(importlib.import_module(module), name))
    return {name: keyword for name, keyword in found.items() if "camera" not in name}


def _load(task: str, xml: str, watched: bool = False) -> Any:
    import mujoco
    from gymnasium.envs.mujoco.mujoco_env import expand_model_path

    try:
        model = mujoco.MjModel.from_xml_path(path := expand_model_path(xml))
    except (OSError, ValueError) as failure:
        raise ValueError(f"gym/{task}: option xml_file={xml!r}: {failure}") from None
    if watched and not model.ncam:
        spec = mujoco.MjSpec.from_file(path)
        spec.worldbody.add_camera(name="view")
        model = spec.compile()
    return model


def _perturbed(model: Any, scale: float, gaussian: bool = False) -> Callable[[Key], tuple[Array, Array]]:
    """The model's initial state with uniform noise on qpos and uniform or Gaussian noise on qvel."""

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


def _runner(
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
    """Forward as fast as possible: what Hopper, Walker2d, HalfCheetah, Swimmer, Ant and Humanoid share.

    hidden:   leading entries of qpos left out of the observation: where the body is in the world
    position: data -> the coordinate whose rate is rewarded, metres
    healthy:  data -> whether the body has not fallen; ``None``: it cannot fall
    sensed:   data -> further observations
    cost:     data -> contact cost; ``None`` also saves the contact forces
    """
    hidden = hidden if o.exclude_current_positions_from_observation else 0
    dt = model.opt.timestep * o.frame_skip

    def observe(data: Any) -> Array:
        velocity = jnp.clip(data.qvel, -speed_bound, speed_bound)
        return jnp.concatenate([data.qpos[hidden:], velocity, *sensed(data)])

    def alive(data: Any) -> Array | float:
        if healthy is None:
            return 0.0
        # Version 4 pays for the step that ends the episode, version 5 does not.
        paid = True if version == 4 and o.terminate_when_unhealthy else healthy(data)
        return o.healthy_reward * jnp.float32(paid)

    def reward(before: Array, ctrl: Array, data: Any) -> Array:
        forward = o.forward_reward_weight * (position(data) - before) / dt
        return forward + alive(data) - o.ctrl_cost_weight * _square(ctrl) - (cost(data) if cost else 0.0)

    def terminated(data: Any) -> Array:
        return ~healthy(data) if healthy and o.terminate_when_unhealthy else jnp.bool_(False)

    reset = _perturbed(model, o.reset_noise_scale, gaussian)
    return Task(reset, observe, reward, terminated, position, wrenches=cost is not None)


def _hopper(model: Any, o: SimpleNamespace, version: int) -> Task:
    """``HopperEnv``; the angle and every other coordinate but the first two must stay in bounds."""

    def healthy(data: Any) -> Array:
        rest = jnp.concatenate([data.qpos[2:], data.qvel])
        return jnp.all(_between(o.healthy_state_range[0], rest, o.healthy_state_range[1])) & _upright(o, data)

    return _runner(model, o, version, speed_bound=10, healthy=healthy)


def _upright(o: SimpleNamespace, data: Any) -> Array:
    (low, high), (least, most) = o.healthy_z_range, o.healthy_angle_range
    return _between(low, data.qpos[1], high) & _between(least, data.qpos[2], most)


def _walker2d(model: Any, o: SimpleNamespace, version: int) -> Task:
    """``Walker2dEnv``; version 5 has the same friction on both feet."""
    return _runner(model, o, version, speed_bound=10, healthy=lambda data: _upright(o, data))


def _ant(model: Any, o: SimpleNamespace, version: int) -> Task:
    """``AntEnv``; the torso's place is that of the last stage of the integrator, as MuJoCo leaves it.

    Version 4 has contact forces, those on the world included, and their cost only with
    ``use_contact_forces``; version 5 always has the cost.
    """
    body = _body(f"gym/Ant-v{version}", model, o.main_body)
    contact = version == 5 or o.use_contact_forces
    seen = o.include_cfrc_ext_in_observation if version == 5 else o.use_contact_forces
    first = 1 if version == 5 else 0

    def forces(data: Any) -> Array:
        return jnp.clip(data._impl.cfrc_ext, *o.contact_force_range)

    def healthy(data: Any) -> Array:
        finite = jnp.all(jnp.isfinite(data.qpos)) & jnp.all(jnp.isfinite(data.qvel))
        return finite & (o.healthy_z_range[0] <= data.qpos[2]) & (data.qpos[2] <= o.healthy_z_range[1])

    return _runner(
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
        raise ValueError(f"{env}: option main_body: no body {name!r}; there is {known}") from None


def _body_senses(o: SimpleNamespace, version: int) -> Callable[[Any], list[Array]]:
    """Inertia, velocity, actuator and contact forces of a Humanoid: version 5 leaves out the world's and the
    root's, which are constant, and can leave out each kind."""
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


def _humanoid(model: Any, o: SimpleNamespace, version: int) -> Task:
    """``HumanoidEnv``; rewarded is the centre of mass. Version 4 has no contact cost."""
    mass = jnp.asarray(model.body_mass / model.body_mass.sum(), jnp.float32)

    def cost(data: Any) -> Array | float:
        impact = o.contact_cost_weight * _square(data._impl.cfrc_ext)
        return jnp.clip(impact, *o.contact_cost_range) if version == 5 else 0.0

    return _runner(
        model,
        o,
        version,
        hidden=2,
        position=lambda data: jnp.dot(mass, data.xipos[:, 0]),
        healthy=lambda data: _between(o.healthy_z_range[0], data.qpos[2], o.healthy_z_range[1]),
        sensed=_body_senses(o, version),
        cost=cost,
    )


def _humanoid_standup(model: Any, o: SimpleNamespace, version: int) -> Task:
    """``HumanoidStandupEnv``; rewarded is the height over the duration of a physics step, which
    Gymnasium does not weight with its keyword ``uph_cost_weight``."""
    hidden = 2 if o.exclude_current_positions_from_observation else 0
    sensed = _body_senses(o, version)

    def observe(data: Any) -> Array:
        return jnp.concatenate([data.qpos[hidden:], data.qvel, *sensed(data)])

    def reward(_: Any, ctrl: Array, data: Any) -> Array:
        impact = jnp.clip(o.impact_cost_weight * _square(data._impl.cfrc_ext), *o.impact_cost_range)
        return data.qpos[2] / model.opt.timestep - o.ctrl_cost_weight * _square(ctrl) - impact + 1

    return Task(_perturbed(model, o.reset_noise_scale), observe, reward, wrenches=True)


def _inverted_pendulum(model: Any, o: SimpleNamespace, version: int) -> Task:
    """``InvertedPendulumEnv``; 1 for every step, in version 5 but the last."""

    def observe(data: Any) -> Array:
        return jnp.concatenate([data.qpos, data.qvel])

    def terminated(data: Any) -> Array:
        return ~jnp.all(jnp.isfinite(observe(data))) | (jnp.abs(data.qpos[1]) > 0.2)

    def reward(_: Any, ctrl: Array, data: Any) -> Array:
        return jnp.float32(1) if version == 4 else jnp.float32(~terminated(data))

    return Task(_perturbed(model, o.reset_noise_scale), observe, reward, terminated)


def _inverted_double_pendulum(model: Any, o: SimpleNamespace, version: int) -> Task:
    """``InvertedDoublePendulumEnv``; the tip is where the last stage of the integrator saw it."""
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


def _reacher(model: Any, o: SimpleNamespace, version: int) -> Task:
    """``ReacherEnv``; version 4 rewards the state before the step."""
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


def _pusher(model: Any, o: SimpleNamespace, version: int) -> Task:
    """``PusherEnv``, version 5."""
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


# Four iterations are as exact as a hundred where few contacts act at once; two are too few for HalfCheetah.
# In 256 states of random play the largest error falls with six from 3e-3 to 2e-5 for Walker2d, and with
# eight from 2e-1 to 3e-4 for Ant and from 2 to 6e-4 for HumanoidStandup; a hundred change nothing more.
FAMILIES = {
    "Hopper": _Family(_hopper, Solver(4, 4)),
    "Walker2d": _Family(_walker2d, Solver(6, 6), xml4="walker2d.xml"),
    "HalfCheetah": _Family(partial(_runner, gaussian=True), Solver(4, 4)),
    "Ant": _Family(_ant, Solver(8, 4)),
    "Humanoid": _Family(_humanoid, Solver(8, 8, algorithm=NEWTON)),
    "HumanoidStandup": _Family(_humanoid_standup, Solver(8, 8, algorithm=NEWTON)),
    "Swimmer": _Family(partial(_runner, hidden=2), Solver(4, 4)),
    "Reacher": _Family(_reacher, Solver(4, 4)),
    "InvertedPendulum": _Family(_inverted_pendulum, Solver(4, 4)),
    "InvertedDoublePendulum": _Family(_inverted_double_pendulum, Solver(4, 4)),
    "Pusher": _Family(_pusher, Solver(4, 4), versions=(5,)),
}
