"""Environments by name, and that adapters change nothing of what the libraries compute."""

from __future__ import annotations

import math

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import envs
from popjax.contract import check_env
from popjax.envs import make
from popjax.envs.episodic import episodic, rescale
from popjax.envs.options import keywords

# Pendulum and CartPole: [bound of the action]. MinAtar: pixels, discrete.
GYMNAX = {"Pendulum-v1": 2.0, "CartPole-v1": None, "Breakout-MinAtar": None}


@pytest.mark.parametrize("task", GYMNAX)
def test_gymnax_equals_the_library(task):
    """Same key, state and action: same observation, reward and flags, over 30 steps of random play."""
    bound = GYMNAX[task]
    env = make(f"gymnax/{task}")
    raw, params = gymnax.make(task)
    key, key_reset = jax.random.split(jax.random.key(7))
    obs, raw_state = raw.reset_env(key_reset, params)
    state, first = env.reset(jax.random.key(7))
    np.testing.assert_array_equal(first, np.asarray(obs, np.float32))
    assert first.shape == env.spec.obs_shape
    step, raw_step = jax.jit(env.step), jax.jit(raw.step_env)
    for t in range(30):
        key, key_step = jax.random.split(key)
        key_action = jax.random.fold_in(jax.random.key(1), t)
        if env.spec.discrete:
            action = raw_action = jax.random.randint(key_action, (), 0, env.spec.action_dim)
        else:
            action = jax.random.uniform(key_action, (env.spec.action_dim,), minval=-1)
            raw_action = bound * action
        obs, raw_state, reward, terminated, _ = raw_step(key_step, raw_state, raw_action, params)
        state, timestep = step(state, action)
        np.testing.assert_allclose(timestep.next_obs, obs, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(timestep.reward, reward, rtol=1e-6, atol=1e-6)
        assert bool(timestep.terminated) == bool(terminated)
        assert bool(timestep.truncated) == bool(raw.is_truncated(raw_state, params))
        if timestep.done:
            break
    assert env.spec.discrete == (bound is None)
    assert timestep.reward.dtype == jnp.float32
    assert timestep.next_obs.dtype == env.spec.obs_dtype


@pytest.mark.parametrize("task", ["Pendulum-v1", "CartPole-v1"])
def test_gymnax_equals_the_public_step_of_the_library(task):
    """The step users of gymnax call resets by itself; what it calls final observation is our successor."""
    env, (raw, params) = make(f"gymnax/{task}", max_steps_in_episode=12), gymnax.make(task)
    params = params.replace(max_steps_in_episode=12)
    state, _ = env.reset(jax.random.key(0))
    raw_state, action = state.inner[1], jnp.ones((), jnp.int32) if env.spec.discrete else jnp.array([0.5])
    step, ends = jax.jit(env.step), []
    for _ in range(12):
        native = action if env.spec.discrete else 2 * action
        _, raw_state, reward, terminated, truncated, info = raw.step(
            jax.random.key(0), raw_state, native, params
        )
        state, timestep = step(state, action)
        np.testing.assert_allclose(timestep.next_obs, info["final_observation"], rtol=1e-6, atol=1e-6)
        assert float(timestep.reward) == pytest.approx(float(reward), rel=1e-6)
        assert (bool(timestep.terminated), bool(timestep.truncated)) == (bool(terminated), bool(truncated))
        ends.append(bool(timestep.done))
        if ends[-1]:
            break
    assert ends[-1]
    # CartPole falls when always pushed one way, Pendulum never ends but by the limit.
    assert bool(timestep.terminated) == (task == "CartPole-v1")
    assert bool(timestep.truncated) == (task == "Pendulum-v1")


def test_brax_equals_the_library():
    import brax.envs

    env = make("brax/inverted_pendulum")
    with pytest.warns(UserWarning, match="Brax System"):
        raw = brax.envs.get_environment("inverted_pendulum", backend="mjx")
    raw_step, step, key = jax.jit(raw.step), jax.jit(env.step), jax.random.key(3)
    state, obs = jax.jit(env.reset)(key)
    raw_state = jax.jit(raw.reset)(key)
    np.testing.assert_allclose(obs, raw_state.obs, rtol=1e-6, atol=1e-7)
    ended = False
    for t in range(60):
        action = jax.random.uniform(jax.random.fold_in(key, t), (1,), minval=-1)
        # From our own state each time: the pendulum falls, and rounding errors grow with it.
        raw_state = raw_step(state.inner, action)
        state, timestep = step(state, action)
        np.testing.assert_allclose(timestep.next_obs, raw_state.obs, rtol=1e-5, atol=1e-5)
        assert float(timestep.reward) == pytest.approx(float(raw_state.reward))
        assert bool(timestep.terminated) == bool(raw_state.done > 0)
        assert not timestep.truncated
        ended = bool(timestep.terminated)
        if ended:
            break
    assert ended


@pytest.mark.parametrize("name", ["brax/inverted_pendulum", "gym/InvertedPendulum-v5"])
def test_a_simulation_that_diverges_ends_its_episode_and_nothing_else(name, key):
    env = make(name)
    state, _ = jax.jit(env.reset)(key)

    def lost(inner):
        physics = getattr(inner, "pipeline_state", inner)
        wild = {n: getattr(physics, n) * 0 + 1e9 for n in ("qd", "qvel") if hasattr(physics, n)}
        physics = physics.replace(**wild)
        return inner.replace(pipeline_state=physics) if hasattr(inner, "pipeline_state") else physics

    step = jax.jit(env.step)
    _, timestep = step(state.replace(inner=lost(state.inner)), jnp.ones(1))
    assert (timestep.reward, bool(timestep.terminated)) == (0, True)
    assert (timestep.next_obs == 0).all()
    _, timestep = step(state, jnp.ones(1))
    assert timestep.reward == 1
    assert not timestep.terminated


def test_brax_has_specs_and_falls_back_to_a_backend_that_the_task_has(capfd):
    env = make("brax/swimmer", episode_length=77)
    assert env.spec.episode_length == 77
    assert env.spec.action_dim == 2
    assert env.spec.dt == pytest.approx(0.04)
    printed = capfd.readouterr()
    assert "Brax System" not in printed.err
    assert "warp" not in printed.out


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gymnax/pendulum", {}, "did you mean 'Pendulum-v1'"),
        ("gimnax/Pendulum-v1", {}, "unknown suite 'gimnax'; did you mean 'gymnax/Pendulum-v1'"),
        ("gimnax/Pendlum-v1", {}, "unknown suite 'gimnax'; did you mean 'gymnax'"),
        ("gymnasium/Hopper-v4", {}, "unknown suite 'gymnasium'; did you mean 'gym/Hopper-v4'"),
        ("gym/CartPole-v1", {}, "no task 'CartPole-v1'; did you mean 'gymnax/CartPole-v1'"),
        ("probe/corridr", {}, "did you mean 'corridor'"),
        ("brax/hoper", {}, "did you mean 'hopper'"),
        ("corridor", {}, "named suite/task, got 'corridor'; did you mean 'probe/corridor'"),
        ("", {}, "named suite/task"),
        ("gymnax/Pendulum-v1", {"gravity": 1}, "no option 'gravity'; choose from .*max_torque"),
        ("probe/action", {"x": 1}, "no option 'x'"),
        ("brax/hopper", {"backend": "bullet"}, "no backend 'bullet'; choose from mjx"),
        ("brax/swimmer", {"backend": "mjx"}, "brax/swimmer: .*mjx"),
        (
            "brax/ant",
            {"colour": 1},
            "has no option 'colour'; choose from episode_length, .*n_frames",
        ),
        ("brax/ant", {"sys": 1}, "brax/ant has no option 'sys'"),
        ("brax/ant", {"helthy_reward": 1}, "no option 'helthy_reward'; did you mean 'healthy_reward'"),
        ("brax/ant", {"n_frames": 1.5}, "brax/ant: option n_frames must be an integer, got 1.5"),
        ("brax/hopper", {"healthy_z_range": 1}, "healthy_z_range must be two numbers, got 1"),
        ("brax/hopper", {"healthy_z_range": [math.nan, 1]}, "healthy_z_range must be .*infinite, got nan"),
        ("brax/hopper", {"n_frames": 0}, "brax/hopper: option n_frames must be at least 1, got 0"),
        ("brax/ant", {"use_contact_forces": True}, "brax/ant: use_contact_forces not implemented"),
        ("brax/ant", {"debug": True}, "brax/ant has no option 'debug'"),
        ("gymnax/Pendulum-v1", {"max_torque": "strong"}, "option max_torque must be a number, got 'strong'"),
        (
            "gymnax/CartPole-v1",
            {"max_steps_in_episode": 2.5},
            "max_steps_in_episode must be an integer, got 2",
        ),
        (
            "gymnax/Pendulum-v1",
            {"max_steps_in_episode": 3e9},
            "max_steps_in_episode must be from -2,147,483,647 to 2,147,483,647, got 3,000,000,000",
        ),
        ("gymnax/Pendulum-v1", {"frame_stack": 2**31}, "frame_stack must be from .*, got 2,147,483,648"),
        ("gymnax/DeepSea-bsuite", {"sise": 20}, "no option 'sise'; did you mean 'size'"),
        ("gymnax/DeepSea-bsuite", {"size": "big"}, "option size must be an integer, got 'big'"),
        ("gymnax/DeepSea-bsuite", {"size": 0}, r"gymnax/DeepSea-bsuite cannot be made with {'size': 0}: "),
        ("gymnax/FrozenLake-misc", {"map_name": "9x9"}, "map_name must be '4x4' or '8x8'"),
        ("gymnax/Breakout-MinAtar", {"use_minimal_action_set": 3}, "must be True or False, got 3"),
        ("gymnax/Acrobot-v1", {"available_torque": "x"}, r"available_torque must be numbers \[3\], got 'x'"),
        ("gymnax/Acrobot-v1", {"available_torque": [1.0, 2.0]}, r"available_torque must be numbers \[3\]"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


def test_options_may_be_written_as_the_command_line_reads_them():
    assert make("gymnax/Pendulum-v1", max_steps_in_episode=1e2).spec.episode_length == 100
    assert make("gymnax/BernoulliBandit-misc", max_steps_in_episode=50.0).spec.episode_length == 50
    assert make("gymnax/Pendulum-v1", reward_scale=3_000_000_000).spec.episode_length == 200
    env = make("gymnax/Acrobot-v1", available_torque=[-2, 0, 2])
    state, _ = jax.eval_shape(env.reset, jax.random.key(0))
    assert jax.eval_shape(env.step, state, jnp.int32(0))[1].reward.shape == ()


@pytest.mark.parametrize(
    ("task", "options", "obs_shape", "actions", "limit"),
    [
        ("DeepSea-bsuite", {"size": 20}, (20, 20), 2, 20),
        ("DeepSea-bsuite", {"size": 9, "max_steps_in_episode": 5}, (9, 9), 2, 5),
        ("Catch-bsuite", {"rows": 7}, (7, 5), 3, 1000),
        ("Breakout-MinAtar", {"use_minimal_action_set": False}, (10, 10, 4), 6, 1000),
        ("FrozenLake-misc", {"map_name": "8x8", "is_slippery": False}, (64,), 4, 200),
        ("FrozenLake-misc", {"desc": ["SF", "HG"]}, (4,), 4, 100),
        ("MemoryChain-bsuite", {"num_bits": 3.0}, (5,), 2, 1000),
    ],
)
def test_gymnax_takes_the_keywords_of_its_constructors(task, options, obs_shape, actions, limit):
    env = make(f"gymnax/{task}", **options)
    spec = env.spec
    assert (spec.obs_shape, spec.action_dim, spec.episode_length) == (obs_shape, actions, limit)
    check_env(env)


def test_no_option_of_a_gymnax_task_has_two_meanings():
    for task in envs.tasks("gymnax"):
        original, params = gymnax.make(task)
        assert not set(keywords(type(original).__init__)) & set(vars(params)), task


def test_a_place_among_sixteen_is_seen_as_one_number_of_sixteen(key):
    """Frozen Lake without slipping: one step down from the start at 0 leads to the place 4."""
    env = make("gymnax/FrozenLake-misc", is_slippery=False)
    state, obs = env.reset(key)
    assert (obs.argmax(), obs.sum()) == (0, 1)
    _, timestep = env.step(state, jnp.int32(1))
    assert (timestep.next_obs.argmax(), timestep.next_obs.sum()) == (4, 1)


def test_physics_may_differ_from_lane_to_lane(key):
    def fallen(gravity):
        env = make("gymnax/Pendulum-v1", g=gravity)
        state, _ = env.reset(key)
        return env.step(state, jnp.zeros(1))[1].next_obs

    obs = jax.vmap(fallen)(jnp.array([0.0, 10.0, 10.0]))
    assert not jnp.allclose(obs[0], obs[1])
    assert jnp.array_equal(obs[1], obs[2])


def test_brax_takes_the_options_of_all_environments():
    env, slow = make("brax/inverted_pendulum"), make("brax/inverted_pendulum", n_frames=4)
    assert slow.spec.dt == pytest.approx(2 * env.spec.dt)


def test_suites_and_tasks_list_what_exists():
    assert set(envs.suites()) >= {"gymnax", "brax", "probe"}
    assert {"Pendulum-v1", "CartPole-v1", "Breakout-MinAtar"} <= set(envs.tasks("gymnax"))
    assert {"hopper", "inverted_pendulum", "ant"} <= set(envs.tasks("brax"))
    assert "MNISTBandit-bsuite" not in envs.tasks("gymnax")  # it would download
    with pytest.raises(ValueError, match="unknown suite"):
        envs.tasks("nothing")


def test_actions_are_rescaled_to_the_bounds():
    native = rescale([-1, 0, -2], [3, 10, 2])
    assert native(jnp.full(3, -1.0)).tolist() == [-1, 0, -2]
    assert native(jnp.full(3, 1.0)).tolist() == [3, 10, 2]
    assert native(jnp.zeros(3)).tolist() == [1, 5, 0]


@pytest.mark.parametrize("limit", [0, 2**31])
def test_a_time_limit_that_is_no_positive_int32_is_refused(limit):
    spec = make("probe/delay").spec._replace(episode_length=limit)
    with pytest.raises(ValueError, match=f"must be from 1 to 2,147,483,647, got {limit}"):
        episodic(spec, None, None)


@pytest.mark.parametrize(
    ("low", "high"),
    [(-np.inf, 1), (-np.inf, np.inf), (0, np.nan), (-2e38, 2e38), (2e38, 3e38), (-1e300, 1e300)],
)
def test_bounds_between_which_float32_overflows_are_refused(low, high):
    assert np.isfinite(rescale([-1e38], [1e38])(jnp.full(1, 0.5))).all()
    with pytest.raises(ValueError, match="finite bounds"):
        rescale([low, 0], [high, 1])


@pytest.mark.parametrize(
    "name", ["gymnax/Pendulum-v1", "gymnax/CartPole-v1", "gymnax/Breakout-MinAtar", "probe/corridor"]
)
def test_a_step_returns_the_state_in_the_form_of_the_reset(name, key):
    """Structure, shapes, dtypes and weak types: otherwise a scan refuses it or compiles twice."""
    env = make(name)
    action = jnp.int32(0) if env.spec.discrete else jnp.zeros(env.spec.action_dim)
    state, _ = jax.eval_shape(env.reset, key)
    after, timestep = jax.eval_shape(env.step, state, action)
    jax.tree.map(lambda a, b: None, state, after)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
    assert timestep.obs.shape == env.spec.obs_shape
    assert timestep.terminated.dtype == timestep.truncated.dtype == bool


def probe_episode(task, action, seed=0):
    """[(obs, reward, next obs, terminated, truncated)] of one episode under a constant action."""
    env = make(f"probe/{task}")
    state, obs = env.reset(jax.random.key(seed))
    steps, done = [], False
    while not done:
        state, t = env.step(state, action)
        steps.append(
            (float(obs[0]), float(t.reward), float(t.next_obs[0]), bool(t.terminated), bool(t.truncated))
        )
        obs, done = t.obs, bool(t.done)
    return steps


A_QUARTER = jnp.array([0.25])


@pytest.mark.parametrize(
    ("task", "action", "expected"),
    [
        ("constant", A_QUARTER, [(0, 1, 0, True, True)]),
        ("delay", A_QUARTER, [(0, 0, 1, False, False), (1, 1, 1, True, True)]),
        ("action", A_QUARTER, [(0, 1 - 0.25**2, 0, True, True)]),
        ("action", jnp.array([0.5]), [(0, 1, 0, True, True)]),
        ("action-discrete", jnp.int32(0), [(0, 0, 0, True, True)]),
        ("action-discrete", jnp.int32(1), [(0, 1, 0, True, True)]),
        ("endless", A_QUARTER, [(1, 1, 1, False, False)] * 4 + [(1, 1, 1, False, True)]),
        ("corridor", jnp.array([0.75]), [(0, 0.75, 0.75, False, False), (0.75, 0.75, 1.5, True, False)]),
        (
            "corridor-discrete",
            jnp.int32(1),
            [(0, 0.5, 0.5, False, False), (0.5, 0.5, 1, False, False), (1, 0.5, 1.5, True, False)],
        ),
    ],
)
def test_probes_give_their_known_answers(task, action, expected):
    for got, want in zip(probe_episode(task, action), expected, strict=True):
        assert got == pytest.approx(want)


def test_probes_with_a_context_draw_it_and_reward_by_it():
    seen = set()
    for seed in range(8):
        ((obs, reward, *_),) = probe_episode("observation", A_QUARTER, seed)
        assert obs == reward
        seen.add(obs)
        ((obs, reward, *_),) = probe_episode("context", A_QUARTER, seed)
        assert reward == pytest.approx(1 - (0.25 - obs / 2) ** 2)
        assert probe_episode("context-discrete", jnp.int32(obs > 0), seed)[0][1] == 1
    assert seen == {-1, 1}


def test_a_corridor_walked_backwards_ends_by_the_limit():
    steps = probe_episode("corridor", jnp.array([-0.5]))
    assert len(steps) == 50
    assert steps[-1][3:] == (False, True)
