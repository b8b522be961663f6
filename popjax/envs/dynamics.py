"""Changes to MJX in effect while it is traced: full precision, small programs, the contact frames of C.

MJX is MuJoCo's implementation in JAX. https://mujoco.readthedocs.io/en/stable/mjx.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax import libraries
from popjax.core import PyTree
from popjax.devices import default_device


def mjx() -> Any:
    """Import MJX, which takes seconds."""
    with libraries.physics():
        from mujoco import mjx as library
    return library


def platform() -> str:
    """Return the kind of device for which physics is traced."""
    return default_device().platform


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Trace MJX in full float32 precision and in few operations, with the stages of RK4 as a loop.

    Only code that looks up ``mjx.step`` inside the context gets the loop. The context is not thread-safe.
    """
    library = mjx()
    from mujoco.mjx._src import math, scan, solver, support

    if platform() == "gpu":  # where the number of kernels matters most
        by_platform = _replaced(solver, _while_loop_scan=_unrolled)
    else:
        by_platform = _replaced(scan, body_tree=_level_by_level(scan.body_tree))
    with (
        jax.default_matmul_precision("highest"),
        _replaced(library, step=_stage_by_stage(library.step)),
        _replaced(support, jac=_jacobian, make_m=_mass_matrix(support.make_m)),
        _replaced(math, axis_angle_to_quat=_rotation),
        by_platform,
    ):
        yield


@contextlib.contextmanager
def as_in_c() -> Iterator[None]:
    """Trace as ``tracing`` does, with the contact frames of MuJoCo in C; applied forces must be zero."""
    from mujoco.mjx._src import collision_driver, support

    functions = collision_driver._COLLISION_FUNC
    kind = (collision_driver.GeomType.PLANE, collision_driver.GeomType.CAPSULE)
    ours = {**functions, kind: _plane_capsule(functions[kind])}
    with (
        tracing(),
        _replaced(collision_driver, _COLLISION_FUNC=ours),
        # MJX multiplies a Jacobian of every body by its applied force even if that is zero; C skips these.
        _replaced(support, xfrc_accumulate=lambda model, data: jnp.zeros(model.nv)),
    ):
        yield


@contextlib.contextmanager
def _replaced(module: Any, **values: Any) -> Iterator[None]:
    """Replace attributes of a module by ``values`` within the context."""
    originals = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(originals)


def _level_by_level(body_tree: Any) -> Any:
    """Return MJX's scan over the bodies, ``body_tree(model, f, ...)``, computing no level twice.

    XLA on CPU merges a level of the kinematic tree into each of its users, so that each recomputes the level
    and its parents: the work doubles or worse with every body of a chain. A step of Pusher, eleven bodies
    deep, takes a thousand times as long without the barrier. Scalars get none: they are the masses of
    subtrees, which XLA then folds into constants. On a GPU barriers are left out, since each adds kernels and
    the compiler itself limits what it computes twice.
    """

    def bar(x: Array) -> Array:
        return jax.lax.optimization_barrier(x) if jnp.ndim(x) else x

    def barred(model: Any, f: Any, *args: Any, **options: Any) -> Any:
        return body_tree(model, lambda *xs: jax.tree.map(bar, f(*xs)), *args, **options)

    return barred


def _unrolled(
    unfinished: Callable[[PyTree], Array], search: Callable[[PyTree], PyTree], found: PyTree, turns: int
) -> PyTree:
    """Return the result of MJX's line search after at most ``turns`` turns, in a loop unrolled by eight.

    It replaces MJX's ``_while_loop_scan``. On a GPU every turn of a loop copies each array that it carries,
    which takes as many kernels as the search itself. On a CPU the loop is faster.
    """

    def turn(carry: tuple[PyTree, Array], _: None) -> tuple[tuple[PyTree, Array], None]:
        found, going = carry
        found = jax.tree.map(partial(jnp.where, going), search(found), found)
        return (found, going & unfinished(found)), None

    start = found, unfinished(found)
    return jax.lax.scan(turn, start, length=turns, unroll=min(turns, 8))[0][0]


def _jacobian(model: Any, data: Any, point: Array, body: Array) -> tuple[Array, Array]:
    """Return how a ``point`` [3] of ``body`` moves and turns with each degree of freedom, both [nv, 3].

    As ``mjx.jac``, which finds the degrees of freedom that move the body by a pass over the kinematic tree;
    here they are a row of a table.
    """
    moves = jnp.asarray(_movers(model))[body][:, None]
    arm = point - data.subtree_com[jnp.asarray(model.body_rootid)[body]]
    turn, shift = data.cdof[:, :3], data.cdof[:, 3:]
    return (shift + jnp.cross(turn, arm)) * moves, turn * moves


def _movers(model: Any) -> np.ndarray:
    """Return whether each body moves with each degree of freedom, [nbody, nv]."""
    within = np.eye(model.nbody, dtype=bool)  # [body, other]: whether other is body or above it
    for body, parent in enumerate(model.body_parentid):
        within[body] |= within[parent]  # parents come before their children
    return within[:, model.dof_bodyid]


def _rotation(axis: Array, angle: Array) -> Array:
    """Return the quaternion [4] of a rotation by ``angle`` [] or [1] about ``axis`` [3].

    As MJX's ``axis_angle_to_quat``, without its scatter.
    """
    return jnp.concatenate([jnp.cos(angle * 0.5).reshape(1), axis * jnp.sin(angle * 0.5)])


def _mass_matrix(make_m: Any) -> Any:
    """Return a replacement for MJX's ``make_m``: a @ b.T + diag(d) [nv, nv] between the dofs of one branch.

    MJX scatters the mask of a dense matrix in every step; here it is a constant.
    """
    from mujoco.mjx._src import support

    def make(model: Any, a: Array, b: Array, d: Array | None = None) -> Array:
        if support.is_sparse(model):
            return make_m(model, a, b, d)
        below = np.zeros((model.nv, model.nv), bool)
        below[np.repeat(np.arange(model.nv), model.M_rownnz), model.M_colind] = True
        product = a @ b.T if d is None else a @ b.T + jnp.diag(d)
        lower = product * below
        return lower + jnp.tril(lower, -1).T

    return make


def _stage_by_stage(step: Any) -> Any:
    """Return ``mjx.step`` with the four stages of the Runge-Kutta method as turns of one loop.

    MJX writes its dynamics into the program four times, once per stage. All have to be compiled, and on a CPU
    a step of one Hopper takes five times as long.
    """
    library = mjx()
    from mujoco.mjx._src import forward, scan
    from mujoco.mjx._src.types import Impl, IntegratorType

    def staged(model: Any, start: Any) -> Any:
        if model.impl != Impl.JAX or model.opt.integrator != IntegratorType.RK4:
            return step(model, start)
        dt = model.opt.timestep
        moved = partial(forward._integrate_pos, dt=dt)

        def stage(carry: tuple[Any, PyTree], row: Array) -> tuple[tuple[Any, PyTree], None]:
            (data, total), (reach, weight) = carry, row
            qvel, qacc, act_dot = (reach * slope for slope in _slopes(data))
            # The loop carries the other fields. Those of ``start`` are equal, but with them a step of Hopper
            # takes four times as long on a CPU.
            data = data.replace(
                qpos=scan.flat(model, moved, "jqv", "q", model.jnt_type, start.qpos, qvel),
                qvel=start.qvel + qacc * dt,
                act=start.act + act_dot * dt,
                time=start.time + reach * dt,
            )
            data = library.forward(model, data)
            return (data, jax.tree.map(lambda x, slope: x + weight * slope, total, _slopes(data))), None

        # The first stage has no slope before it. Take 0, since one in ``start`` could be infinite, and 0
        # times that is NaN.
        zero = jax.tree.map(jnp.zeros_like, _slopes(start))
        first = start.replace(qvel=zero[0], qacc=zero[1], act_dot=zero[2])
        (data, (qvel, qacc, act_dot)), _ = jax.lax.scan(stage, (first, zero), jnp.asarray(_STAGES))
        data = data.replace(qpos=start.qpos, qvel=start.qvel, act=start.act, time=start.time)
        return forward._advance(model, data, act_dot, qacc, qvel)

    return staged


_STAGES = np.array([[0, 1 / 6], [1 / 2, 1 / 3], [1 / 2, 1 / 3], [1, 1 / 6]], np.float32)
"""[stage, 2]: distance of a stage from the start along the slope of the stage before it, in timesteps, and
the weight of its own slope in the sum. The first stage is the start itself."""


def _slopes(data: Any) -> tuple[Array, Array, Array]:
    """Return the rates of change of positions, velocities and activations."""
    return data.qvel, data.qacc, data.act_dot


def _plane_capsule(original: Any) -> Any:
    """Return MJX's ``collide(model, data, key, geom [K, 2])`` with 2K contacts in frames of MuJoCo in C.

    Friction acts along the edges of a pyramid, so the frame's directions in the plane matter. C takes the
    capsule's axis, projected; MJX takes the world's y axis instead if the capsule stands within 30 degrees of
    the normal. For the legs of an Ant that turns the pyramid, and ``qvel`` is wrong by 0.05 after one physics
    step.
    """

    def collide(model: Any, data: Any, key: Any, geom: Array) -> tuple[Array, Array, Array]:
        dist, pos, _ = original(model, data, key, geom)
        plane, capsule = geom.T
        frame = jax.vmap(_frame)(data.geom_xmat[plane][:, :, 2], data.geom_xmat[capsule][:, :, 2])
        return dist, pos, jnp.repeat(frame, original.ncon, axis=0)

    collide.ncon = original.ncon  # type: ignore[attr-defined]
    return collide


def _frame(normal: Array, axis: Array) -> Array:
    """Return the frame [3, 3]: normal, the axis made orthogonal to it, and their cross product."""
    tangent = axis - normal * jnp.dot(normal, axis)
    length = jnp.linalg.norm(tangent)
    upright = length < 1e-6  # no direction is left; the x axis, as in C
    tangent = jnp.where(upright, jnp.eye(3)[0], tangent / jnp.where(upright, 1.0, length))
    return jnp.stack([normal, tangent, jnp.cross(normal, tangent)])
