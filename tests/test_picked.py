"""``evaluate.py``: an older checkpoint, the best policies, sampled actions, another option of the task."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from popjax import cli, envs
from popjax.cli import results
from popjax.host.deploy import reference_envs
from popjax.host.errors import Refused

OPTIONS = (
    "independent --env gymnax/Pendulum-v1 --env-option max_steps_in_episode=20 --config.agent td3"
    " --config.agent.hidden 8 --config.capacity 200 --config.batch 8 --config.warmup 20 --config.steps 10"
    " --eval-episodes 2 --eval-every 20 --checkpoint-every 20 --log-every 20 --env-steps 80 --seeds 2"
    " --keep-checkpoints 3 --hyper.exploration 0.5"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "run"
    assert cli.run([*OPTIONS.split(), "--run-dir", str(root)]) == 0
    return root


def evaluated(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    assert cli.evaluate([str(run), "--json", "--episodes", "3", *options]) == 0
    return json.loads(capsys.readouterr().out)


def refused(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert cli.evaluate([str(run), *options]) == 2
    return capsys.readouterr().err


def test_an_older_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for steps in (40, 60, 80):
        found = evaluated(run, capsys, "--checkpoint", str(steps))
        assert [seed["env_steps"] for seed in found["seeds"]] == [steps] * 2
    assert (
        evaluated(run, capsys)["mean"]
        == found["mean"]
        != evaluated(run, capsys, "--checkpoint", "40")["mean"]
    )
    assert "no checkpoint of 10 environment steps; it has 40, 60, 80" in refused(
        run, capsys, "--checkpoint=10"
    )
    assert "best or a number of environment steps, got 'last'" in refused(run, capsys, "--checkpoint", "last")


def test_the_best_policies(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    best = [
        max(
            (line for line in lines if line["member"] == member and line["env_steps"]),
            key=lambda x: x["return"],
        )
        for member in (0, 1)
    ]
    found = evaluated(run, capsys, "--checkpoint", "best")
    assert [seed["env_steps"] for seed in found["seeds"]] == [line["env_steps"] for line in best]
    one = evaluated(run, capsys, "--checkpoint", "best", "--member", "1")
    assert one["seeds"][0]["returns"] == pytest.approx(found["seeds"][1]["returns"])
    for row, seed in enumerate(found["seeds"]):
        if seed["env_steps"] in (40, 60, 80):
            whole = evaluated(run, capsys, "--checkpoint", str(seed["env_steps"]))
            assert whole["seeds"][row]["returns"] == seed["returns"]
    assert "no individuals: leave one out" in refused(
        run, capsys, "--checkpoint", "best", "--individual", "0"
    )


def test_sampled_actions(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    greedy, sampled = evaluated(run, capsys), evaluated(run, capsys, "--stochastic")
    assert not np.allclose(greedy["seeds"][0]["returns"], sampled["seeds"][0]["returns"])
    assert evaluated(run, capsys, "--stochastic") == sampled
    for option, value in (("--in", "gymnasium"), ("--video", "film.gif")):
        told = refused(run, capsys, "--stochastic", option, value)
        assert f"{option} shows policies that act greedily" in told


def test_options_that_a_users_function_gave_a_task_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({}, {"reward_scale": 0.1}):
        env = envs.make("tests.own:heavy_pendulum", mass=3.0, **options)
        run = SimpleNamespace(env=env, saved={"env": "tests.own:heavy_pendulum", "env_options": options})
        assert results._options(run) == {"m": 3.0}
        results._refuse_wrapped(run, "--in")
    repeats = envs.make("gymnax/Pendulum-v1", action_repeat=2)
    run = SimpleNamespace(env=repeats, saved={"env": "mine:make", "env_options": {}})
    with pytest.raises(Refused, match="--in plays the task without the run's action_repeat"):
        results._refuse_wrapped(run, "--in")


def test_the_original_of_a_task_that_a_users_function_changes_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference_envs, "make", lambda *_: None)
    plain = envs.make("gymnax/Pendulum-v1")
    changed = plain._replace(step=lambda *given: plain.step(*given))
    for env, name, told in (
        (plain, "gymnax/Pendulum-v1", ""),
        (changed, "mine:make", "what mine:make"),
    ):
        run = SimpleNamespace(env=env, saved={"env": name, "env_options": {}})
        results._transfer(SimpleNamespace(in_="gymnasium", episodes=1), run)
        err = capsys.readouterr().err
        assert told in err
        assert bool(told) == bool(err)


def test_other_options_of_the_task(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(run, capsys, "--env-option", "max_steps_in_episode=7")
    assert {length for seed in found["seeds"] for length in seed["lengths"]} == {7}
    assert "has no option 'length'" in refused(run, capsys, "--env-option", "length=7")
