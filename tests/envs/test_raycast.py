"""Rays against MuJoCo's own in C, and the colours of pictures whose values are known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from popjax.envs import dmc, raycast
from popjax.envs.mujoco import in_view

SIDE = 32
EVERYTHING = """
<mujoco>
  <worldbody>
    <camera pos="0 -3 1" xyaxes="1 0 0 0 .3 1" fovy="60"/>
    <geom type="plane" size="2 1.5 .1"/>
    <geom type="plane" size="0 0 .1" pos="0 0 -1" euler="5 0 0"/>
    <body pos="-1 0 .5"><freejoint/><geom type="sphere" size=".3"/></body>
    <body pos="0 0 .5"><freejoint/><geom type="capsule" size=".2 .4"/></body>
    <body pos="1 0 .5"><freejoint/><geom type="ellipsoid" size=".2 .5 .3"/></body>
    <body pos="-.7 .8 .9"><freejoint/><geom type="cylinder" size=".3 .2"/></body>
    <body pos=".7 .8 .9"><freejoint/><geom type="box" size=".2 .3 .4"/></body>
    <geom type="box" size="3 .1 3" pos="0 -2 0" group="3"/>
    <geom type="box" size="3 .1 3" pos="0 -2.5 0" rgba="1 1 1 0"/>
  </worldbody>
</mujoco>
"""


def poses(model: Any, count: int) -> list[np.ndarray]:
    """The first pose of the model, and others beside it."""
    drawn, found = np.random.default_rng(0), [model.qpos0.copy()]
    for _ in range(count - 1):
        qpos = model.qpos0.copy()
        mujoco.mj_integratePos(model, qpos, drawn.normal(size=model.nv) * 0.5, 1.0)
        found.append(qpos)
    return found


def assert_as_in_c(model: Any, camera: int = 0, changed: Any = None) -> None:
    """Assert that rays hit what ``mj_ray`` hits, and as far away."""
    trace, posed = raycast.tracer(model, SIDE, SIDE, camera), in_view(model)

    @jax.jit
    def cast(qpos: Any) -> Any:
        physics, data = posed(qpos, changed or {})
        return trace(physics, data)

    for name, value in (changed or {}).items():
        getattr(model, name)[:] = value
    # To C a geom is invisible only if its material is, too.
    hidden = (model.geom_rgba[:, 3] == 0) & (model.geom_matid >= 0)
    model.geom_group[hidden] = 5
    data, groups, met = mujoco.MjData(model), np.uint8([1, 1, 1, 0, 0, 0]), np.zeros(1, np.int32)
    for qpos in poses(model, 3):
        rays, hits = jax.device_get(cast(jnp.float32(qpos)))
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        far, geoms = [], []
        for ray in np.stack(rays, -1).astype(np.float64):
            far.append(mujoco.mj_ray(model, data, data.cam_xpos[camera], ray, groups, 1, -1, met))
            geoms.append(met[0])
        alike = np.array(geoms) == hits.geom
        assert alike.mean() >= 0.995
        seen = alike & (hits.geom >= 0)
        assert seen.any()
        np.testing.assert_allclose(hits.distance[seen], np.array(far)[seen], atol=1e-3)


def test_rays_meet_every_kind_of_geom_as_in_c() -> None:
    assert_as_in_c(mujoco.MjModel.from_xml_string(EVERYTHING))


DOMAINS = {
    "acrobot-swingup": None,
    "ball_in_cup-catch": None,
    "cartpole-swingup": None,
    "cheetah-run": None,
    "finger-turn_hard": [0.3, 0.1],
    "fish-swim": [0.1, 0.1, 0.2],
    "hopper-hop": None,
    "humanoid-run": None,
    "manipulator-bring_ball": [0.1, 0.3, 0.5],
    "pendulum-swingup": None,
    "point_mass-easy": None,
    "quadruped-walk": None,
    "reacher-easy": [0.1, -0.1],
    "swimmer-swimmer6": [0.5, 0.5],
    "walker-run": None,
}
"""A task of every domain, and a goal of those that have one."""


@pytest.mark.slow
@pytest.mark.parametrize("task", DOMAINS)
def test_rays_of_every_domain_are_those_of_c(task: str) -> None:
    pytest.importorskip("dm_control")
    model, place, goal = dmc.load(task), dmc.place(task), DOMAINS[task]
    assert_as_in_c(model, 0, place(model, jnp.float32(goal)) if place and goal else None)


def picture(xml: str, side: int = 9) -> np.ndarray:
    moving = '<body><freejoint/><geom type="sphere" size=".1" group="3"/></body></worldbody>'  # MJX wants one
    model = mujoco.MjModel.from_xml_string(f"<mujoco>{xml.replace('</worldbody>', moving)}</mujoco>")
    see, posed = raycast.camera(model, side, side), in_view(model)
    return np.asarray(jax.jit(lambda q: see(*posed(q, {})))(jnp.float32(model.qpos0)))


@pytest.mark.slow
def test_a_picture_does_not_depend_on_other_lanes() -> None:
    """Up to the last bit of a colour, which the order of additions decides."""
    model = mujoco.MjModel.from_xml_string(EVERYTHING)
    see, posed = raycast.camera(model, SIDE, SIDE), in_view(model)
    lanes = jnp.asarray(np.float32(poses(model, 3)))
    draw = lambda qpos: see(*posed(qpos, {}))  # noqa: E731
    together, alone = jax.jit(jax.vmap(draw))(lanes), jax.jit(draw)
    apart = np.abs(np.int32(together) - np.stack([alone(qpos) for qpos in lanes]))
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


HEAD = '<visual><headlight ambient=".1 .2 .3" diffuse=".6 .4 .2"/></visual>'
CAMERA = '<camera pos="0 0 2"/>'  # looks down


def test_light_comes_from_the_camera() -> None:
    """Full where the surface faces it, less where it is turned away; nothing is behind."""
    ball = '<worldbody><geom type="sphere" size=".5" rgba="1 1 .5 1"/>' + CAMERA + "</worldbody>"
    seen = picture(HEAD + ball)
    np.testing.assert_allclose(seen[4, 4], [255 * 0.7, 255 * 0.6, 127 * 0.5], atol=1)
    assert seen[0, 0].tolist() == [0, 0, 0]
    assert (seen[4, 4] > seen[4, 2]).all()
    assert seen[4, 2].any()
    np.testing.assert_allclose(np.float64(seen), seen[::-1, ::-1], atol=1)


def test_lamps_add_to_it_and_white_is_the_most() -> None:
    dark = '<visual><headlight active="0"/></visual>'
    body = '<worldbody><geom type="plane" size="5 5 .1" rgba=".5 1 1 1"/>{}' + CAMERA + "</worldbody>"
    along = '<light directional="true" dir="0 0 -1" diffuse=".5 .6 2" ambient=".35 0 0"/>'
    # Red is 0.85 of 127.5, which is not rounded before it is lit.
    assert picture(dark + body.format(along))[4, 4].tolist() == [108, 153, 255]
    aside = '<light pos="2 0 2" dir="0 0 -1" diffuse="1 .5 0" ambient="0 0 0" {}/>'  # 45 degrees
    cones = {'cutoff="60" exponent="0"': 0.5**0.5, 'cutoff="60" exponent="2"': 0.5**1.5, 'cutoff="30"': 0}
    for cone, share in cones.items():
        at = picture(dark + body.format(aside.format(cone)))[4, 4]
        np.testing.assert_allclose(at, [127 * share, 127 * share, 0], atol=1.5)


def test_a_plane_shows_its_texture_from_above() -> None:
    """Squares of a metre, of which the one with x < 0 < y has the first colour."""
    floor = """
    <asset>
    <texture name="squares" type="2d" builtin="checker" rgb1="1 0 0" rgb2="0 0 1" width="10" height="10"/>
    <material name="floor" texture="squares" texuniform="true" texrepeat="1 1"/></asset>
    <worldbody><geom type="plane" size="{size} .1" material="floor"/><camera pos="0 0 {height}"/></worldbody>
    """
    bright = '<visual><headlight ambient="1 1 1" diffuse="0 0 0"/></visual>'
    for size in ("1 1", "0 0"):
        seen = picture(bright + floor.format(size=size, height=2), side=8)
        model = mujoco.MjModel.from_xml_string(f"<mujoco>{floor.format(size=size, height=2)}</mujoco>")
        first, second = model.tex_data.reshape(10, 10, 3)[[0, 0], [0, 9]]
        found = seen[[2, 2, 5, 5], [2, 5, 2, 5]]
        assert found.tolist() == [x.tolist() for x in (first, second, second, first)]
    assert not picture(bright + floor.format(size="1 1", height=-2), side=8).any()  # from below


@pytest.mark.slow
def test_the_sky_has_six_faces() -> None:
    """A gradient from above to below; a camera that looks up sees its first colour."""
    colours = 'builtin="gradient" rgb1="0 1 0" rgb2="1 0 0"'
    sky = f'<asset><texture type="skybox" {colours} width="8" height="48"/></asset>'
    up = '<worldbody><camera xyaxes="1 0 0 0 -1 0"/><geom type="sphere" size=".1" pos="9 9 9"/></worldbody>'
    down = up.replace("0 -1 0", "0 1 0")
    level = up.replace("0 -1 0", "0 0 1")
    above, below, across = (picture(sky + x) for x in (up, down, level))
    assert (above[..., 1] > above[..., 0]).all()
    assert (below[..., 0] > below[..., 1]).all()
    assert across[0, 4, 1] > across[8, 4, 1]


def test_a_lamp_that_aims_at_a_body_is_refused() -> None:
    body = '<body name="b"><geom size=".1"/></body><light mode="targetbody" target="b"/><camera/>'
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{body}</worldbody></mujoco>")
    with pytest.raises(ValueError, match="a light of this model aims at a body"):
        raycast.camera(model, 8, 8)


def test_a_model_of_other_shapes_is_refused() -> None:
    mesh = """<mujoco><asset><mesh name="m" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/></asset>
    <worldbody><geom type="mesh" mesh="m"/><camera/></worldbody></mujoco>"""
    with pytest.raises(ValueError, match="cannot draw mjGEOM_MESH; draw"):
        raycast.camera(mujoco.MjModel.from_xml_string(mesh), 8, 8)
