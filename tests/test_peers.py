"""Comparing with other trainers: what one cannot do is recorded, and the run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from benchmarks import peers, to_score, trainers
from benchmarks.trainers import Cannot, Work

TINY = Work(iterations=2, hidden=(8,), batch=4, capacity=64)


def test_a_trainer_that_is_not_installed_is_recorded_as_that():
    row = peers.compare("absent", TINY, peers.Arguments())
    assert row["cannot"] == "not installed: No module named 'benchmarks.trainers.absent'"
    assert "ratio" not in row


def test_a_trainer_that_does_not_answer_is_recorded_as_that():
    told = peers.compare("ours", TINY, peers.Arguments(limit=0.01))["cannot"]
    assert told == "popjax: no answer in 0.01 s"  # which is no fault of another trainer


def test_one_agent_a_process_is_what_some_trainers_are():
    row = peers.compare("sbx", Work(population=2), peers.Arguments())
    assert row["cannot"] in ("trains one agent a process", "not installed: No module named 'sbx'")


def test_an_algorithm_that_a_trainer_lacks_is_recorded_as_that():
    with pytest.raises(Cannot, match="has no TD3"):
        trainers.build("brax", Work("td3"))
    with pytest.raises(Cannot, match="in pairs"):
        trainers.build("ours", Work("es", population=3))


def test_steps_of_two_iterations_do_at_least_what_was_asked():
    work = Work("td3", iterations=3, population=5)
    training = trainers.scanned(lambda key: jnp.int32(0), lambda s: s + 1, work, lambda s, obs: s, each=2)
    assert (training.chunk(), training.act(None)) == (4 * 5, 2)


def test_an_error_is_recorded_as_that():
    row = peers.compare("ours", Work("sac", task="Tennis-v1"), peers.Arguments())
    assert row["cannot"] == "popjax: KeyError: 'Tennis-v1'"


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured = []

    def compare(peer, amount, arguments):
        measured.append((amount.population, peer))
        return {"algorithm": amount.algorithm, "population": amount.population, "peer": peer, "cannot": "-"}

    def sized(algorithm, population, arguments):
        if population == 4:
            raise Cannot("popjax: no memory")
        return Work(algorithm, population=population)

    for name, stub in {"compare": compare, "sized": sized, "versions": lambda python: {}}.items():
        monkeypatch.setattr(peers, name, stub)
    monkeypatch.setattr(peers, "limit", lambda: None)
    monkeypatch.setattr(peers, "PEERS", ("a", "b"))
    out = tmp_path / "peers.json"

    def run(*populations):
        peers.main(peers.Arguments(peers=("a", "b"), algorithms=("sac",), populations=populations, out=out))
        return json.loads(out.read_text())["rows"]

    (first, _) = run(1)
    rows = run(1, 2, 4)
    assert measured == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert [row["population"] for row in rows] == [1, 1, 2, 2, 4, 4]
    assert rows[0] == first | {"git_commit": rows[0]["git_commit"]}
    assert [row["cannot"] for row in rows[4:]] == ["popjax: no memory"] * 2


def test_operations_of_an_update_are_those_of_its_products():
    """About 16 forward passes of 66,816 weights, of 256 rows each."""
    assert peers.update_flops(Work()) == 16 * 2 * 256 * 66_816


def test_a_name_that_does_not_exist_is_refused_with_what_does():
    with pytest.raises(SystemExit, match=r"error: there is no 'rejay'; use one of .*rejax"):
        peers.main(peers.Arguments(peers=("rejay",)))
    with pytest.raises(SystemExit, match=r"error: there is no 'rejay'; use one of .*rejax"):
        to_score.main(to_score.Arguments(trainers=("rejay",)))


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
    peers.draw([row], tmp_path / "peers.png", {"flops_per_second": 1e9, "flops_per_update": 1e7})
    assert (tmp_path / "peers.png").stat().st_size > 5_000
