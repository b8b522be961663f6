"""Gymnasium's MuJoCo tasks against Gymnasium itself, which steps MuJoCo in C.

The default run compiles Hopper-v4. All tasks, about ten minutes on two cores:

    pytest -m "slow or not slow" tests/envs/test_gym.py
"""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import envs, remember
from popjax.envs import gym
from popjax.envs.episodic import EpisodeState
from popjax.envs.gym import FAMILIES
from popjax.envs.mujoco import PhysicsState
from tests.envs.truth import Errors, assert_same_distribution, followed, relative

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("imageio", reason="Gymnasium's MuJoCo tasks need it")

QUICK = ("Hopper-v4",)
TASKS = [
    pytest.param(task, marks=() if task in QUICK else pytest.mark.slow) for task in sorted(envs.tasks("gym"))
]
STATES = 256
NEWTON = 2


def raw(task, **options):
    """Gymnasium's own environment, without time limit; with Newton's solver where ours uses it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # version 4 says that version 5 exists
        env = gymnasium.make(task, **options).unwrapped
    if FAMILIES[task[:-3]].solver.algorithm is not None:
        env.model.opt.solver = NEWTON
    return env


def measured(task, env):
    """Return the value with which the next reward compares, read off MuJoCo's data. It is as old as MuJoCo
    left it."""
    data, model = env.data, env.model
    match task[:-3]:
        case "Ant":
            return data.body(getattr(env, "_main_body", 1)).xpos[0]
        case "Humanoid":
            return model.body_mass @ data.xipos[:, 0] / model.body_mass.sum()
        case "Reacher":
            return data.body("fingertip").xpos - data.body("target").xpos
        case "HumanoidStandup" | "InvertedPendulum" | "InvertedDoublePendulum" | "Pusher":
            return ()
    return data.qpos[0]


class Play(NamedTuple):
    """Random play of Gymnasium's environment, one row for each step."""

    state: PhysicsState
    action: np.ndarray
    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray


def random_play(task, steps, **options):
    env, rows = raw(task, **options), []
    low, high = env.model.actuator_ctrlrange.T
    env.reset(seed=0)
    draw = np.random.default_rng(0)
    for _ in range(steps):
        action = draw.uniform(-1, 1, env.model.nu).astype(np.float32)
        d = env.data
        before = [np.array(x, np.float32) for x in (d.qpos, d.qvel, d.act, d.qacc_warmstart)]
        state = PhysicsState(*before, jax.tree.map(np.float32, measured(task, env)))
        # From the float32 state that the other side starts from; nothing but the state is touched.
        d.qpos[:], d.qvel[:] = state.qpos, state.qvel
        obs, reward, terminated, *_ = env.step((low + high + (high - low) * action) / 2)
        rows.append(Play(state, action, obs, np.float64(reward), np.bool_(terminated)))
        if terminated:
            env.reset()
    return jax.tree.map(lambda *x: np.stack(x), *rows)


@functools.cache
def prepared(task, impl="jax", **options):
    """(our environment, its step jitted over lanes, Gymnasium's random play); one compile for all tests."""
    env = envs.make(f"gym/{task}", impl=impl, **options)
    return env, jax.jit(jax.vmap(env.step)), random_play(task, STATES, **options)


def truth(task, **options):
    """Our step from the states of Gymnasium's random play, compared with Gymnasium's."""
    _, step, play = prepared(task, **options)
    _, timestep = step(EpisodeState(play.state, jnp.zeros(STATES, jnp.int32)), play.action)
    return Errors(
        relative(np.asarray(timestep.next_obs), play.obs).max(axis=1),
        relative(np.asarray(timestep.reward), play.reward),
        np.asarray(timestep.terminated) == play.terminated,
    )


def assert_true(errors):
    for error, most in (errors.obs, 1e-2), (errors.reward, 1e-3):
        assert np.median(error) <= 1e-4
        assert np.quantile(error, 0.99) <= most
    assert errors.same_flag.all()


@pytest.mark.parametrize("task", TASKS)
def test_one_step_equals_gymnasium(task):
    assert_true(truth(task))
    constant = task == "InvertedPendulum-v4"  # 1 for every step
    assert constant or prepared(task)[2].reward.std() > 1e-3, (
        "play that earns always the same tests no reward"
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(envs.tasks("gym")))
def test_one_step_in_warp_equals_gymnasium(task):
    pytest.importorskip("warp", reason="impl=warp needs it: pip install 'popjax[warp]'")
    assert_true(truth(task, impl="warp"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "options"),
    [
        (
            "Hopper-v4",
            {"terminate_when_unhealthy": False, "exclude_current_positions_from_observation": False},
        ),
        ("Hopper-v5", {"terminate_when_unhealthy": False, "healthy_reward": 3.0, "frame_skip": 2}),
        ("Ant-v4", {"use_contact_forces": True, "healthy_z_range": (0.5, 0.8), "contact_cost_weight": 0.1}),
        ("Ant-v5", {"main_body": "aux_1", "include_cfrc_ext_in_observation": False}),
        ("Ant-v5", {"contact_cost_weight": 0.1}),
        ("Humanoid-v5", {"include_cinert_in_observation": False, "contact_cost_weight": 0.01}),
        ("HumanoidStandup-v5", {"include_cvel_in_observation": False, "impact_cost_range": (1.0, 2.0)}),
        ("Reacher-v5", {"reward_dist_weight": 2.0, "reward_control_weight": 0.5}),
    ],
)
def test_one_step_with_options_equals_gymnasium(task, options):
    assert_true(truth(task, **options))


@pytest.mark.parametrize("task", TASKS)
def test_steps_follow_each_other_as_in_gymnasium(task):
    """Five steps by ourselves from each state; what a state carries from step to step is enough.

    Where bodies collide, errors grow tenfold with a step, so this holds for the middle of the states only.
    """
    env, step, play = prepared(task)
    count = 5
    ended = np.convolve(play.terminated, np.ones(count, int))[: STATES + count - 1]
    whole = np.array([i + count <= STATES and not ended[i + count - 1] for i in range(STATES)])
    assert whole.sum() > 50
    obs, reward = followed(env, step, play, count)
    assert np.median(obs[whole]) <= 1e-4
    assert np.median(reward[whole]) <= 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_resets_are_distributed_as_in_gymnasium(task):
    """Mean and spread of every component of the first observation."""
    count = 10_000  # a spread that is off by 7% is seen
    env, original = envs.make(f"gym/{task}"), raw(task)
    state, ours = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), count))
    theirs = np.stack([original.reset(seed=i)[0] for i in range(count)])
    assert_same_distribution(ours, theirs)
    registered = gymnasium.spec(task)
    assert env.spec.obs_shape == original.observation_space.shape == ours.shape[1:]
    assert env.spec.action_dim == original.action_space.shape[0]
    assert env.spec.episode_length == registered.max_episode_steps
    assert env.spec.dt == pytest.approx(original.dt)
    assert sum(x.nbytes for x in jax.tree.leaves(state)) / count < 512  # a lane's


def test_a_simulation_that_diverges_ends_the_episode():
    _, step, play = prepared("Hopper-v4")
    lost = play.state.replace(qvel=np.full_like(play.state.qvel, 1e20))
    state, timestep = step(EpisodeState(lost, jnp.zeros(STATES, jnp.int32)), play.action)
    assert timestep.terminated.all()
    for x in (timestep.next_obs, timestep.reward):
        np.testing.assert_array_equal(x, 0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_a_time_limit_is_at_least_one_step():
    with pytest.raises(ValueError, match=r"gym/Hopper-v4: episode_length must be from 1 to .*, got 0"):
        envs.make("gym/Hopper-v4", episode_length=0)


def test_a_step_returns_a_state_of_the_same_types():
    env = envs.make("gym/InvertedPendulum-v4")
    state, _ = jax.eval_shape(env.reset, jax.random.key(0))
    after, _ = jax.eval_shape(env.step, state, jnp.zeros(1))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


def test_the_time_limit_is_an_option():
    assert envs.make("gym/InvertedPendulum-v5", episode_length=7).spec.episode_length == 7


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gym/Hoper-v4", {}, "did you mean 'Hopper-v4'"),
        ("gym/Hopper-v4", {"helthy_reward": 2}, "no option 'helthy_reward'; did you mean 'healthy_reward'"),
        ("gym/Hopper-v4", {"frame_skip": 2}, "no option 'frame_skip'"),  # a constant before version 5
        ("gym/Reacher-v4", {"colour": 2}, "no option 'colour'; choose from episode_length"),
        ("gym/Ant-v5", {"main_body": "tail"}, "main_body: no body 'tail'; choose from world, torso,"),
        ("gym/Reacher-v5", {"xml_file": "no.xml"}, "gym/Reacher-v5: option xml_file='no.xml': .*not exist"),
        ("gym/Reacher-v5", {"xml_file": "hopper.xml"}, "xml_file='hopper.xml' is not a model for it: "),
        ("gym/Ant-v5", {"xml_file": "humanoid.xml"}, "xml_file='humanoid.xml' is not a model for it: "),
        ("gym/HumanoidStandup-v5", {"uph_cost_weight": 2.0}, "no option 'uph_cost_weight'"),  # unused there
    ],
)
def test_what_does_not_exist_is_named_with_what_does(name, options, message):
    with pytest.raises(ValueError, match=message):
        envs.make(name, **options)


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("frame_skip", "abc", "an integer"),
        ("frame_skip", 2.5, "an integer"),
        ("frame_skip", True, "an integer"),
        ("frame_skip", 0, "at least 1"),
        ("episode_length", "x", "an integer"),
        ("reset_noise_scale", "x", "a number"),
        ("reset_noise_scale", False, "a number"),
        ("terminate_when_unhealthy", "maybe", "True or False"),
        ("healthy_z_range", 1.0, "two numbers"),
        ("healthy_z_range", (1.0, "x"), "two numbers"),
        ("xml_file", 3, "a string"),
        ("main_body", 1.5, "an integer or a string"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(option, value, wanted):
    with pytest.raises(ValueError, match=f"^gym/Ant-v5: option {option} must be {wanted}") as refusal:
        envs.make("gym/Ant-v5", **{option: value})
    assert str(refusal.value).endswith(f"got {value!r}")
    assert "\n" not in str(refusal.value)


def test_a_model_that_was_edited_makes_another_environment(tmp_path):
    source = Path(gymnasium.__file__).parent / "envs/mujoco/assets/inverted_pendulum.xml"
    file = tmp_path / "mine.xml"
    file.write_text(source.read_text())
    first = envs.make("gym/InvertedPendulum-v5", xml_file=str(file))
    assert envs.make("gym/InvertedPendulum-v5", xml_file=str(file)) is first
    file.write_text(source.read_text().replace('timestep="0.02"', 'timestep="0.01"'))
    assert envs.make("gym/InvertedPendulum-v5", xml_file=str(file)).spec.dt == first.spec.dt / 2


def test_values_of_the_right_type_are_taken():
    """A whole number is a number, also where Gymnasium's default is one; JSON keeps a pair as a list."""
    default = envs.make("gym/Reacher-v5").spec.dt
    env = envs.make("gym/Reacher-v5", reward_dist_weight=0.5, frame_skip=1)
    assert env.spec.dt == pytest.approx(default / 2)
    envs.make("gym/Hopper-v4", healthy_reward=np.float32(2), healthy_z_range=[1, float("inf")])
    envs.make("gym/Hopper-v4", reset_noise_scale=0)


def test_without_gymnasium_the_extra_is_named(monkeypatch):
    remember.forget()  # which keeps the task where a test before made it
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ValueError, match=r"gym/Hopper-v4 needs Gymnasium: pip install 'popjax\[gym\]'"):
        envs.make("gym/Hopper-v4")


def test_listing_the_tasks_starts_no_physics():
    program = (
        "import sys; from popjax import envs; assert len(envs.tasks('gym')) == 21; "
        "print(*(name for name in ('mujoco', 'gymnasium', 'brax') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_deprecated_model_file_is_loaded_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """MuJoCo would also write MUJOCO_LOG.TXT."""
    monkeypatch.chdir(tmp_path)
    gym.load("HalfCheetah-v4")
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
