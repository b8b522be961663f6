"""From pixels: every method that plays them trains by a command, goes on as if it had not stopped, is
filmed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("dm_control")

from popjax.agents import drq
from popjax.cli import building
from popjax.envs import pixels
from popjax.methods import ce, independent, sunrise
from tests.support import equal

SMALL = (
    "--env", "pixels/pendulum-swingup", "--env-option", "size=31", "--env-option", "episode_length=10",
    "--env-steps", 48, "--eval-every", 24, "--eval-episodes", 1,
    "--config.warmup", 20, "--config.batch", 4, "--config.capacity", 40,
)  # fmt: skip
COMMANDS = {
    "drq": ("independent", *SMALL, "--config.agent.hidden", 8, "--config.agent.latent", 5),
    "ce": ("ce", *SMALL, "--config.learner.hidden", 8, "--config.drive.bank-size", 20),
    "replica": ("ce", *SMALL, "--config.learner.hidden", 8, "--config.drive", "none"),
    "rnd": ("ce", *SMALL, "--config.learner.hidden", 8, "--config.drive", "rnd", "--config.drive.hidden", 8),
    "sunrise": ("sunrise", *SMALL, "--config.agent.hidden", 8),
}
PROGRAM = "from popjax import cli; raise SystemExit(cli.run())"


def trained(directory: Path, *words: Any) -> Any:
    """The run that a process of its own has trained."""
    command = [sys.executable, "-c", PROGRAM, *map(str, words), "--run-dir", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return building.load(directory)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_method_that_goes_on_ends_as_if_it_had_not_stopped(name: str, tmp_path: Path) -> None:
    """24 steps, saved, and 24 more in a new process equal 48, bit for bit."""
    command = COMMANDS[name]
    whole = trained(tmp_path / "whole", *command)
    half = [*command]
    half[half.index("--env-steps") + 1] = 24
    assert trained(tmp_path / "parts", *half).env_steps == [24]
    parts = trained(tmp_path / "parts", *command, "--resume")
    assert parts.env_steps == whole.env_steps == [48]
    equal(parts.state, whole.state)
    fresh = jax.jit(whole.method.init)(jax.random.key(0), whole.method.hyper)
    before, after = (
        jax.tree.leaves(whole.method.policy(s)) for s in (fresh, jax.tree.map(lambda x: x[0], whole.state))
    )
    assert not all(map(np.array_equal, before, after))
    assert whole.state.frames.pixels.dtype == np.uint8
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["env_steps"] == 48
    if name == "drq":
        film = [sys.executable, "-c", "from popjax import cli; raise SystemExit(cli.evaluate())"]
        film += [str(tmp_path / "whole"), "--episodes", "1", "--video", str(tmp_path / "film.gif")]
        done = subprocess.run(film, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "film.gif").stat().st_size > 10_000


def test_constants_of_a_task_from_pixels_are_those_of_its_paper() -> None:
    alone = independent.preset("pixels/cheetah-run")
    assert alone is not None
    assert (alone.env_steps, alone.config.capacity, alone.config.warmup) == (250_000, 250_000, 1_000)
    assert (alone.config.population, alone.config.batch, alone.config.updates) == (1, 256, 1)
    assert isinstance(alone.config.agent, drq.Config)
    for method in (ce, sunrise):
        found = method.METHOD.preset("pixels/walker-run")
        assert found is not None
        assert (found.env_steps, found.config.capacity, found.config.warmup) == (500_000, 500_000, 1_000)
        assert (found.config.population, found.config.lanes, found.config.updates_per_step) == (2, 1, 1.0)
    assert ce.METHOD.preset("pixels/walker-run").hyper.learner.max_grad_norm == 20  # type: ignore[union-attr]
    assert sunrise.METHOD.preset("pixels/walker-run").hyper.agent.max_grad_norm == 20  # type: ignore[union-attr]
    assert ce.METHOD.preset("dmc/walker-run") is sunrise.METHOD.preset("dmc/walker-run") is None
    assert pixels.choices("pixels/cartpole-swingup") == 125_000
