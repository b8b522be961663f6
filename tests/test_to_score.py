"""Seconds to a score: medians over seeds, and a trainer that shows its policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import to_score


def row(seed: int, *, reached: bool, seconds: float) -> dict:
    scores = [[500, seconds / 2, -900.0], [1_000, seconds, -150.0]]
    said = {
        "task": "sac-pendulum",
        "trainer": "ours",
        "seed": seed,
        "reached": reached,
        "env_steps": 1_000,
        "seconds": seconds,
    }
    return said | {"first_chunk_seconds": seconds / 2, "scores": scores}


def test_a_run_that_never_reaches_the_score_counts_as_longer_than_all_others(tmp_path: Path):
    rows = [
        row(0, reached=True, seconds=10.0),
        row(1, reached=False, seconds=1.0),
        row(2, reached=True, seconds=30.0),
    ]
    numbers = {"env_steps": 1_000, "seconds": 30.0, "seconds_beyond_the_first_chunk": 15.0}
    whose = {"task": "sac-pendulum", "trainer": "ours", "seeds": 3, "reached": 2}
    assert to_score.medians(rows) == [whose | numbers]
    rows[2]["reached"] = False
    assert to_score.medians(rows)[0]["seconds"] is None
    to_score.draw(rows, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 5_000


def test_a_trainer_that_is_not_installed_is_recorded_as_that():
    assert to_score.run("sac-pendulum", "absent", 0, to_score.Arguments())["cannot"].startswith(
        "No module named"
    )


def test_episodes_are_scored_to_their_end():
    """A cart that is always pushed to the right drops its pole within 8 to 10 steps; a pendulum that hangs
    loses up to 16.3 a step."""
    import jax.numpy as jnp

    assert 8 <= to_score.scorer("CartPole-v1")(lambda obs: jnp.ones(len(obs), int)) <= 10
    assert -16.3 * 200 < to_score.scorer("Pendulum-v1")(lambda obs: jnp.zeros((len(obs), 1))) < -500


@pytest.mark.parametrize("task", ["sac-pendulum", pytest.param("ppo-cartpole", marks=pytest.mark.slow)])
def test_actions_are_the_tasks(task):
    """A policy of popjax covers the torques of Pendulum, -2 to 2 and no others, and both directions of
    CartPole."""
    import numpy as np

    from benchmarks.trainers import ours

    work = replace(to_score.TASKS[task].work, hidden=(8,), batch=4, capacity=64, lanes=4, steps=4)
    obs = np.random.default_rng(0).normal(scale=100, size=(1_000, 4 if work.task == "CartPole-v1" else 3))
    actions = np.asarray(ours.build(work).act(obs))
    if work.task == "CartPole-v1":
        assert set(actions) == {0, 1}
    else:
        assert actions.shape == (1_000, 1)
        assert np.abs(actions).max() <= 2
        assert actions.min() < -1.9
        assert actions.max() > 1.9


@pytest.mark.slow
def test_popjax_is_scored_by_its_own_policy(monkeypatch):
    """Random weights score about -1,200 to -1,500 in Pendulum; the scorer plays 200 steps of ten episodes."""
    asked = to_score.TASKS["sac-pendulum"]
    monkeypatch.setitem(
        to_score.TASKS, "sac-pendulum", replace(asked, work=replace(asked.work, iterations=50), env_steps=100)
    )
    found = to_score.run("sac-pendulum", "ours", 0, to_score.Arguments())
    assert not found["reached"]
    assert found["env_steps"] == 100
    assert all(-2_000 < score < -500 for _, _, score in found["scores"])
