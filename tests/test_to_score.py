"""Seconds to a score: medians over seeds, and a trainer that shows its policy."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import to_score, trainers
from benchmarks.trainers import Cannot, Training, Work


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
    numbers["seconds_for_1000_steps"] = 10.0  # half of 1, 10 and 30 seconds for the second 500 steps
    whose = {"task": "sac-pendulum", "trainer": "ours", "seeds": 3, "reached": 2}
    assert to_score.medians(rows) == [whose | numbers]
    rows[2]["reached"] = False
    assert to_score.medians(rows)[0]["seconds"] is None
    rows[2] = {"task": "sac-pendulum", "trainer": "ours", "seed": 2, "cannot": "no answer in 1 s"}
    assert to_score.medians(rows)[0]["seconds"] is None
    assert to_score.medians(rows[2:]) == [
        {"task": "sac-pendulum", "trainer": "ours", "cannot": "no answer in 1 s"}
    ]
    to_score.draw(rows, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 5_000


def test_a_trainer_that_is_not_installed_is_recorded_as_that():
    row = to_score.run("sac-pendulum", "absent", 0, to_score.Arguments())
    assert row["cannot"] == "not installed: No module named 'benchmarks.trainers.absent'"


def test_a_trainer_whose_policy_cannot_be_reached_has_no_score(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainers, "answering", nullcontext)
    monkeypatch.setattr(trainers, "build", lambda name, work: Training(lambda: 1))
    with pytest.raises(Cannot, match="shows no policy"):
        to_score.work("brax", asdict(Work()), {"score": 0.0, "env_steps": 1})


def test_nothing_is_drawn_where_no_trainer_has_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(to_score, "versions", lambda python: {})

    def run(task, name, seed, arguments):
        return {"task": task, "trainer": name, "seed": seed, "cannot": "-"}

    monkeypatch.setattr(to_score, "run", run)
    out = tmp_path / "scores.json"
    to_score.main(to_score.Arguments(trainers=("brax",), tasks=("sac-pendulum",), seeds=1, out=out))
    assert [row["cannot"] for row in json.loads(out.read_text())["medians"]] == ["-"]
    assert not out.with_suffix(".png").exists()


def test_episodes_are_scored_to_their_end():
    """A cart that is always pushed to the right drops its pole within 8 to 10 steps; a pendulum that hangs
    loses up to 16.3 a step."""
    import jax.numpy as jnp

    assert 8 <= to_score.scorer("CartPole-v1")(lambda obs: jnp.ones(obs.shape[:2], int)) <= 10
    score = to_score.scorer("Pendulum-v1")(lambda obs: jnp.zeros((*obs.shape[:2], 1)))
    assert -16.3 * 200 < score < -500


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Brax System")  # it says that it is no longer developed
def test_hopper_is_scored_to_its_time_limit():
    """Without torques it stands for all of the 1,000 steps, at 1 a step, and leans forward a little."""
    import jax.numpy as jnp

    score = to_score.scorer("brax/hopper")(lambda obs: jnp.zeros((*obs.shape[:2], 3)))
    assert score == pytest.approx(1_010, abs=5)


def test_the_score_of_a_population_is_the_mean_over_its_agents():
    """An agent that pushes to where the pole leans holds it longer than one that always pushes to the
    right."""
    import jax.numpy as jnp

    def leaning(obs):
        return (obs[..., 2] > 0).astype(int)

    def right(obs):
        return jnp.ones(obs.shape[:2], int)

    alone = to_score.scorer("CartPole-v1")
    both = to_score.scorer("CartPole-v1", 2)(lambda obs: jnp.concatenate([leaning(obs[:1]), right(obs[1:])]))
    assert alone(leaning) > 2 * alone(right)
    assert both == pytest.approx((alone(leaning) + alone(right)) / 2)


@pytest.mark.parametrize(
    "task",
    [
        "sac-pendulum-4",
        *(pytest.param(task, marks=pytest.mark.slow) for task in to_score.TASKS if task != "sac-pendulum-4"),
    ],
)
def test_actions_are_the_tasks(task):
    """Policies of popjax cover the torques of Pendulum, -2 to 2 and no others, those of Hopper, -1 to 1, both
    directions of CartPole and the three moves of Breakout; agents of a population act differently."""
    import numpy as np

    from benchmarks.trainers import ours

    work = replace(to_score.TASKS[task].work, hidden=(8,), batch=4, capacity=64, lanes=4, steps=4)
    features = {"CartPole-v1": 4, "Pendulum-v1": 3, "Breakout-MinAtar": 400, "brax/hopper": 11}
    size = (work.population, 1_000, features[work.task])
    obs = np.random.default_rng(0).normal(scale=100, size=size)
    actions = np.asarray(ours.build(work).act(obs))
    if work.population > 1:
        assert all((one != actions[0]).any() for one in actions[1:])
    if work.algorithm == "ppo":
        assert actions.shape == size[:2]
        assert set(actions.ravel()) == set(range(3 if work.task == "Breakout-MinAtar" else 2))
    else:
        torques, largest = {"Pendulum-v1": (1, 2), "brax/hopper": (3, 1)}[work.task]
        assert actions.shape == (*size[:2], torques)
        assert np.abs(actions).max() <= largest
        assert actions.min() < -0.95 * largest
        assert actions.max() > 0.95 * largest


def test_a_second_chunk_compiles_nothing():
    """Steps may return weakly typed numbers, as Brax's Hopper does."""
    import jax.numpy as jnp

    from benchmarks import trainers

    traced = []

    def step(state):
        traced.append(state)
        return jnp.where(state > 0, 1.0, 2.0)

    training = trainers.scanned(lambda key: jnp.float32(0), step, trainers.Work(iterations=2))
    training.chunk()
    once = len(traced)
    training.chunk()
    assert len(traced) == once > 0


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
