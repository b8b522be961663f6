"""A task on a MuJoCo model: the loop that every suite of such tasks shares. https://github.com/google-deepmind/mujoco

A suite brings the original library's own model and a ``Task`` of pure functions for one lane; physics is MJX,
MuJoCo's implementation in JAX, at full float32 precision on every device.

Differs from MuJoCo in C: float32 in place of float64; the constraint solver stops after a fixed number of
iterations, because float32 never reaches the tolerances that models ask for; a simulation that diverges is
not put back to its initial state.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax.core import Env, Key, PyTree, Spec
from popjax.envs.episodic import episodic, rescale


class Solver(NamedTuple):
    """The constraint solver: the fewest iterations that leave the error of a transition where it is.

    algorithm: ``mujoco.mjtSolver``; ``None`` keeps the model's own.
    """

    iterations: int
    ls_iterations: int
    tolerance: float = 1e-6
    algorithm: int | None = None


class Task(NamedTuple):
    """What a task adds to its physics. ``data`` is an ``mjx.Data``, ``ctrl`` [nu] in the units of the model.

    reset:      key -> (qpos [nq], qvel [nv])
    observe:    data -> obs
    reward:     (before, ctrl, data) -> float; ``before`` is what ``measure`` returned before the step
    terminated: data -> bool
    measure:    data -> the few numbers of a state that the next reward compares with; carried between steps
    wrenches:   whether ``cfrc_ext``, the contact forces on bodies, is computed after the substeps
    """

    reset: Callable[[Key], tuple[Array, Array]]
    observe: Callable[[Any], Array]
    reward: Callable[[PyTree, Array, Any], Array]
    terminated: Callable[[Any], Array] = lambda data: jnp.bool_(False)
    measure: Callable[[Any], PyTree] = lambda data: ()
    wrenches: bool = False


@struct.dataclass
class PhysicsState:
    """All of ``mjx.Data`` that the next step depends on: some hundred bytes, where the whole takes up to a
    hundred kilobytes a lane, most of it the Jacobian of contacts that may never happen.

    qpos, qvel, act: positions [nq], velocities [nv], actuator activations [na].
    qacc_warmstart:  [nv] where the constraint solver starts.
    measured:        what ``Task.measure`` saw.
    """

    qpos: Array
    qvel: Array
    act: Array
    qacc_warmstart: Array
    measured: PyTree


def simulation(
    name: str, model: Any, task: Task, solver: Solver, *, frame_skip: int, episode_length: int
) -> Env:
    """An ``Env`` from a ``mujoco.MjModel``; actions in [-1, 1] are rescaled to its ``ctrlrange``.

    frame_skip:     physics steps in an environment step, all under the same control.
    episode_length: time limit, environment steps.
    """
    mjx = _mjx()
    physics = mjx.put_model(_with_solver(model, solver), impl="jax")
    blank = mjx.make_data(model, impl="jax")
    to_ctrl = rescale(*model.actuator_ctrlrange.T)

    def carried(data: Any) -> PhysicsState:
        return PhysicsState(data.qpos, data.qvel, data.act, data.qacc_warmstart, task.measure(data))

    def reset(key: Key) -> tuple[PhysicsState, Array]:
        with _full_precision(), _mended():
            qpos, qvel = task.reset(key)
            data = mjx.forward(physics, blank.replace(qpos=qpos, qvel=qvel))
            data = data.replace(qpos=qpos)  # MJX has normalized quaternions by now, C never does in place
            return carried(data), task.observe(data)

    def step(state: PhysicsState, action: Array) -> tuple[PhysicsState, Array, Array, Array]:
        with _full_precision(), _mended():
            ctrl = to_ctrl(action)
            data = blank.replace(
                qpos=state.qpos,
                qvel=state.qvel,
                act=state.act,
                qacc_warmstart=state.qacc_warmstart,
                ctrl=ctrl,
            )
            data = jax.lax.fori_loop(0, frame_skip, lambda _, data: mjx.step(physics, data), data)
            if task.wrenches:
                data = mjx.rne_postconstraint(physics, data)
            reward = task.reward(state.measured, ctrl, data)
            return carried(data), task.observe(data), reward, task.terminated(data)

    spec = Spec(
        name=name,
        obs_shape=jax.eval_shape(reset, jax.random.key(0))[1].shape,
        action_dim=int(model.nu),
        episode_length=int(episode_length),
        dt=float(model.opt.timestep) * frame_skip,
    )
    return episodic(spec, reset, step)


def uniform(key: Key, size: int, scale: float) -> Array:
    """[size] uniform in [-scale, scale]."""
    return jax.random.uniform(key, (size,), minval=-scale, maxval=scale)


def _full_precision() -> Any:
    return jax.default_matmul_precision("highest")


def _mjx() -> Any:
    """MJX, imported when first used, which takes seconds; it prints that Warp, not used here, is absent."""
    with contextlib.redirect_stdout(io.StringIO()):
        from mujoco import mjx
    return mjx


def _with_solver(model: Any, solver: Solver) -> Any:
    model = copy.deepcopy(model)
    model.opt.iterations, model.opt.ls_iterations = solver.iterations, solver.ls_iterations
    model.opt.tolerance = solver.tolerance
    if solver.algorithm is not None:
        model.opt.solver = solver.algorithm
    return model


@contextlib.contextmanager
def _mended() -> Iterator[None]:
    """While a step is traced, and no longer: MJX with two of its functions replaced by the ones below."""
    from mujoco.mjx._src import collision_driver, scan

    functions, body_tree = collision_driver._COLLISION_FUNC, scan.body_tree
    kind = (collision_driver.GeomType.PLANE, collision_driver.GeomType.CAPSULE)
    plane_capsule = functions[kind]
    functions[kind], scan.body_tree = _plane_capsule(plane_capsule), _level_by_level(body_tree)
    try:
        yield
    finally:
        functions[kind], scan.body_tree = plane_capsule, body_tree


def _level_by_level(body_tree: Any) -> Any:
    """MJX's scan over the bodies, ``body_tree(model, f, ...)``, in which no level is computed twice.

    XLA on CPU merges a level of the kinematic tree into each of its users, which computes it anew for each,
    and so its parents: the work doubles or worse with every body of a chain. A step of Pusher, eleven bodies
    deep, takes a thousand times as long without the barrier.
    """

    def barred(model: Any, f: Any, *args: Any, **options: Any) -> Any:
        return body_tree(model, lambda *xs: jax.lax.optimization_barrier(f(*xs)), *args, **options)

    return barred


def _plane_capsule(original: Any) -> Any:
    """MJX's ``collide(model, data, key, geom [K, 2])`` with its 2K contacts in the frames of MuJoCo in C.

    Friction acts along the edges of a pyramid, so the frame's directions in the plane matter. C takes the
    capsule's axis, projected; MJX takes the world's y axis instead where the capsule stands within 30 degrees
    of the normal. For the legs of an Ant that turns the pyramid, and ``qvel`` is wrong by 0.05 after one
    physics step.
    """

    def collide(model: Any, data: Any, key: Any, geom: Array) -> tuple[Array, Array, Array]:
        dist, pos, _ = original(model, data, key, geom)
        plane, capsule = geom.T
        frame = jax.vmap(_frame)(data.geom_xmat[plane][:, :, 2], data.geom_xmat[capsule][:, :, 2])
        return dist, pos, jnp.repeat(frame, original.ncon, axis=0)

    collide.ncon = original.ncon  # type: ignore[attr-defined]
    return collide


def _frame(normal: Array, axis: Array) -> Array:
    """[3, 3]: the normal, the axis made orthogonal to it, and their cross product."""
    tangent = axis - normal * jnp.dot(normal, axis)
    length = jnp.linalg.norm(tangent)
    upright = length < 1e-6  # no direction is left; the x axis, as in C
    tangent = jnp.where(upright, jnp.eye(3)[0], tangent / jnp.where(upright, 1.0, length))
    return jnp.stack([normal, tangent, jnp.cross(normal, tangent)])
