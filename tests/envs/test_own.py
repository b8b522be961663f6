"""Environments of users' own, by import path."""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import envs
from tests.support import close


def test_a_function_makes_an_environment_of_its_options():
    env = envs.make("tests.own", size=2)
    assert env.spec.name == "own/line"
    assert env.reset(jax.random.key(0))[1].shape == (2,)
    assert (env.origin.name, json.loads(env.origin.options)) == ("tests.own:make", {"size": 2})


@pytest.mark.parametrize(
    ("path", "task", "action"),
    [
        ("tests.own:pendulum", "Pendulum-v1", jnp.full(1, 0.5)),
        ("tests.own:cartpole", "CartPole-v1", jnp.int32(1)),
    ],
)
def test_an_environment_of_gymnax_is_adapted(path, task, action, key):
    env, other = envs.make(path), envs.make(f"gymnax/{task}")
    assert env.spec == other.spec._replace(name=path, highest_return=None)
    (state, obs), (mirror, seen) = env.reset(key), other.reset(key)
    close(obs, seen)
    close(env.step(state, action)[1], other.step(mirror, action)[1])
    if task == "Pendulum-v1":
        weak = envs.make(path, max_torque=1.0)
        moved = [env.step(env.reset(key)[0], action)[1].obs for env in (weak, env)]
        assert np.abs(moved[0] - moved[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("no_such_package.task", {}, "there is no module 'no_such_package'; correct the path"),
        ("tests.no_such_module:make", {}, "there is no module 'tests.no_such_module'"),
        ("tests.own:mak", {}, "module tests.own has no 'mak'; define it there"),
        ("tests.own", {"sise": 2}, "tests.own:make does not take the options {'sise': 2}"),
        ("tests.own:nothing", {}, "tests.own:nothing returns a value of type module; let it return a popjax"),
        ("tests.own", {"reward_axes": 1}, r"own/line: .*reward"),
        ("Pendulum-v1", {}, "named suite/task, got 'Pendulum-v1'"),
    ],
)
def test_what_is_wrong_with_an_environment_is_one_line(path, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        envs.make(path, **options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("legacy", "overrides is_terminal, .*; move the natural end to is_terminated"),
        ("dict_observed", "observation_space is a Dict; popjax needs a Discrete or a Box"),
        ("tuple_observed", "observation_space is a Tuple; popjax needs a Discrete or a Box"),
        ("dict_returned", "reset_env returns observations of type dict; popjax needs one array"),
        ("dict_of_actions", "action_space is a Dict; popjax needs a Discrete or a Box"),
        ("misshapen", r"observation_space has shape \(5,\), but .* of shape \(4, 4, 3\); correct one"),
        ("mistyped", "observation_space has dtype bool, but .* of dtype uint8; correct one"),
    ],
)
def test_what_is_wrong_with_an_environment_of_gymnax_is_one_line(path, message):
    with pytest.raises(ValueError, match=f"tests.own_gymnax:{path}.* {message}") as refusal:
        envs.make(f"tests.own_gymnax:{path}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("path", "dtype", "highest"),
    [("bytes_seen", jnp.uint8, 255), ("bools_seen", jnp.bool_, 1), ("levels_seen", jnp.float32, 3)],
)
def test_images_of_gymnax_keep_bytes_and_bools(path, dtype, highest):
    env = envs.make(f"tests.own_gymnax:{path}")
    obs = env.reset(jax.random.key(0))[1]
    assert obs.dtype == env.spec.obs_dtype == dtype
    assert obs.max() == highest


def test_discrete_values_are_counted_from_the_start_of_their_space():
    env = envs.make("tests.own_gymnax:counting")
    state, obs = env.reset(jax.random.key(0))
    assert (env.spec.action_dim, obs.tolist()) == (3, [0, 0, 1])
    for action in range(3):
        timestep = env.step(state, jnp.int32(action))[1]
        assert timestep.reward == action + 1
        assert timestep.obs.tolist() == np.eye(3)[action].tolist()


@pytest.mark.parametrize(("path", "length"), [("bytes_seen", 9), ("truncating", 5)])
def test_an_environment_of_gymnax_ends_by_its_own_truncation(path, length):
    env = envs.make(f"tests.own_gymnax:{path}")
    state, _ = env.reset(jax.random.key(0))
    ends = []
    for _ in range(length):
        state, timestep = env.step(state, jnp.int32(0))
        ends.append((bool(timestep.terminated), bool(timestep.truncated)))
    assert ends == [(False, False)] * (length - 1) + [(False, True)]


def test_a_module_that_fails_is_told_with_its_place(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import os\nx = 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"importing broken_module failed: ZeroDivision.*broken_module.py:2"):
        envs.make("broken_module")
    (tmp_path / "needy_module.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(ValueError, match=r"importing needy_module failed: ModuleNotFoundError"):
        envs.make("needy_module")


def test_a_function_is_called_anew_since_what_it_reads_may_have_changed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "edited_task.py").write_text(
        "import popjax\nSCALE = 1.0\n"
        "def make():\n    return popjax.make('probe/context', reward_scale=SCALE)\n"
    )

    def reward(env):
        return float(env.step(env.reset(jax.random.key(0))[0], jnp.ones(1))[1].reward)

    first = envs.make("edited_task")
    sys.modules["edited_task"].SCALE = 3.0
    assert reward(envs.make("edited_task")) == pytest.approx(3 * reward(first))


def test_what_is_changed_by_hand_has_no_origin():
    env = envs.make("probe/delay")
    assert envs.origin(env).name == "probe/delay"
    assert envs.origin(env._replace(step=lambda state, action: env.step(state, action))) is None
    assert envs.make("gymnax/Pendulum-v1", g=jnp.float32(9)).origin is None
    assert envs.make("gymnax/Pendulum-v1", g=np.float32(9)).origin.options == '{"g": 9.0}'


def test_what_a_function_returns_of_the_suites_keeps_its_name():
    env = envs.make("tests.own:heavy_pendulum", mass=3.0)
    assert env.origin.name == "gymnax/Pendulum-v1"
    assert env.origin.options == '{"m": 3.0}'


def test_options_of_all_tasks_are_those_of_own_ones_too():
    env = envs.make("tests.own", size=2, frame_stack=3)
    assert env.spec.obs_shape == (6,)
    assert json.loads(envs.origin(env).options) == {"frame_stack": 3, "size": 2}
