"""Every method that plays Atari trains on it by a command."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("ale_py")

from popjax import cli
from popjax.cli import building
from tests.support import equal

SHORT = (
    "--env-option",
    "episode_length=40",
    "--env-option",
    "noops=2",
    "--env-steps",
    96,
    "--eval-every",
    96,
)
REPLAY = ("--config.batch", 4, "--config.capacity", 80)
COMMANDS = {
    "dqn": ("independent", "atari/pong", "--config.agent", "dqn", *REPLAY, "--config.warmup", 40),
    "a2c": ("onpolicy", "atari/pong", "--config.agent", "a2c", "--config.lanes", 2),
    "ppo": ("onpolicy", "atari/pong", "--config.agent", "ppo", "--config.lanes", 2, "--config.steps", 12,
            "--config.agent.policy-epochs", 2, "--config.agent.value-epochs", 2),
    "ca2e": ("ca2e", "atari/breakout", *REPLAY, "--config.nature-actors", 2, "--config.prior-actors", 1,
             "--config.local-buffer", 5, "--config.learning-starts", 30),
    "ce": ("ce", "atari/asterix", "--config.learner", "dqn", *REPLAY, "--config.warmup", 40,
           "--config.drive.bank-size", 20),
    "cdrl": ("cdrl", "atari/bowling", "--teacher-env", "atari/pong", "--config.lanes", 2,
             "--config.steps", 8),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_method_trains_on_a_game(name, tmp_path):
    method, game, *options = COMMANDS[name]
    command = [method, "--env", game, *SHORT, *options, "--eval-episodes", 1, "--run-dir", tmp_path]
    assert cli.run(list(map(str, command))) == 0
    loaded = building.load(tmp_path)
    assert loaded.env_steps == [96]
    fresh = jax.jit(loaded.method.init)(jax.random.key(0), loaded.method.hyper)
    before, after = (
        jax.tree.leaves(loaded.method.policy(s)) for s in (fresh, jax.tree.map(lambda x: x[0], loaded.state))
    )
    assert not all(map(np.array_equal, before, after)), "it has learned something"
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["env_steps"] == 96
    if name in ("dqn", "ca2e", "ce"):
        assert loaded.state.frames.pixels.dtype == np.uint8
    if name == "cdrl":
        assert loaded.env.spec.obs_shape == (42, 42, 1)
        assert loaded.saved["envs"]["teacher-env"] == ["atari/pong preset='universe'"]
    if name == "dqn":
        pytest.importorskip("cv2")
        assert loaded.saved["env_options"]["reward_clip"] == 1
        film = tmp_path / "film.gif"
        played = [str(tmp_path), "--episodes", "1", "--in", "gymnasium", "--video", str(film)]
        assert cli.evaluate(played) == 0
        assert film.stat().st_size > 10_000


@pytest.mark.slow
def test_ca2e_that_goes_on_in_a_new_process_ends_as_if_it_had_not_stopped(tmp_path):
    """48 steps, saved, and 48 more equal 96: games, frames, priorities and learner, bit for bit."""
    method, game, *options = COMMANDS["ca2e"]
    command = [str(x) for x in (method, "--env", game, *SHORT, *options, "--eval-episodes", 1)]
    command[command.index("--eval-every") + 1] = "48"
    half = [*command]
    half[half.index("--env-steps") + 1] = "48"
    program = "from popjax import cli; raise SystemExit(cli.run())"

    def train(arguments, directory):
        given = [*arguments, "--run-dir", str(tmp_path / directory)]
        done = subprocess.run([sys.executable, "-c", program, *given], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return building.load(tmp_path / directory)

    whole = train(command, "whole")
    assert train(half, "parts").env_steps == [48]
    parts = train([*command, "--resume"], "parts")
    assert parts.env_steps == whole.env_steps == [96]
    equal(parts.state, whole.state)
