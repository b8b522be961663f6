"""Seconds to a score: medians over seeds, and a trainer that shows its policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import to_score


def row(seed: int, *, reached: bool, seconds: float) -> dict:
    scores = [[500, seconds / 2, -900.0], [1_000, seconds, -150.0]]
    said = {"trainer": "ours", "seed": seed, "reached": reached, "env_steps": 1_000, "seconds": seconds}
    return said | {"first_chunk_seconds": seconds / 2, "scores": scores}


def test_a_run_that_never_reaches_the_score_counts_as_longer_than_all_others(tmp_path: Path):
    rows = [
        row(0, reached=True, seconds=10.0),
        row(1, reached=False, seconds=1.0),
        row(2, reached=True, seconds=30.0),
    ]
    expected = {"env_steps": 1_000, "seconds": 30.0, "seconds_beyond_the_first_chunk": 15.0}
    assert to_score.medians(rows) == {"ours": expected}
    rows[2]["reached"] = False
    assert to_score.medians(rows)["ours"]["seconds"] is None
    to_score.draw(rows, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 5_000


def test_a_trainer_that_is_not_installed_is_recorded_as_that():
    assert to_score.run("absent", 0, to_score.Arguments())["cannot"].startswith("No module named")


@pytest.mark.slow
def test_popjax_is_scored_by_its_own_policy():
    """Random weights score about -1,200 to -1,500 in Pendulum; the scorer plays 200 steps of ten episodes."""
    found = to_score.run("ours", 0, to_score.Arguments(chunk=50, env_steps=100))
    assert not found["reached"]
    assert found["env_steps"] == 100
    assert all(-2_000 < score < -500 for _, _, score in found["scores"])
