"""MJX as popjax traces it, against the library's own step and MuJoCo in C."""

from __future__ import annotations

import contextlib
import copy
from unittest import mock

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx

from popjax.envs import dynamics

# A free ball that lands, with a ball joint, a hinge and an actuator that has an activation.
TUMBLER = """
<mujoco>
  <option integrator="RK4" timestep="0.01"/>
  <worldbody>
    <geom type="plane" size="5 5 1" contype="0"/>
    <body pos="0 0 0.25">
      <freejoint/>
      <geom type="sphere" size="0.2"/>
      <body pos="0.3 0 0">
        <joint type="ball" damping="0.1"/>
        <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.05" contype="0"/>
        <body pos="0.3 0 0">
          <joint name="hinge" axis="0 1 0"/>
          <geom type="capsule" fromto="0 0 0 0.2 0 0" size="0.05" contype="0"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator><general joint="hinge" gainprm="3" dyntype="filter" dynprm="0.1"/></actuator>
</mujoco>
"""
STEPS = 20


@pytest.fixture(scope="module")
def tumbler():
    return mujoco.MjModel.from_xml_string(TUMBLER)


def thrown(model):
    """Return MuJoCo's data of the tumbler in flight, soon to land, with its actuator switched on."""
    data = mujoco.MjData(model)
    data.qvel[:] = np.linspace(-1.0, 1.0, model.nv)
    data.ctrl[:] = 0.8
    return data


def trajectory(model, step):
    """Return ``mjx.Data`` [STEPS, ...] of the tumbler, by ``step`` of MJX."""
    physics, data = mjx.put_model(model, impl="jax"), mjx.put_data(model, thrown(model), impl="jax")

    def follow(data, _):
        data = step(physics, data)
        return data, data

    return jax.jit(lambda data: jax.lax.scan(follow, data, length=STEPS)[1])(data)


@pytest.fixture(scope="module", params=["cpu", pytest.param("gpu", marks=pytest.mark.slow)])
def ours(request, tumbler):
    with mock.patch.object(dynamics, "platform", return_value=request.param), dynamics.tracing():
        return trajectory(tumbler, mjx.step)


def test_stages_in_a_loop_are_the_runge_kutta_method_of_mjx(tumbler, ours):
    """Everything in the data is that of the same stage, not only what the next step depends on."""
    with jax.default_matmul_precision("highest"):
        theirs = trajectory(tumbler, mjx.step)

    def assert_close(path, x, y):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        scale = max(1.0, np.abs(y).max(initial=0.0))
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-3 * scale, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(assert_close, ours, theirs)


def test_stages_in_a_loop_follow_mujoco_in_c(tumbler, ours):
    data = thrown(tumbler)
    landed = []
    for step in range(STEPS):
        mujoco.mj_step(tumbler, data)
        landed.append(data.ncon > 0)
        for name in ("qpos", "qvel", "act", "time", "xpos"):
            said = getattr(ours, name)[step]
            np.testing.assert_allclose(said, getattr(data, name), atol=2e-3, err_msg=f"{name}, step {step}")
    assert any(landed)
    assert not all(landed)


def test_a_step_of_the_runge_kutta_method_holds_the_dynamics_once(tumbler):
    def lines(model):
        physics, data = mjx.put_model(model, impl="jax"), mjx.put_data(model, thrown(model), impl="jax")
        with dynamics.tracing():
            return jax.jit(mjx.step).lower(physics, data).as_text().count("\n")

    simple = copy.deepcopy(tumbler)
    simple.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER
    assert lines(tumbler) < 1.2 * lines(simple)


def test_a_capsule_on_a_plane_has_the_contact_frame_of_mujoco():
    """MJX's own differs for upright ones, which made velocities of Ant wrong by 0.05."""
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><geom type='plane' size='5 5 1'/><body pos='0 0 0.1'><freejoint/>"
        "<geom type='capsule' size='0.1 0.2'/></body></worldbody></mujoco>"
    )
    data, draw = mujoco.MjData(model), np.random.default_rng(0)
    axes, frames = [], []
    for tilt in np.linspace(0.05, np.pi - 0.05, 40):
        turn = draw.normal(size=3) * [1, 1, 0]
        data.qpos[3:] = [np.cos(tilt / 2), *(np.sin(tilt / 2) * turn / np.linalg.norm(turn))]
        mujoco.mj_forward(model, data)
        axes.append(data.geom_xmat[1].reshape(3, 3)[:, 2].copy())
        frames.append(data.contact.frame[0].reshape(3, 3).copy())
    ours = jax.vmap(dynamics._frame, in_axes=(None, 0))(jnp.array([0.0, 0.0, 1.0]), jnp.array(axes))
    np.testing.assert_allclose(ours, frames, atol=1e-5)
    upright = dynamics._frame(jnp.array([0.0, 0.0, 1.0]), jnp.array([0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(upright, [[0, 0, 1], [1, 0, 0], [0, 1, 0]])


def test_what_tracing_replaces_is_the_librarys_again_afterwards():
    from mujoco.mjx._src import collision_driver, math, scan, solver, support

    modules = {"mjx": mjx, "scan": scan, "support": support, "math": math, "collision": collision_driver}
    modules |= {"solver": solver}

    def functions():
        return {f"{name}.{f}": value for name, module in modules.items() for f, value in vars(module).items()}

    def replaced():
        return {name for name, value in functions().items() if value is not before[name]}

    before, collisions = functions(), dict(collision_driver._COLLISION_FUNC)
    everywhere = {"mjx.step", "support.jac", "support.make_m", "math.axis_angle_to_quat"}
    ours = everywhere | {"scan.body_tree"}
    with contextlib.suppress(KeyError), dynamics.as_in_c():
        assert replaced() == ours | {"support.xfrc_accumulate", "collision._COLLISION_FUNC"}
        with dynamics.tracing():
            raise KeyError
    assert not replaced()
    assert collisions == collision_driver._COLLISION_FUNC
    with dynamics.tracing():
        assert replaced() == ours
    with mock.patch.object(dynamics, "platform", return_value="gpu"), dynamics.tracing():
        assert replaced() == everywhere | {"solver._while_loop_scan"}


@pytest.fixture(scope="module")
def posed(tumbler):
    """Model and data of MJX for the tumbler in flight, with everything that follows from its positions."""
    physics, data = mjx.put_model(tumbler, impl="jax"), mjx.put_data(tumbler, thrown(tumbler), impl="jax")
    return physics, jax.jit(mjx.forward)(physics, data)


def test_jacobians_of_a_point_are_those_of_mjx(posed):
    physics, data = posed
    bodies, point = jnp.arange(physics.nbody), jnp.array([0.1, -0.2, 0.3])
    both = [
        jax.jit(lambda body, jac=jac: jax.vmap(lambda one: jac(physics, data, point, one))(body))(bodies)
        for jac in (dynamics._jacobian, mjx.jac)
    ]
    jax.tree.map(np.testing.assert_array_equal, *both)
    assert not np.any(both[0][0][0])  # the world does not move
    assert np.all(np.any(both[0][0][-1], axis=-1))  # the last body moves with every degree of freedom


@pytest.mark.parametrize("diagonal", [False, True])
def test_mass_matrices_are_those_of_mjx(posed, diagonal):
    from mujoco.mjx._src import support

    physics, _ = posed
    a, b = jax.random.normal(jax.random.key(0), (2, physics.nv, 6))
    d = jnp.arange(physics.nv, dtype=jnp.float32) if diagonal else None
    ours = jax.jit(lambda: dynamics._mass_matrix(support.make_m)(physics, a, b, d))()
    np.testing.assert_array_equal(ours, jax.jit(lambda: support.make_m(physics, a, b, d))())


@pytest.mark.parametrize("shape", [(), (1,)])
def test_rotations_are_those_of_mjx(shape):
    from mujoco.mjx._src import math

    axes, angles = (
        jax.random.normal(jax.random.key(0), (100, 3)),
        jnp.linspace(-7, 7, 100).reshape(100, *shape),
    )
    ours, theirs = (jax.jit(jax.vmap(f))(axes, angles) for f in (dynamics._rotation, math.axis_angle_to_quat))
    np.testing.assert_array_equal(ours, theirs)


def test_no_force_is_lost_where_none_is_applied(tumbler, ours):
    """The tumbler has no capsule that touches the plane, whose frames ``as_in_c`` would change."""
    with dynamics.as_in_c():
        in_c = trajectory(tumbler, mjx.step)
    np.testing.assert_allclose(in_c.qpos, ours.qpos, atol=1e-5)
    np.testing.assert_allclose(in_c.qvel, ours.qvel, atol=1e-4)
