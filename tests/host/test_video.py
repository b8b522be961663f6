"""Films: what they show, how fast, and what is refused."""

from __future__ import annotations

import base64
import json
import re
import sys
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from jax import Array
from PIL import Image, ImageSequence

from popjax.core import Env, Method, Spec, Timestep
from popjax.envs import make, wrappers
from popjax.envs.episodic import episodic
from popjax.envs.mujoco import PhysicsState
from popjax.host.deploy import film_files, gymnax_pictures, video
from popjax.host.errors import Refused

LENGTH = 8
FREE = """<mujoco><worldbody><geom type="plane" size="9 9 .1"/><camera name="view"/>
<body name="ball" pos="0 0 1"><freejoint/><geom size=".2"/></body></worldbody></mujoco>"""


def sliding(name: str = "gym/InvertedPendulum-v4", dt: float = 0.04) -> Env:
    """A cart that goes where the action says, 0.1 a step, without physics; it ends at ``LENGTH``."""

    def state(place: Array) -> PhysicsState:
        nothing = jnp.zeros(0)
        return PhysicsState(jnp.stack([place, jnp.float32(0)]), nothing, nothing, nothing, ())

    def step(before: PhysicsState, action: Array) -> tuple[PhysicsState, Array, Array, Array]:
        after = state(before.qpos[0] + 0.1 * action[0])
        return after, after.qpos, after.qpos[0], jnp.bool_(False)

    spec = Spec(name, (2,), 1, LENGTH, dt=dt)
    return episodic(spec, lambda key: (state(jnp.float32(0)), jnp.zeros(2)), step)


def acting(act: Any) -> Method:
    """A method whose State is the policy's parameters [S, A]."""
    nothing: Any = None
    return Method(nothing, nothing, lambda state: state, act, None, 1)


RIGHT = acting(lambda params, carry, obs, key, scale: (carry, params))
SPEEDS = jnp.array([[1.0], [-1.0]])


def drawn() -> None:
    """Skips where there is nothing to draw and write with."""
    for library in ("warp", "imageio_ffmpeg", "gymnasium"):
        pytest.importorskip(library)


@pytest.mark.filterwarnings("ignore:os.fork")  # JAX's, of the process that reads the film
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_film_shows_the_first_policy_in_real_time(suffix: str, tmp_path: Path):
    drawn()
    import imageio.v2 as imageio

    env, path = sliding(), tmp_path / "new" / f"film{suffix}"
    film = video.record(RIGHT, env, SPEEDS, video.subject(env, {}, path), path)
    assert film.length == LENGTH
    assert film.total == pytest.approx(0.1 * sum(range(1, LENGTH + 1)))
    assert film.fps == pytest.approx(25)
    reader = imageio.get_reader(path)
    frames = np.stack([np.asarray(frame)[..., :3] for frame in reader]).astype(float)
    assert frames.shape == (LENGTH + 1, video.HEIGHT, video.WIDTH, 3)
    shown = reader.get_meta_data()
    assert shown["duration"] == (40 if suffix == ".gif" else pytest.approx((LENGTH + 1) * 0.04, abs=0.05))
    cart = (frames[..., 0] - frames[..., 2]) > 60  # yellow
    places = [np.argwhere(frame)[:, 1].mean() for frame in cart]
    assert (np.diff(places) > 5).all()  # to the right, and all of it in sight


@pytest.mark.parametrize("seconds", [1 / 15, 0.045, 0.125, 0.04])
def test_a_gif_plays_in_real_time_on_average(seconds: float, tmp_path: Path) -> None:
    """Its clock counts hundredths of a second."""

    def draw(poses: np.ndarray) -> Iterator[np.ndarray]:
        yield from (np.full((8, 8, 3), 8 * frame, np.uint8) for frame in poses)

    path = tmp_path / "film.gif"
    film_files.writer(draw, path)(path, np.arange(30), seconds)
    film, times = Image.open(path), []
    for frame in range(film.n_frames):
        film.seek(frame)
        times.append(film.info["duration"])
    assert len(times) == 30
    assert sum(times) == pytest.approx(30_000 * seconds, abs=5)
    assert max(times) - min(times) <= 10


@pytest.mark.parametrize(
    ("suffix", "dt", "stride"), [(".mp4", 0.008, 3), (".mp4", 0.05, 1), (".gif", 0.008, 5), (".mp4", 0.02, 1)]
)
def test_frames_are_skipped_above_the_fastest_rate(suffix: str, dt: float, stride: int):
    written: list[Any] = []
    subject = video.Subject(lambda _, state: state.inner.qpos, lambda *film: written.append(film))
    path = Path(f"film{suffix}")
    film = video.record(RIGHT, sliding(dt=dt), SPEEDS, subject, path)
    ((_, poses, seconds),) = written
    shown = [*range(0, LENGTH, stride), LENGTH]
    np.testing.assert_allclose(poses[:, 0], 0.1 * np.array(shown), rtol=1e-5)
    assert seconds == pytest.approx(stride * dt)
    assert film.fps == pytest.approx(1 / seconds)


@pytest.mark.parametrize(
    ("task", "options", "fps"),
    [
        ("Breakout-MinAtar", {"max_steps_in_episode": 5}, 10),
        ("Catch-bsuite", {"rows": 6, "max_steps_in_episode": 5}, 10),
        ("FourRooms-misc", {"max_steps_in_episode": 5}, 10),
        ("Pendulum-v1", {"max_steps_in_episode": 5}, 20),
        ("CartPole-v1", {"max_steps_in_episode": 10}, 25),  # every second step, 0.02 s each
    ],
)
def test_tasks_of_gymnax_are_filmed(task: str, options: dict[str, Any], fps: float, tmp_path: Path):
    if task in ("Pendulum-v1", "CartPole-v1"):
        pytest.importorskip("pygame")
    env, path = make(f"gymnax/{task}", **options), tmp_path / "film.gif"
    action = jnp.int32(1) if env.spec.discrete else jnp.ones(1)
    still = acting(lambda params, carry, obs, key, scale: (carry, action))
    film = video.record(still, env, SPEEDS, video.subject(env, options, path), path)
    assert film.fps == pytest.approx(fps)
    with Image.open(path) as shown:
        frames = [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(shown)]
        assert shown.info["duration"] == 1000 / fps
    assert len(frames) == 1 + -(-film.length // (2 if task == "CartPole-v1" else 1)) > 2
    changed = [int((abs(a - b).max(-1) > 60).sum()) for a, b in pairwise(frames)]
    assert all(changed), "something moves from frame to frame"


@pytest.mark.parametrize("task", ["InvertedDoublePendulum-v5", "Reacher-v4"])
def test_a_scene_without_a_camera_is_seen_whole(task: str):
    pytest.importorskip("gymnasium")
    from popjax.envs import gym

    model = gym.load(task)
    assert model.camera(0).name == "view"
    video._aim(model)
    data = next(video._posed(model, model.qpos0[None]))
    solid = model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE
    seen = (data.geom_xpos[solid] - data.cam_xpos[0]) @ data.cam_xmat[0].reshape(3, 3)
    steepest = np.tan(np.deg2rad(model.cam_fovy[0] / 2))
    assert (seen[:, 2] < 0).all()  # a camera looks along its negative z axis
    assert (abs(seen[:, 1]) < -seen[:, 2] * steepest).all()
    assert (abs(seen[:, 0]) < -seen[:, 2] * steepest * video.WIDTH / video.HEIGHT).all()


def test_the_camera_goes_along_with_a_free_body():
    model = mujoco.MjModel.from_xml_string(FREE)
    video._aim(model)
    start = model.qpos0
    cameras = [
        data.cam_xpos[0].copy() for data in video._posed(model, np.stack([start, start + 5 * (start == 0)]))
    ]
    np.testing.assert_allclose(cameras[1] - cameras[0], [5, 5, 0], atol=1e-6)


def test_a_target_is_drawn_where_the_episode_has_it():
    """Three frames of nothing but a red target: right, left and above."""
    drawn()
    pytest.importorskip("dm_control")
    from popjax.envs import dmc

    model, task = dmc.load("finger-turn_hard"), "finger-turn_hard"
    model.site_rgba[:], model.geom_rgba[model.geom("tip_mark").id] = 0, 0
    hidden = [model.geom(name).id for name in ("fingertip", "proximal", "distal", "cap1", "cap2", "ground")]
    model.geom_rgba[hidden] = 0
    centre, goals = np.array([0.2, 0.4]), 0.13 * np.array([[1, 0], [-1, 0], [0, 1]])
    poses = np.stack([np.concatenate([model.qpos0, centre + goal]) for goal in goals])
    frames = np.stack(list(video._drawer(model, dmc.place(task))(poses))).astype(float)
    seen = [np.argwhere(frame[..., 0] - frame[..., 2] > 30).mean(axis=0) for frame in frames]
    (_, right), (_, left), (top, _) = seen
    assert right - left > 60
    assert seen[0][0] - top > 30


@pytest.mark.parametrize("name", ["dmc/finger-turn_hard", "dmc/manipulator-bring_ball", "gym/Reacher-v5"])
def test_a_film_of_a_task_with_a_goal_can_place_it(name: str, monkeypatch: pytest.MonkeyPatch):
    for library in ("dm_control", "gymnasium"):
        pytest.importorskip(library)
    made: list[Any] = []
    monkeypatch.setattr(video, "_model_film", lambda *wanted: made.append(wanted))
    video.subject(sliding(name), {}, Path("film.mp4"))
    ((model, _, place),) = made
    assert (place is None) == name.startswith("gym/")  # there the target is a body of the simulation
    if place:
        placed = place(model, np.array([0.1, 0.2, 0.3])[: 2 if "finger" in name else 3])
        assert placed.keys() & {"geom_pos", "body_pos"}
        assert all((getattr(model, field) != value).any() for field, value in placed.items())


def test_the_page_of_brax_has_every_pose_and_its_clock(tmp_path: Path):
    from brax.base import Transform

    system = video._system("inverted_pendulum", {"backend": "generalized", "episode_length": 9})
    poses = Transform(pos=np.arange(18.0).reshape(3, 2, 3), rot=np.zeros((3, 2, 4)))
    video._page(system)(tmp_path / "page.html", poses, 0.1)
    packed = max(re.findall(r"[A-Za-z0-9+/=]{200,}", (tmp_path / "page.html").read_text()), key=len)
    scene = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert [state["pos"] for state in scene["states"]["x"]] == poses.pos.tolist()
    assert scene["opt"]["timestep"] == pytest.approx(0.1)
    assert {"cart", "pole"} <= set(scene["geoms"])


@pytest.mark.parametrize(
    ("name", "file", "part"),
    [
        ("gym/InvertedPendulum-v4", "film.avi", r"writes .mp4, .gif, .html; got 'film.avi'"),
        (
            "gym/InvertedPendulum-v4",
            "film.html",
            "html films only brax/ tasks; film gym/InvertedPendulum-v4 as .mp4 or",
        ),
        (
            "probe/corridor",
            "film.gif",
            "probe/corridor cannot be drawn: --video films tasks of gym/, .*, gymnax/",
        ),
        ("gymnax/DeepSea-bsuite", "film.gif", "gymnax cannot draw DeepSea-bsuite"),
        (
            "gymnax/Breakout-MinAtar",
            "film.html",
            "html films only brax/ tasks; film gymnax/Breakout-MinAtar as .mp4",
        ),
        ("brax/inverted_pendulum", "film.mp4", "no camera; write --video to an .html file"),
    ],
)
def test_what_cannot_be_filmed_is_refused(name: str, file: str, part: str):
    with pytest.raises(Refused, match=part) as refusal:
        video.subject(sliding(name), {}, Path(file))
    assert "\n" not in str(refusal.value)


def test_a_missing_writer_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    nothing: Any = None
    with pytest.raises(
        Refused, match=r"imageio_ffmpeg for .mp4: pip install 'popjax\[video\]', or write a .gif"
    ):
        film_files.writer(nothing, Path("film.mp4"))
    film_files.writer(nothing, Path("film.gif"))  # needs none


def encoding_with(monkeypatch: pytest.MonkeyPatch, ffmpeg: Path, program: str, **imageio: Any) -> None:
    """Stand in for the packages that run ffmpeg with ones that find ``program``."""
    ffmpeg.write_text(f"#!/bin/sh\n{program}\n")
    ffmpeg.chmod(0o755)
    v2 = SimpleNamespace(**imageio)
    monkeypatch.setitem(sys.modules, "imageio", SimpleNamespace(v2=v2))
    monkeypatch.setitem(sys.modules, "imageio.v2", v2)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", SimpleNamespace(get_ffmpeg_exe=lambda: str(ffmpeg)))


@pytest.mark.filterwarnings("ignore:os.fork")
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("echo conda >&2; echo \"Unknown encoder 'libx264'\" >&2; exit 1", "Unknown encoder 'libx264'"),
        ("exit 3", "exit status 3"),
    ],
)
def test_an_ffmpeg_that_cannot_encode_is_refused_before_anything_is_played(
    program: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    nothing: Any = None
    encoding_with(monkeypatch, tmp_path / "ffmpeg", program)
    told = re.escape(f"no ffmpeg that writes H.264 ({tmp_path / 'ffmpeg'}: {reason}): pip install --force")
    with pytest.raises(Refused, match=told):
        film_files.writer(nothing, Path("film.mp4"))
    film_files.writer(nothing, Path("film.gif"))
    encoding_with(monkeypatch, tmp_path / "ffmpeg", "cat > /dev/null")
    film_files.writer(nothing, Path("film.mp4"))
    (tmp_path / "ffmpeg").unlink()
    with pytest.raises(Refused, match=r"no ffmpeg that writes H.264 \(.*No such file"):
        film_files.writer(nothing, Path("film.mp4"))


@pytest.mark.filterwarnings("ignore:os.fork")
def test_an_ffmpeg_that_fails_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def get_writer(*_: Any, **options: Any) -> Any:
        raise OSError("[Errno 32] Broken pipe\n\nFFMPEG COMMAND:\nffmpeg -y")

    encoding_with(monkeypatch, tmp_path / "ffmpeg", "cat > /dev/null", get_writer=get_writer)
    path = tmp_path / "film.mp4"
    with pytest.raises(OSError, match=r"film.mp4: \[Errno 32\] Broken pipe$"):
        film_files.writer(iter, path)(path, np.zeros((2, 1)), 0.1)


def test_classic_control_without_pygame_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(Refused, match=r"needs pygame: pip install 'popjax\[video\]'"):
        gymnax_pictures.drawer("Pendulum-v1", {})


def test_without_warp_opengl_draws_or_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    model = mujoco.MjModel.from_xml_string(FREE)

    class Renderer:
        def __init__(self, model: Any, height: int, width: int) -> None:
            self.shape = (height, width, 3)

        def update_scene(self, data: Any, camera: int) -> None:
            self.height = data.qpos[2]

        def render(self) -> np.ndarray:
            return np.full(self.shape, self.height, np.uint8)

    def broken(*_: Any) -> Any:
        raise RuntimeError("no display")

    monkeypatch.setitem(sys.modules, "warp", None)
    monkeypatch.setattr(mujoco, "Renderer", Renderer)
    frames = list(video._drawer(model)(np.stack([model.qpos0 * 3, model.qpos0 * 4])))
    assert [frame.max() for frame in frames] == [3, 4]
    assert frames[0].shape == (video.HEIGHT, video.WIDTH, 3)
    monkeypatch.setattr(mujoco, "Renderer", broken)
    with pytest.raises(Refused, match=r"no OpenGL \(.*no display\): pip install 'popjax\[video\]'"):
        video._drawer(model)


@pytest.mark.parametrize("works", [True, False])
def test_where_warp_fails_opengl_draws_and_the_reason_is_told(
    works: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("warp")
    from mujoco import mjx

    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("cannot open\nlibcuda")

    monkeypatch.setattr(mjx, "create_render_context", broken)
    monkeypatch.setattr(mujoco, "Renderer", (lambda *_: "OpenGL") if works else broken)
    model = mujoco.MjModel.from_xml_string(FREE)
    if works:
        video._drawer(model)
        told = capsys.readouterr().err
        assert told.count("\n") == 1
    else:
        with pytest.raises(Refused, match="no OpenGL") as refusal:
            video._drawer(model)
        told = str(refusal.value)
        assert "\n" not in told
        assert "MUJOCO_GL=egl" in told
        assert capsys.readouterr().err == ""
    assert "OSError: cannot open libcuda" in told


def test_a_warp_that_cannot_be_imported_is_not_taken_for_a_missing_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (tmp_path / "warp.py").write_text("import no_such_part")
    monkeypatch.delitem(sys.modules, "warp", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(mujoco, "Renderer", lambda *_: "OpenGL")
    video._drawer(mujoco.MjModel.from_xml_string(FREE))
    assert "No module named 'no_such_part'" in capsys.readouterr().err


def test_a_policy_is_filmed_in_the_task_that_scores_it_and_acts_on_what_follows_a_cut() -> None:
    """A cut after every step shows 1 to the policy, which moves as it sees, where the successor is 0."""

    def step(state: Array, action: Array) -> tuple[Array, Timestep]:
        no, cut = jnp.bool_(False), jnp.bool_(True)
        return state + action, Timestep(jnp.ones(1), jnp.zeros(1), action[0], no, no, cut)

    plain = Env(lambda key: (jnp.zeros(1), jnp.zeros(1)), step, Spec("none", (1,), 1, 4))
    seeing, written = acting(lambda params, carry, obs, key, scale: (carry, obs)), []
    subject = video.Subject(lambda _, state: state, lambda path, poses, seconds: written.append(poses))
    film = video.record(seeing, wrappers.rewarded(plain, 1.0, 0.5), SPEEDS, subject, Path("film.gif"))
    assert written[0][:, 0].tolist() == [0, 0, 1, 2, 3]
    assert film.total == 3, "not clipped"


def test_equal_seeds_film_equal_episodes():
    noisy = acting(lambda params, carry, obs, key, scale: (carry, jax.random.uniform(key, (1,))))
    subject = video.Subject(lambda _, state: state.inner.qpos, lambda *film: None)
    totals = [video.record(noisy, sliding(), SPEEDS, subject, Path("a.mp4"), seed=s).total for s in (1, 1, 2)]
    assert totals[0] == totals[1] != totals[2]


def test_mocap_bodies_are_where_the_pose_has_them():
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body><joint type="slide"/><geom size=".1"/></body>'
        '<body name="target" mocap="true"><geom size=".1"/></body></worldbody></mujoco>'
    )
    quaternion = np.array([0.6, 0.0, 0.8, 0.0])
    poses = np.array([[0.5, 1, 2, 3, *quaternion], [0.5, 4, 5, 6, *quaternion]])
    seen = [(d.body("target").xpos.copy(), d.body("target").xquat.copy()) for d in video._posed(model, poses)]
    np.testing.assert_allclose([place for place, _ in seen], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(seen[0][1], quaternion)


def test_a_task_of_playground_is_seen_with_its_target():
    pytest.importorskip("mujoco_playground")
    from popjax import envs
    from popjax.envs import playground

    env, model = envs.make("playground/ReacherEasy"), playground.load("ReacherEasy", impl="jax")
    pose = jax.eval_shape(lambda key: video._pose_with_mocap(env.reset(key)[0]), jax.random.key(0))
    assert model.nmocap == 1
    assert pose.shape == (model.nq + 7,)
    turning = playground.load("FingerTurnEasy")  # the target is a site there, which is not drawn
    assert turning.body("target").mocapid[0] >= 0
    assert turning.body("target").geomnum[0] == 1
    assert turning.geom("target_mark").size[0] == pytest.approx(0.07)
