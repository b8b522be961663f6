"""Policies in the original environments, against the libraries themselves."""

from __future__ import annotations

import json
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from popjax import cli
from popjax.cli import show
from popjax.cli.building import Loaded
from popjax.core import Choice, Env, Method, Spec
from popjax.host.deploy import reference_envs
from popjax.host.errors import Refused
from popjax.host.scaling import sweep


def env(name: str, obs: int = 4, episode_length: int = 30) -> Env:
    """As much of an environment as the host looks at to find its original."""
    nothing: Any = None
    return Env(nothing, nothing, Spec(name, (obs,), 1, episode_length))


def acting(act: Any) -> Method:
    """A method whose State is the policy's parameters [S, D]; ``act`` gives memory and action."""
    nothing: Any = None

    def choose(params: Any, memory: Any, obs: Any, key: Any, scale: Any) -> Choice:
        memory, action = act(params, memory, obs, key)
        return Choice(memory, action, action, jnp.float32(0))

    return Method(nothing, nothing, lambda state: state, choose, None, 1)


BALANCING = acting(lambda params, memory, obs, key: (memory, jnp.clip(obs @ params, -1, 1)[None]))
WEIGHTS = jnp.array([[0.3, 2.0, 0.3, 0.5], [0.0, 0.0, 0.0, 0.0]])  # one that balances, one that does nothing


def test_actions_are_rescaled_and_episodes_seeded_as_gymnasium_does():
    gymnasium = pytest.importorskip("gymnasium")
    theirs = gymnasium.make("InvertedPendulum-v5", max_episode_steps=5)
    ours = reference_envs.make(
        "gymnasium", env("gym/InvertedPendulum-v5", episode_length=5), {"episode_length": 5}
    )
    np.testing.assert_array_equal(ours.reset(3), np.float32(theirs.reset(seed=3)[0]))
    for t in range(5):
        obs, reward, terminated, truncated = ours.step(np.array([-0.1], np.float32))
        expected = theirs.step(np.array([-0.3], np.float32))  # the bounds are -3 and 3
        np.testing.assert_allclose(obs, expected[0], rtol=1e-6)
        assert (reward, terminated, truncated) == (expected[1], False, t == 4)


def test_policies_of_all_seeds_play_the_same_seeded_episodes():
    pytest.importorskip("gymnasium")
    copies = [reference_envs.make("gymnasium", env("gym/InvertedPendulum-v4"), {}) for _ in range(3)]
    returns, lengths = reference_envs.evaluate(BALANCING, copies, WEIGHTS, seed=1)
    assert returns.shape == lengths.shape == (2, 3)
    assert (lengths[0] == 30).all()  # until the time limit
    assert (returns == lengths).all()  # one for every step
    again = reference_envs.evaluate(BALANCING, copies, WEIGHTS[::-1], seed=1)[0]
    np.testing.assert_array_equal(again, returns[::-1])


def test_an_episode_that_has_ended_is_left_alone():
    def counting(end: int) -> reference_envs.Original:
        steps = []

        def reset(seed: int) -> np.ndarray:
            steps.clear()
            return np.zeros(1, np.float32)

        def step(action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
            assert len(steps) < end
            steps.append(action)
            return np.full(1, len(steps), np.float32), float(action[0]), len(steps) == end, False

        return reference_envs.Original(reset, step)

    method = acting(lambda params, memory, obs, key: (memory, obs))  # so the reward is the time
    returns, lengths = reference_envs.evaluate(method, [counting(2), counting(5)], jnp.zeros((1, 1)))
    assert lengths.tolist() == [[2, 5]]
    assert returns.tolist() == [[1, 10]]


def test_dm_control_is_flattened_in_its_order_and_ends_by_the_limit():
    suite = pytest.importorskip("dm_control.suite")
    task = env("dmc/cartpole-swingup", obs=5, episode_length=7)
    copy = reference_envs.make("dm_control", task, {"episode_length": 7})
    theirs = suite.load("cartpole", "swingup", task_kwargs={"random": 3})
    np.testing.assert_allclose(copy.reset(3), np.concatenate(list(theirs.reset().observation.values())))
    for t, action in enumerate([1.0, -0.5, 0.25, 0.9, -1.0, 0.1, 0.6], 1):
        obs, reward, *ended = copy.step(np.full(1, action, np.float32))
        if t < 7:  # their own limit is further away
            timestep = theirs.step([action])
            np.testing.assert_allclose(obs, np.concatenate(list(timestep.observation.values())), rtol=1e-5)
            assert reward == pytest.approx(timestep.reward)
        assert ended == [False, t == 7]
    assert not np.array_equal(copy.reset(3), copy.reset(4))


def test_a_simulation_that_diverges_ends_its_episode(monkeypatch: pytest.MonkeyPatch):
    control = pytest.importorskip("dm_control.rl.control")
    copy = reference_envs.make("dm_control", env("dmc/cartpole-swingup", obs=5, episode_length=7), {})
    copy.reset(0)

    def diverge(*_: Any) -> None:
        raise control.PhysicsError("diverged")

    monkeypatch.setattr(control.Environment, "step", diverge)
    obs, *rest = copy.step(np.zeros(1, np.float32))
    assert rest == [0.0, True, False]
    np.testing.assert_array_equal(obs, np.zeros(5))


@pytest.mark.parametrize(
    ("library", "name", "part"),
    [
        ("gymnasium", "brax/hopper", "brax/hopper has no original"),
        ("dm_control", "gymnax/Pendulum-v1", "has no original"),
        ("dm_control", "gym/Hopper-v4", "not a task of dm_control; use --in gymnasium"),
        ("gymnasium", "dmc/cheetah-run", "not a task of gymnasium; use --in dm_control"),
        ("gymnasium", "gym/InvertedPendulum-v5", r"shape \(4,\) in gymnasium and \(9,\) in popjax"),
    ],
)
def test_what_cannot_be_compared_is_refused(library: str, name: str, part: str):
    if "observes" in part:
        pytest.importorskip("gymnasium")
    with pytest.raises(Refused, match=part) as refusal:
        reference_envs.make(library, env(name, obs=9), {})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("library", "name", "extra"),
    [
        ("gymnasium", "gym/Hopper-v4", r"popjax\[gym\]"),
        ("gymnasium", "atari/pong", r"popjax\[gym\]"),  # ale-py brings no Gymnasium
        ("dm_control", "dmc/cheetah-run", r"popjax\[dmc\]"),
    ],
)
def test_a_missing_library_is_named(library: str, name: str, extra: str, monkeypatch: pytest.MonkeyPatch):
    for loaded in [library, *(module for module in sys.modules if module.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, loaded, None)
    with pytest.raises(Refused, match=extra):
        reference_envs.make(library, env(name), {})


def test_both_returns_are_shown_side_by_side(tmp_path: Any, capsys: pytest.CaptureFixture[str]):
    saved = {"method": "tiny", "env": "gym/Hopper-v4"}
    run = Loaded(None, None, None, None, saved, sweep.grid(5, 2, {}), [10, 10])
    here = show.Played(np.array([[100.0, 300], [0, 0]]), np.full((2, 2), 9))
    there = show.Played(np.array([[100.0, 200], [1, 1]]), np.full((2, 2), 8), "gymnasium")
    show.transfer(run, here, there)
    out = capsys.readouterr().out
    assert "-25.0 %" in out
    assert "in gymnasium" in out
    show.evaluation_json(tmp_path, run, here, there, {"file": "a.mp4"})
    report = json.loads(capsys.readouterr().out)
    assert report["video"] == {"file": "a.mp4"}
    assert report["original"]["library"] == "gymnasium"
    first, second = (seed["original"] for seed in report["seeds"])
    assert (first["mean"], first["std"], first["difference_percent"]) == (150, 50, -25)
    assert second["difference_percent"] is None  # there is nothing to be per cent of


@pytest.mark.slow
def test_on_the_command_line(tmp_path: Any, monkeypatch: Any, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("warp")
    pytest.importorskip("gymnasium")
    monkeypatch.setitem(cli.METHODS, "tiny", "tests.host.tiny")
    task = ["--env", "gym/InvertedPendulum-v4", "--env-option", "episode_length=40"]
    root = str(tmp_path / "run")
    assert cli.run(["tiny", *task, "--env-steps", "120", "--run-dir", root]) == 0
    film = tmp_path / "film.gif"
    capsys.readouterr()
    assert cli.evaluate([root, "--in", "gymnasium", "--video", str(film), "--episodes", "20", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    seed = report["seeds"][0]
    spread = max(seed["std"], seed["original"]["std"], 1.0)
    assert abs(seed["mean"] - seed["original"]["mean"]) < spread  # standard errors are a fifth of it
    assert film.stat().st_size > 10_000
    assert report["video"]["length"] <= 40
