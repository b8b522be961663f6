"""Comparing with other trainers: what one cannot do is recorded, and the run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.trainers import Work

TINY = Work(iterations=2, hidden=(8,), batch=4, capacity=64)


def test_a_trainer_that_is_not_installed_is_recorded_as_that():
    row = peers.compare("absent", TINY, peers.Arguments())
    assert row["cannot"] == "not installed: No module named 'benchmarks.trainers.absent'"
    assert "ratio" not in row


def test_a_trainer_that_does_not_answer_is_recorded_as_that():
    assert peers.compare("ours", TINY, peers.Arguments(limit=0.01))["cannot"] == "no answer in 0.01 s"


def test_one_agent_a_process_is_what_some_trainers_are():
    row = peers.compare("sbx", Work(population=2), peers.Arguments())
    assert row["cannot"] in ("trains one agent a process", "not installed: No module named 'sbx'")


@pytest.mark.slow
def test_chunks_are_as_long_as_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(peers.HIDDEN, "sac", (8,))
    work = peers.sized("sac", 2, peers.Arguments(seconds=0.0))
    assert work == Work("sac", "Pendulum-v1", population=2, iterations=2, hidden=(8,))


@pytest.mark.slow
def test_popjax_beside_itself(tmp_path: Path):
    row = peers.compare("ours", TINY, peers.Arguments(repeats=2))
    assert len(row["ratios"]) == 2
    assert row["ratio"] > 0
    peers.draw([row], tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 5_000
