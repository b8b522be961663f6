"""Films of an episode of a policy: played on the device, recorded as poses, drawn on the host.

MuJoCo models are drawn by MJX's ray tracer on Warp, which needs neither display nor OpenGL and runs on any
processor, or else by MuJoCo's own renderer. Tasks from pixels are drawn like their observations, tasks of
gymnax by ``gymnax_pictures``, Atari games by the emulator.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from popjax import libraries, numerics, rollout
from popjax.core import Env, Key, Method, PyTree, Timestep
from popjax.host.deploy import gymnax_pictures
from popjax.host.deploy.film_files import Draw, Write, writer
from popjax.host.errors import Refused
from popjax.host.scaling import sweep
from popjax.host.terminal import complain

with libraries.physics():
    import mujoco

WIDTH, HEIGHT = 640, 480  # multiples of 16, as H.264 needs
FASTEST = {".mp4": 50, ".gif": 25, ".html": 50}
"""Maximum frames per second by type of file; a GIF counts time in hundredths of a second."""
TIMELESS = 0.1  # seconds per step in films of tasks without a time step
SKY = (0.8, 0.85, 0.9, 1.0)  # red, green, blue, opacity of the background, for models without a sky
BATCH = 32  # frames drawn at once
_FILMED = 0x46494C4D

Place = Callable[[Any, np.ndarray], Mapping[str, Any]]
"""``(model, goal) -> fields of the model`` that show the goal of an episode; see ``envs.dmc.scene.Place``."""


class Subject(NamedTuple):
    """Functions that film an environment.

    pose:  (state before a step, state after it) -> what is needed to draw the latter. At the start of an
           episode, both are its first state.
    write: (path, poses [T, ...], seconds between them) -> None; draws the poses and writes the file.
    """

    pose: Callable[[Any, Any], PyTree]
    write: Write


class Film(NamedTuple):
    """Facts of a film: the episode's undiscounted return and environment steps, and frames per second."""

    total: float
    length: int
    fps: float


def subject(env: Env, options: Mapping[str, Any], path: Path) -> Subject:
    """Return the functions that film ``env``, made with ``options``, to ``path``.

    Raises:
        Refused: this task cannot be filmed to this type of file, or a package for it is missing.
    """
    suite, _, task = env.spec.name.partition("/")
    if path.suffix not in FASTEST:
        raise Refused(f"--video writes {', '.join(FASTEST)}; got {path.name!r}")
    if suite not in ("gym", "dmc", "pixels", "brax", "playground", "gymnax", "atari"):
        raise Refused(
            f"{env.spec.name} cannot be drawn: --video films tasks of gym/, dmc/, pixels/, brax/,"
            " playground/, gymnax/, atari/"
        )
    if path.suffix == ".html":
        if suite != "brax":
            raise Refused(f"{path.suffix} films only brax/ tasks; film {env.spec.name} as .mp4 or .gif")
        return Subject(lambda _, state: state.inner.pipeline_state.x, _page(_system(task, options)))
    if suite == "gymnax":
        return Subject(lambda _, state: state.inner[1], writer(gymnax_pictures.drawer(task, options), path))
    if suite == "atari":
        from popjax.envs import atari

        values = atari.settings(task, dict(options))
        return Subject(partial(atari.pose, values), writer(_stretched(atari.painter(task, values)), path))
    if suite == "pixels":
        from popjax.envs import pixels

        return Subject(lambda _, state: pixels.pose(state), writer(_seen(task, options), path))
    if suite == "brax":
        return Subject(
            lambda _, state: state.inner.pipeline_state.q, _model_film(_system(task, options).mj_model, path)
        )
    rest = {key: value for key, value in options.items() if key not in ("episode_length", "impl")}
    if suite == "playground":
        return Subject(lambda _, state: _pose_with_mocap(state), _model_film(_playground(task, rest), path))
    adapter = importlib.import_module(f"popjax.envs.{suite}")
    film = _model_film(adapter.load(task, **rest), path, adapter.place(task) if suite == "dmc" else None)
    return Subject(lambda _, state: jnp.concatenate([state.inner.qpos, *state.inner.goal]), film)


@numerics.standardized
def record(method: Method, env: Env, state: Any, subject: Subject, path: Path, *, seed: int = 0) -> Film:
    """Film an episode of the first member's policy in ``state`` [S, ...] to ``path``, from the first state to
    the one after the last step.

    Equal seeds give equal episodes.
    """
    seeds = jax.tree.leaves(state)[0].shape[0]

    def play(state: Any, key: Key) -> rollout.Episode:
        params = jax.tree.map(lambda x: x[0], sweep.lift(method.policy, seeds)(state))

        def policy(carry: Any, seen: Any, key: Key) -> tuple[Any, Array]:
            return method.act(params, carry, seen[1], key, 0.0)[:2]

        watched = _watched(env.scored or env, subject.pose)
        return rollout.episode(watched, policy, method.memory, key, record=lambda seen, *_: seen[0])

    key = jax.random.fold_in(jax.random.key(seed), _FILMED)
    episode = jax.device_get(jax.jit(play)(state, key))
    dt = env.spec.dt or TIMELESS
    stride = max(1, round(np.ceil(1 / (dt * FASTEST[path.suffix]) - 1e-6)))
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = [*range(0, episode.length, stride), -1]
    poses = jax.tree.map(
        lambda rows, end: np.concatenate([rows[: episode.length], end[None]])[shown],
        episode.steps,
        episode.obs[0],
    )
    subject.write(path, poses, stride * dt)
    return Film(float(episode.total), int(episode.length), 1 / (stride * dt))


def _watched(env: Env, pose: Callable[[Any, Any], PyTree]) -> Env:
    """Return ``env`` with (pose, observation) in place of the observation."""

    def reset(key: Key) -> tuple[PyTree, Any]:
        state, obs = env.reset(key)
        return state, (pose(state, state), obs)

    def step(state: PyTree, action: Array) -> tuple[PyTree, Timestep]:
        after, timestep = env.step(state, action)
        shown = pose(state, after)
        obs: Any = (shown, timestep.obs)
        next_obs: Any = (shown, timestep.next_obs)
        return after, replace(timestep, obs=obs, next_obs=next_obs)

    return env._replace(reset=reset, step=step)


def _system(task: str, options: Mapping[str, Any]) -> Any:
    """Return Brax's System of a task."""
    from popjax.envs import brax

    rest = {key: value for key, value in options.items() if key not in ("backend", "episode_length")}
    return brax._construct(task, options.get("backend"), rest).sys


def _playground(task: str, options: Mapping[str, Any]) -> Any:
    from popjax.envs import playground

    return playground.load(task, **options)


def _pose_with_mocap(state: Any) -> Array:
    """Return the pose of a Playground task, including its mocap bodies, which are the targets."""
    data = state.inner.data
    return jnp.concatenate([data[part].ravel() for part in ("qpos", "mocap_pos", "mocap_quat")])


def _stretched(screens: Draw) -> Draw:
    """Return the drawer of a game's screens, stretched to the film's shape."""

    def draw(poses: Any) -> Iterator[np.ndarray]:
        for screen in screens(poses):
            yield np.asarray(Image.fromarray(screen).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST))

    return draw


def _seen(task: str, options: Mapping[str, Any]) -> Draw:
    """Return the drawer of a task from pixels: its camera at a higher resolution."""
    from popjax.envs import pixels

    see = jax.jit(pixels.painter(task, HEIGHT, WIDTH, pixels.settings(task, dict(options))["camera"]))

    def draw(poses: Any) -> Iterator[np.ndarray]:
        for frame in range(len(poses[0])):
            yield np.asarray(see(*jax.tree.map(lambda x: x[frame], poses)))

    return draw


def _page(system: Any) -> Write:
    """Return the writer of Brax's viewer, a page that loads its program from the network."""
    from brax.io import html

    def write(path: Path, poses: Any, seconds: float) -> None:
        clock = system.tree_replace({"opt.timestep": seconds})  # the viewer's time per frame
        states: Any = [SimpleNamespace(x=jax.tree.map(lambda x: x[t], poses)) for t in range(len(poses.pos))]
        path.write_text(html.render(clock, states), encoding="utf-8")

    return write


def _model_film(model: Any, path: Path, place: Place | None = None) -> Write:
    """Return the writer of a film of a ``mujoco.MjModel``, which it may modify."""
    if not model.ncam:
        raise Refused("the model of this task has no camera; write --video to an .html file")
    if model.camera(0).name == "view":
        _aim(model)
    return writer(_drawer(model, place), path)


def _drawer(model: Any, place: Place | None = None) -> Draw:
    """Return the drawer of a model by Warp, or by OpenGL if Warp fails."""
    try:
        draw = _by_warp(model, place)
        next(draw(model.qpos0[None]))  # Warp loads and compiles only now
        return draw
    except Exception as failure:  # every driver has its own exceptions
        if isinstance(failure, ModuleNotFoundError) and failure.name == "warp":
            remedy = "pip install 'popjax[video]' for Warp, which does not need OpenGL, or set MUJOCO_GL=egl"
            return _by_opengl(model, place, remedy)
        reason = _told(failure)
    draw = _by_opengl(model, place, f"set MUJOCO_GL=egl; Warp, which does not need OpenGL, failed ({reason})")
    complain(f"Warp failed, so MuJoCo's OpenGL renderer draws the film ({reason})")
    return draw


def _told(failure: Exception) -> str:
    return " ".join(f"{type(failure).__name__}: {failure}".split())


def _by_opengl(model: Any, place: Place | None, remedy: str) -> Draw:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GLFW's warnings; the exception says the same
            renderer = mujoco.Renderer(model, HEIGHT, WIDTH)
    except Exception as failure:  # every platform's OpenGL has its own exceptions
        raise Refused(f"--video found no OpenGL ({_told(failure)}): {remedy}") from failure

    def draw(poses: np.ndarray) -> Iterator[np.ndarray]:
        for data in _posed(model, poses, place):
            renderer.update_scene(data, camera=0)
            yield renderer.render()

    return draw


def _by_warp(model: Any, place: Place | None) -> Draw:
    import warp

    warp.config.log_level = warp.LOG_ERROR
    from mujoco import mjx

    # Nothing is simulated, but MJX on Warp refuses a model that asks for PGS or for the energy.
    model.opt.solver, model.opt.enableflags = mujoco.mjtSolver.mjSOL_NEWTON, 0
    skies = model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX
    scene = mjx.create_render_context(
        model,
        nworld=BATCH,
        cam_res=(WIDTH, HEIGHT),
        cam_active=[camera == 0 for camera in range(model.ncam)],
        render_rgb=True,
        render_skybox=bool(skies.any()),
        background_color=SKY,
        use_shadows=True,
    )
    render = _renderer(model, scene)

    def draw(poses: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(poses), BATCH):
            wanted = poses[start : start + BATCH]
            full = np.pad(wanted, ((0, BATCH - len(wanted)), (0, 0)), "edge")
            placed = [_placed(data) for data in _posed(model, full, place)]
            stacked = {name: np.stack([frame[name] for frame in placed]) for name in placed[0]}
            yield from np.asarray(render(stacked))[: len(wanted)]

    return draw


def _renderer(model: Any, scene: Any) -> Callable[[dict[str, np.ndarray]], Array]:
    """Return the function ``placed [BATCH, ...] -> frames uint8 [BATCH, H, W, 3]``; its caller must keep
    ``scene``, MJX's tracer, alive."""
    from mujoco import mjx

    physics = mjx.put_model(model, impl="warp")
    least = partial(mjx.make_data, model, impl="warp", naconmax=1, naccdmax=1, njmax=1)
    empty = jax.vmap(lambda _: least())(jnp.arange(BATCH))

    @jax.jit
    def render(placed: dict[str, Array]) -> Array:
        handle = scene.pytree()
        data = mjx.refit_bvh(physics, empty.tree_replace(placed), handle)
        packed, _, _ = mjx.render(physics, data, handle)
        return (255 * mjx.get_rgb(handle, 0, packed)).astype(jnp.uint8)

    return render


def _placed(data: Any) -> dict[str, np.ndarray]:
    """Return the positions of geoms, cameras and lights, by field of MJX's data for Warp."""
    places = {
        "geom_xpos": data.geom_xpos,
        "geom_xmat": data.geom_xmat.reshape(-1, 3, 3),
        "cam_xpos": data.cam_xpos,
        "cam_xmat": data.cam_xmat.reshape(-1, 3, 3),
        "_impl.light_xpos": data.light_xpos,
        "_impl.light_xdir": data.light_xdir,
    }
    return {name: place.astype(np.float32) for name, place in places.items()}


def _posed(model: Any, poses: np.ndarray, place: Place | None = None) -> Iterator[Any]:
    """Yield the same ``mujoco.MjData`` in each of the poses [T, nq + ...].

    Entries after nq are the goal of the episode, which ``place`` puts into the model, or else position [3]
    and quaternion [4] of the mocap bodies.
    """
    data, mocap = mujoco.MjData(model), 3 * model.nmocap
    for pose in poses:
        data.qpos[:], rest = pose[: model.nq], pose[model.nq :]
        if place and len(rest):
            for name, value in place(model, rest).items():
                getattr(model, name)[:] = value
        elif mocap and len(rest) == 7 * model.nmocap:
            data.mocap_pos[:], data.mocap_quat[:] = rest[:mocap].reshape(-1, 3), rest[mocap:].reshape(-1, 4)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)
        yield data


def _aim(model: Any) -> None:
    """Place the first camera in front and above, so that everything except infinite floors is in view.

    It follows a freely floating root. A scene without lights is lit from the camera.
    """
    data = next(_posed(model, model.qpos0[None]))
    solid = model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE
    turned, box = data.geom_xmat.reshape(-1, 3, 3)[solid], model.geom_aabb[solid]
    centre = data.geom_xpos[solid] + np.einsum("gij,gj->gi", turned, box[:, :3])
    half = np.einsum("gij,gj->gi", abs(turned), box[:, 3:])
    low, high = (centre - half).min(0), (centre + half).max(0)
    place = (low + high) / 2 + np.linalg.norm(high - low) * np.array([0, -1.2, 0.6])
    frame = np.array([[1, 0, 0], [0, 1 / 5**0.5, -2 / 5**0.5], [0, 2 / 5**0.5, 1 / 5**0.5]]).ravel()
    model.cam_pos[0] = place
    mujoco.mju_mat2Quat(model.cam_quat[0], frame)
    if model.njnt and model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE:
        body = model.jnt_bodyid[0]
        model.cam_mode[0], model.cam_bodyid[0] = mujoco.mjtCamLight.mjCAMLIGHT_TRACK, body
        model.cam_pos0[0], model.cam_mat0[0] = place - data.xpos[body], frame
    if not model.nlight:
        model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = 0.4, 0.6
