"""A task on a MuJoCo model: the loop that every suite of such tasks shares. https://github.com/google-deepmind/mujoco

A suite supplies the original library's own model and a ``Task`` of pure functions for one lane; physics is
MJX, MuJoCo's implementation in JAX, at full float32 precision on every device, or MuJoCo's implementation in
Warp.

Differs from MuJoCo in C: float32 in place of float64; the constraint solver stops after a fixed number of
iterations, because float32 never reaches the tolerances that models ask for; if a simulation diverges, C
resets it to its initial state and goes on, but here the episode ends with reward 0 and zeros as observation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import tree
from popjax.core import Env, Key, PyTree, Spec
from popjax.envs import dynamics, warp
from popjax.envs.episodic import episodic, rescale


class Solver(NamedTuple):
    """The constraint solver, with the fewest iterations that do not increase the error of a transition.

    algorithm: ``mujoco.mjtSolver``; ``None`` keeps the model's own.
    """

    iterations: int
    ls_iterations: int
    tolerance: float = 1e-6
    algorithm: int | None = None


class Task(NamedTuple):
    """Parts that a task adds to its physics. ``data`` is an ``mjx.Data``, ``ctrl`` [nu] in the units of the
    model.

    reset:      key -> (qpos [nq], qvel [nv]), or (qpos, qvel, goal) with a goal that is fixed for an episode
    observe:    data -> obs; (data, goal) -> obs if reset draws a goal
    reward:     (before, ctrl, data) -> float, with a goal (before, ctrl, data, goal); ``before`` is what
                ``measure`` returned before the step
    terminated: data -> bool
    measure:    data -> the quantities of a state that the next reward needs; carried between steps
    wrenches:   whether ``cfrc_ext``, the contact forces on bodies, is computed after the substeps
    synced:     whether quantities that follow from positions and velocities are computed again after the
                substeps, as in dm_control; else they are those of the integrator's last stage, as in MuJoCo
    felt:       whether sensors of forces and accelerations are read
    settle:     physics steps without control between the drawn state and the first observation
    """

    reset: Callable[[Key], tuple[Array, ...]]
    observe: Callable[..., Array]
    reward: Callable[..., Array]
    terminated: Callable[[Any], Array] = lambda data: jnp.bool_(False)
    measure: Callable[[Any], PyTree] = lambda data: ()
    wrenches: bool = False
    synced: bool = False
    felt: bool = False
    settle: int = 0


@struct.dataclass
class PhysicsState:
    """The part of ``mjx.Data`` that the next step depends on.

    It takes a few hundred bytes per lane. All of ``mjx.Data`` takes up to a hundred kilobytes, mostly for the
    Jacobian of potential contacts.

    qpos, qvel, act: positions [nq], velocities [nv], actuator activations [na].
    qacc_warmstart:  [nv] where the constraint solver starts.
    measured:        the result of ``Task.measure``.
    goal:            (the goal that ``Task.reset`` drew for the episode,), or () if there is none.
    """

    qpos: Array
    qvel: Array
    act: Array
    qacc_warmstart: Array
    measured: PyTree
    goal: tuple[PyTree, ...] = ()


def simulation(
    name: str,
    model: Any,
    task: Task,
    solver: Solver,
    *,
    frame_skip: int,
    episode_length: int,
    impl: str = "jax",
) -> Env:
    """Make an ``Env`` of a ``mujoco.MjModel``; actions in [-1, 1] are rescaled to its ``ctrlrange``.

    frame_skip:     physics steps in an environment step, all under the same control.
    episode_length: time limit, environment steps.
    impl:           MJX's implementation of the physics, jax or warp.

    Raises:
        ValueError: there is no such implementation, or it is not available here.
    """
    mjx, model = dynamics.mjx(), _plain(model)
    warp.check(name, impl)
    models = _models(model, solver, task)
    physics, blank = mjx.put_model(models.whole, impl="jax"), mjx.make_data(model, impl="jax")
    substeps, forward = {"jax": _in_jax, "warp": _in_warp}[impl](models, task, blank)
    to_ctrl = rescale(*model.actuator_ctrlrange.T)

    def carried(data: Any, goal: tuple[PyTree, ...]) -> PhysicsState:
        measured = task.measure(data)
        return PhysicsState(data.qpos, data.qvel, data.act, data.qacc_warmstart, measured, goal)

    def reset(key: Key) -> tuple[PhysicsState, Array]:
        with dynamics.as_in_c():
            qpos, qvel, *goal = task.reset(key)
            data = blank.replace(qpos=qpos, qvel=qvel)
            if task.settle:
                data = substeps(data, task.settle)
                qpos = data.qpos
            data = forward(data)
            data = data.replace(qpos=qpos)  # MJX has normalized quaternions, which C never does in place
            return carried(data, tuple(goal)), task.observe(data, *goal)

    def step(state: PhysicsState, action: Array) -> tuple[PhysicsState, Array, Array, Array]:
        with dynamics.as_in_c():
            ctrl = to_ctrl(action)
            data = blank.replace(
                qpos=state.qpos,
                qvel=state.qvel,
                act=state.act,
                qacc_warmstart=state.qacc_warmstart,
                ctrl=ctrl,
            )
            data = substeps(data, frame_skip)
            if task.synced:
                data = _synced(physics, data)
            obs = task.observe(data, *state.goal)
            reward = task.reward(state.measured, ctrl, data, *state.goal)
            sound, seen = ended_if_lost(obs, reward, task.terminated(data), data.qpos, data.qvel)
            return tree.where(sound, carried(data, state.goal), state), *seen

    def unmoved(key: Key) -> Array:
        """Return an observation of the right shape without tracing any physics."""
        qpos, qvel, *goal = task.reset(key)
        return task.observe(blank.replace(qpos=qpos, qvel=qvel), *goal)

    spec = Spec(
        name=name,
        obs_shape=jax.eval_shape(unmoved, jax.random.key(0)).shape,
        action_dim=int(model.nu),
        episode_length=int(episode_length),
        dt=float(model.opt.timestep) * frame_skip,
    )
    return episodic(spec, reset, step)._replace(reproducible=impl != "warp")


def ended_if_lost(
    obs: Array, reward: Array, terminated: Array, *physics: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Return whether a simulation is sound, and (obs, reward, terminated): zeros, 0 and True if it is not.

    It is sound if positions and velocities (``physics``), observation and reward are finite and below the
    bound at which MuJoCo gives up a simulation.
    """
    sound = jnp.all(jnp.stack([jnp.all(jnp.abs(x) < 1e10) for x in (obs, reward, *physics)]))
    return sound, (jnp.where(sound, obs, 0.0), jnp.where(sound, reward, 0.0), terminated | ~sound)


def uniform(key: Key, size: int, scale: float) -> Array:
    """Return [size] numbers uniform in [-scale, scale]."""
    return jax.random.uniform(key, (size,), minval=-scale, maxval=scale)


def posed(model: Any) -> Callable[[Array], Any]:
    """Return ``qpos [nq] -> mjx.Data`` with the frames of all bodies and their contacts."""
    mjx, model = dynamics.mjx(), _plain(model)
    physics, blank = mjx.put_model(model, impl="jax"), mjx.make_data(model, impl="jax")

    def pose(qpos: Array) -> Any:
        with dynamics.as_in_c():
            return mjx.collision(physics, mjx.kinematics(physics, blank.replace(qpos=qpos)))

    return pose


def in_view(model: Any) -> Callable[..., tuple[Any, Any]]:
    """Return ``(qpos [nq], fields of the model that differ in this episode) -> (mjx.Model, mjx.Data)``
    with the frames of all bodies and cameras. Nothing collides, so MJX accepts any kinds of geoms."""
    mjx, model = dynamics.mjx(), _plain(model)
    model.geom_contype[:], model.geom_conaffinity[:] = 0, 0
    physics, blank = mjx.put_model(model, impl="jax"), mjx.make_data(model, impl="jax")

    def pose(qpos: Array, changed: Mapping[str, Array]) -> tuple[Any, Any]:
        with dynamics.tracing():
            scene = physics.replace(**changed)
            data = mjx.kinematics(scene, blank.replace(qpos=qpos))
            return scene, mjx.camlight(scene, mjx.com_pos(scene, data))

    return pose


def marked(spec: Any, model: Any, names: tuple[str, ...] = ("tip", "target")) -> Any:
    """Return the model of an ``MjSpec`` for rendering, with a geom "NAME_mark" at each named site.

    Ray tracers do not draw sites. Sizes are those in ``model``, since a task may have changed them.
    """
    for site in spec.sites:
        if site.name in names:
            geom = site.parent.add_geom(name=f"{site.name}_mark", type=site.type, pos=site.pos)
            geom.size, geom.rgba = model.site(site.name).size, model.site(site.name).rgba
            geom.material, geom.mass, geom.contype, geom.conaffinity = site.material, 0, 0, 0
            site.rgba[3] = 0
    return spec.compile()


def touching(data: Any) -> Array:
    """Return whether any two geoms are in contact."""
    contact = data._impl.contact
    return jnp.any(contact.dist < contact.includemargin)


class _Models(NamedTuple):
    """A ``mujoco.MjModel`` in three variants: whole, for substeps, and for an episode's first observation."""

    whole: Any
    blind: Any
    limp: Any


def _models(model: Any, solver: Solver, task: Task) -> _Models:
    """Return the variants of a model, with the task's solver.

    Substeps need only the sensors of forces. dm_control starts an episode with actuators switched off.
    """
    import mujoco

    model = copy.deepcopy(model)
    model.opt.iterations, model.opt.ls_iterations = solver.iterations, solver.ls_iterations
    model.opt.tolerance = solver.tolerance
    if solver.algorithm is not None:
        model.opt.solver = solver.algorithm
    blind, limp = copy.deepcopy(model), copy.deepcopy(model)
    if not task.felt:
        blind.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
    if task.synced:
        limp.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_ACTUATION)
    return _Models(model, blind, limp)


Substeps = Callable[[Any, int], Any]
"""``(mjx.Data, how many physics steps) -> mjx.Data``"""
Forward = Callable[[Any], Any]
"""``mjx.Data -> mjx.Data`` with all that follows from the state"""


def _in_jax(models: _Models, task: Task, blank: Any) -> tuple[Substeps, Forward]:
    mjx = dynamics.mjx()
    blind, limp = mjx.put_model(models.blind, impl="jax"), mjx.put_model(models.limp, impl="jax")

    def substeps(data: Any, count: int) -> Any:
        data = jax.lax.fori_loop(0, count, lambda _, data: mjx.step(blind, data), data)
        return mjx.rne_postconstraint(blind, data) if task.wrenches else data

    return substeps, lambda data: mjx.forward(limp, data)


def _in_warp(models: _Models, task: Task, blank: Any) -> tuple[Substeps, Forward]:
    mjx = dynamics.mjx()
    blind, limp = warp.runner(models.blind, blank, task.wrenches), warp.runner(models.limp, blank)

    def substeps(data: Any, count: int) -> Any:
        def advance(physics: Any, data: Any) -> Any:
            return jax.lax.fori_loop(0, count, lambda _, data: mjx.step(physics, data), data)

        return blind(advance, data)

    return substeps, lambda data: limp(mjx.forward, data)


def _plain(model: Any) -> Any:
    """Return a copy without two features that MJX refuses although they have no effect here.

    These are the energy, which nothing reads, and pairs of geoms that cannot collide because contacts or all
    constraints are switched off.
    """
    import mujoco

    model = copy.deepcopy(model)
    off = mujoco.mjtDisableBit
    model.opt.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_ENERGY)
    if model.opt.disableflags & (int(off.mjDSBL_CONTACT) | int(off.mjDSBL_CONSTRAINT)):
        model.geom_contype[:], model.geom_conaffinity[:] = 0, 0
    return model


def _synced(physics: Any, data: Any) -> Any:
    """Recompute frames, centres of mass, velocities and their sensors from ``qpos`` and ``qvel``."""
    mjx = dynamics.mjx()
    data = mjx.com_pos(physics, mjx.kinematics(physics, data))
    data = mjx.com_vel(physics, mjx.sensor_pos(physics, data))
    return mjx.sensor_vel(physics, data)
