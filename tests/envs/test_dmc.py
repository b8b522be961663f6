"""DeepMind Control Suite against dm_control itself, which steps MuJoCo in C.

The default run compiles cheetah-run. All tasks, about twenty minutes on two cores:

    pytest -m "slow or not slow" tests/envs/test_dmc.py
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import envs, remember
from popjax.envs import dmc
from popjax.envs.dmc import _original
from popjax.envs.dmc.parts import linear, long_tail, quadratic, tolerance
from popjax.envs.episodic import EpisodeState
from popjax.envs.mujoco import PhysicsState
from tests.envs.truth import Errors, assert_same_distribution, followed, relative

pytest.importorskip("dm_control")

QUICK = ("cheetah-run",)


def every_task(quick):
    """All tasks, of which the default run has the ``quick`` ones."""
    return [
        pytest.param(task, marks=() if task in quick else pytest.mark.slow)
        for task in sorted(envs.tasks("dmc"))
    ]


TASKS = every_task(QUICK)
STATES = 256
EPISODE = 32  # steps of random play between resets


def goal(task: str, env: Any) -> tuple[np.ndarray, ...]:
    """Return the values that dm_control has written into the model at the reset."""
    model = env.physics.named.model
    match task.split("-"):
        case ["finger", "turn_easy" | "turn_hard"]:
            return (np.float32(model.site_pos["target", ["x", "z"]]),)
        case ["fish", "swim"] | ["swimmer", _]:
            return (np.float32(model.geom_pos["target"]),)
        case ["reacher", _]:
            return (np.float32(model.geom_pos["target", ["x", "y"]]),)
        case ["manipulator", _]:
            w, y = model.body_quat["target_ball", ["qw", "qy"]]
            return (np.float32([*model.body_pos["target_ball", ["x", "z"]], 2 * np.arctan2(y, w)]),)
    return ()


class Play(NamedTuple):
    """Random play of dm_control's environment, one row for each step."""

    state: PhysicsState
    action: np.ndarray
    obs: np.ndarray
    reward: np.ndarray


def begin(task, env, episode):
    """A reset; every second time to where rewards are: upright, or with the target at what shall reach it."""
    import mujoco

    env.reset()
    if episode % 2 == 0:
        return
    physics, model = env.physics, env.physics.named.model
    physics.data.qpos[:] = physics.model.qpos0
    mujoco.mj_forward(physics.model.ptr, physics.data.ptr)
    data = physics.named.data
    match task.split("-"):
        case ["finger", "turn_easy" | "turn_hard"]:
            model.site_pos["target"] = data.site_xpos["tip"]
        case ["fish", "swim"]:
            model.geom_pos["target"] = data.geom_xpos["mouth"]
        case ["swimmer", _]:
            model.geom_pos["target", ["x", "y"]] = data.geom_xpos["nose", ["x", "y"]]
        case ["reacher", _]:
            model.geom_pos["target", ["x", "y"]] = data.geom_xpos["finger", ["x", "y"]]
        case ["ball_in_cup", _]:
            data.qpos["ball_z"] += data.site_xpos["target", "z"] - data.xpos["ball", "z"] + 0.01
        case ["manipulator", _]:
            data.qpos[["ball_x", "ball_z"]] = model.body_pos["target_ball", ["x", "z"]]
        case ["finger", "spin"]:
            data.qvel["hinge"] = -17
        case ["cheetah" | "hopper" | "walker", _]:
            data.qvel["rootx"] = 2
            # Not flat on both feet: a state 1e-8 away then lands otherwise, in MuJoCo in C too.
            physics.data.qpos[3:] += 0.02 * np.arange(1, physics.model.nq - 2)
        case ["humanoid" | "quadruped", _]:
            physics.data.qvel[0] = 2
    mujoco.mj_forward(physics.model.ptr, physics.data.ptr)


def flat(timestep):
    return np.concatenate([np.ravel(x) for x in timestep.observation.values()])


def random_play(task, steps):
    import mujoco

    env, rows, draw = _original(task), [], np.random.default_rng(0)
    data, model = env.physics.data, env.physics.model.ptr
    low, high = model.actuator_ctrlrange.T
    for t in range(steps):
        if t % EPISODE == 0:
            begin(task, env, t // EPISODE)
        action = draw.uniform(-1, 1, model.nu).astype(np.float32)
        before = [np.array(x, np.float32) for x in (data.qpos, data.qvel, data.act, data.qacc_warmstart)]
        state = PhysicsState(*before, (), goal(task, env))
        # From the float32 state that the other side starts from; dm_control's step begins half way.
        data.qpos[:], data.qvel[:], data.act[:] = before[:3]
        mujoco.mj_step1(model, data.ptr)
        timestep = env.step((low + high + (high - low) * action) / 2)
        rows.append(Play(state, action, flat(timestep), np.float64(timestep.reward)))
    return jax.tree.map(lambda *x: np.stack(x), *rows)


@functools.cache
def prepared(task, **options):
    """(our environment, its step jitted over lanes, dm_control's random play); one compile for all tests."""
    env = envs.make(f"dmc/{task}", **options)
    return env, jax.jit(jax.vmap(env.step)), random_play(task, STATES)


def truth(task, **options):
    """Our step from the states of dm_control's random play, compared with dm_control's."""
    _, step, play = prepared(task, **options)
    _, timestep = step(EpisodeState(play.state, jnp.zeros(STATES, jnp.int32)), play.action)
    return Errors(
        relative(np.asarray(timestep.next_obs), play.obs).max(axis=1),
        relative(np.asarray(timestep.reward), play.reward),
        ~np.asarray(timestep.terminated),
    )


# Rounding to float32 grows along a chain: fifteen links, fifteen physics steps.
MEDIAN = {"swimmer-swimmer15": 1e-3}


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(envs.tasks("dmc")))
def test_one_step_in_warp_equals_dm_control(task):
    pytest.importorskip("warp", reason="impl=warp needs it: pip install 'popjax[warp]'")
    assert_true(task, truth(task, impl="warp"))


@pytest.mark.parametrize("task", TASKS)
def test_one_step_equals_dm_control(task):
    assert_true(task, truth(task))
    reward = prepared(task)[2].reward
    assert (reward > 1e-3).any(), "play that earns nothing tests no reward"
    assert reward.std() > 1e-3


def assert_true(task, errors):
    for error, most in (errors.obs, 1e-2), (errors.reward, 1e-3):
        assert np.median(error) <= MEDIAN.get(task, 1e-4)
        assert np.quantile(error, 0.99) <= most
    assert errors.same_flag.all()


def median_error(task, dtype):
    """Of the observation after a step from the same states, computed in ``dtype``."""
    env, play = dmc.make(task), random_play(task, STATES)  # envs.make makes everything in float32
    state = jax.tree.map(lambda x: jnp.asarray(x, dtype), play.state)
    start = EpisodeState(state, jnp.zeros(STATES, jnp.int32))
    # Observations are float32 by contract; what is compared is the physics behind them.
    _, timestep = jax.jit(jax.vmap(env.step))(start, jnp.asarray(play.action, dtype))
    return float(np.median(relative(np.asarray(timestep.next_obs), play.obs).max(axis=1)))


@pytest.mark.slow
def test_a_long_chain_errs_by_rounding_alone():
    """The step of ``swimmer15`` that misses the bound in float32 is as true as others in float64."""
    program = "from tests.envs.test_dmc import median_error; print(median_error('swimmer-swimmer15', float))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1e-6


def test_a_walker_that_lands_flat_is_a_tie_in_mujoco_itself():
    """Why ``begin`` bends the legs: from a state 1e-8 away C itself ends elsewhere by a tenth and more."""
    import mujoco

    env, draw = _original("walker-run"), np.random.default_rng(0)
    model = env.physics.model.ptr
    low, high = model.actuator_ctrlrange.T

    def landed(action, bend, noise):
        data = mujoco.MjData(model)
        data.qpos[3:] += bend * np.arange(1, model.nq - 2)
        data.qpos[:] += noise
        data.qvel[1] = 2  # rootx
        data.ctrl[:] = (low + high + (high - low) * action) / 2
        mujoco.mj_step(model, data, env._n_sub_steps)
        return data.qvel

    def apart(bend):
        found = []
        for _ in range(20):
            action = draw.uniform(-1, 1, model.nu)
            noise = 1e-8 * draw.standard_normal(model.nq)
            found.append(np.abs(landed(action, bend, noise) - landed(action, bend, 0.0)).max())
        return np.quantile(found, 0.9)

    assert apart(0.0) > 0.1
    assert apart(0.02) < 1e-4


@pytest.mark.parametrize("task", TASKS)
def test_steps_follow_each_other_as_in_dm_control(task):
    """Five steps by ourselves from each state; what a state carries from step to step is enough.

    Where bodies collide, errors grow tenfold with a step, so this holds for the middle of the states only.
    """
    env, step, play = prepared(task)
    count = 5
    place = np.arange(STATES) % EPISODE
    whole = place + count <= EPISODE
    obs, reward = followed(env, step, play, count)
    assert np.median(obs[whole]) <= 1e-3
    assert np.median(reward[whole]) <= 1e-4


@pytest.mark.parametrize("task", every_task(["pendulum-swingup"]))  # a cheetah settles for 200 steps
def test_resets_are_distributed_as_in_dm_control(task):
    """Mean and spread of every component of the first observation, over as many resets on both sides."""
    count = 400 if task == "cheetah-run" else 2000
    env, original = envs.make(f"dmc/{task}"), _original(task)
    state, ours = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), count))
    theirs = np.stack([flat(original.reset()) for _ in range(count)])
    assert env.spec.obs_shape == ours.shape[1:] == theirs.shape[1:]
    assert env.spec.episode_length == original._step_limit == 1000
    assert env.spec.action_dim == original.action_spec().shape[0]
    assert env.spec.dt == pytest.approx(original.control_timestep())
    assert sum(x.nbytes for x in jax.tree.leaves(state)) / count < 1024  # a lane's
    assert_same_distribution(ours, theirs)


MOVING = ("finger-turn_easy", "finger-turn_hard", "fish-swim", "manipulator-bring_ball")
MOVING += ("reacher-easy", "reacher-hard", "swimmer-swimmer6", "swimmer-swimmer15")


@pytest.mark.parametrize("task", MOVING)
def test_a_scene_has_the_target_where_dm_control_has_it(task):
    import mujoco

    name = "target_ball" if task.startswith("manipulator") else "target"
    mark = "target_mark" if task.startswith("finger") else name
    scene, place, env = dmc.load(task), dmc.place(task), _original(task)
    for _ in range(3):
        env.reset()
        (there,) = goal(task, env)
        for field, value in place(scene, there).items():
            getattr(scene, field)[:] = value
        mujoco.mj_kinematics(scene, drawn := mujoco.MjData(scene))
        geom, theirs = drawn.geom(mark), env.physics.data.ptr
        their = theirs.site(name) if task.startswith("finger") else theirs.geom(name)
        np.testing.assert_allclose(geom.xpos, their.xpos, atol=1e-6)
        np.testing.assert_allclose(geom.xmat, their.xmat, atol=1e-6)
        if task.startswith("swimmer"):
            light = env.physics.model.ptr.light("target_light")
            np.testing.assert_allclose(scene.light("target_light").pos, light.pos, atol=1e-6)


def test_only_tasks_with_a_goal_move_a_target():
    for task in envs.tasks("dmc"):
        env = _original(task)
        assert (task in MOVING) == bool(goal(task, env))
        assert dmc.place(task) is not None or not goal(task, env)


@pytest.mark.parametrize("task", ["finger-turn_easy", "finger-turn_hard", "finger-spin"])
def test_the_scene_of_a_finger_has_geoms_for_the_sites_that_are_to_be_seen(task):
    """Rays meet no sites. All else is as dm_control has it."""
    scene, original = dmc.load(task), _original(task).physics.model.ptr
    for name in ("tip", "target"):
        mark, site = scene.geom(f"{name}_mark"), original.site(name)
        for drawn, wanted in ((mark.size, site.size), (mark.rgba, site.rgba), (mark.matid, site.matid)):
            np.testing.assert_array_equal(drawn, wanted)
        assert scene.site(name).rgba[3] == 0
    for i in range(original.ngeom):
        for field in ("pos", "quat", "size", "rgba", "matid"):
            ours, theirs = (getattr(model.geom(original.geom(i).name), field) for model in (scene, original))
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(scene.qpos0, original.qpos0)
    np.testing.assert_array_equal(scene.body_mass, original.body_mass)


OBSERVATIONS = {
    "acrobot-swingup": 6,
    "cheetah-run": 17,
    "finger-turn_hard": 12,
    "fish-swim": 24,
    "hopper-hop": 15,
    "hopper-stand": 15,
    "humanoid-run": 67,
    "humanoid-stand": 67,
    "humanoid-walk": 67,
    "pendulum-swingup": 3,
    "quadruped-run": 78,
    "quadruped-walk": 78,
    "reacher-hard": 6,
    "swimmer-swimmer6": 25,
    "walker-run": 24,
}


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=() if t in QUICK else pytest.mark.slow) for t in OBSERVATIONS]
)
def test_observations_have_the_sizes_of_the_papers_table(task):
    assert envs.make(f"dmc/{task}").spec.obs_shape == (OBSERVATIONS[task],)


def test_the_suite_has_the_benchmarking_set_and_the_quadruped():
    from dm_control import suite

    named = {"-".join(pair) for pair in suite.BENCHMARKING} | {"quadruped-walk", "quadruped-run"}
    assert set(envs.tasks("dmc")) == named


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"low": 0, "high": 1}, [0, 1, 1, 1, 0]),
        ({"low": 0, "high": 1, "margin": 1}, [0.1, 1, 1, 1, 0.1]),
        ({"low": 0, "high": 1, "margin": 2, "shape": linear, "at_margin": 0}, [0.5, 1, 1, 1, 0.5]),
        ({"low": 0, "high": 1, "margin": 2, "shape": quadratic, "at_margin": 0}, [0.75, 1, 1, 1, 0.75]),
        ({"low": 0, "high": 1, "margin": 1, "shape": long_tail}, [0.1, 1, 1, 1, 0.1]),
    ],
)
def test_tolerance(options, expected):
    value = tolerance(jnp.array([-1.0, 0.0, 0.5, 1.0, 2.0]), **options)
    np.testing.assert_allclose(value, expected, atol=1e-6)


def test_without_dm_control_the_extra_is_named(monkeypatch):
    remember.forget()  # which keeps the task where a test before made it
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(ValueError, match=r"dmc/cheetah-run needs dm_control: pip install 'popjax\[dmc\]'"):
        envs.make("dmc/cheetah-run")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dmc/cheetah-rum", {}, "did you mean 'cheetah-run'"),
        ("dmc/cheetah-run", {"time_limit": 3}, "no option 'time_limit'; .*episode_length"),
        ("dmc/cheetah-run", {"episode_length": "x"}, "option episode_length must be an integer, got 'x'"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(name, options, message):
    with pytest.raises(ValueError, match=message):
        envs.make(name, **options)


def test_listing_the_tasks_starts_no_physics():
    program = (
        "import sys; from popjax import envs; assert len(envs.tasks('dmc')) == 30; "
        "print(*(name for name in ('mujoco', 'dm_control', 'brax') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
