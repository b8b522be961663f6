"""MJX as popjax traces it, against the library's own step and MuJoCo in C."""

from __future__ import annotations

import contextlib
import copy

import jax
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


@pytest.fixture(scope="module")
def ours(tumbler):
    with dynamics.tracing():
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


def test_tracing_leaves_the_library_as_it_was():
    step, scan = mjx.step, mjx._src.scan.body_tree
    with contextlib.suppress(KeyError), dynamics.tracing():
        assert mjx.step is not step
        raise KeyError
    assert mjx.step is step
    assert mjx._src.scan.body_tree is scan
