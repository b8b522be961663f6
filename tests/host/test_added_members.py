"""A run that has begun gets more seeds or more values of a sweep: only those that are missing are trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popjax import cli
from popjax.envs import make
from popjax.host.checkpoints import checkpoint
from popjax.host.errors import Refused
from popjax.host.runs import Result, added_members, best_policies, log, rundir
from popjax.host.training import train
from tests.host import tiny
from tests.host.test_train import OPTIONS, lines
from tests.support import slow_except

ENV = make("probe/context")
METHOD = tiny.build(ENV, tiny.Config(uneven=True))


def run(root: Path | None, **more: Any) -> Result:
    return train(METHOD, ENV, run_dir=root, **({"env_steps": 240} | OPTIONS | more))


def digests(result: Result) -> dict[str, str]:
    return {
        m.identity: row["state_sha256"]
        for m, row in zip(result.members, result.summary["members"], strict=True)
    }


def records(root: Path, name: str) -> list[tuple[Any, ...]]:
    """Return member, generation, steps and seed of every record, sorted."""
    found = ((row["member"], row["generation"], row["env_steps"], row["seed"]) for row in lines(root / name))
    return sorted(found)


RATES = {"hyper.rate": [0.1, 0.3]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"seeds": 2}, {"seeds": 3}),
        ({}, {"seeds": 2}),
        ({"seed": 2}, {"seed": 1, "seeds": 3}),
        ({"swept": {"hyper.rate": [0.3]}}, {"swept": RATES}),
        ({"swept": RATES, "seeds": 1}, {"swept": RATES, "seeds": 2}),
        (
            {"swept": {"hyper.rate": [0.3], "hyper.poison_at": [-1.0]}},
            {"swept": {"hyper.rate": [0.1, 0.3], "hyper.poison_at": [-1.0, -2.0]}},
        ),
    ],
)
def test_what_is_added_is_trained_and_what_is_there_stays(
    before: dict[str, Any], after: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All is as if the run had been asked for like that from the start; chunks end where they would have."""
    first = run(tmp_path / "run", **before)
    whole = run(tmp_path / "whole", **after)
    grown = run(tmp_path / "run", resume=True, **after | {"quiet": False})
    said = capsys.readouterr().err
    assert "members are added" in said
    assert "->" in said
    assert digests(first).items() <= digests(whole).items()
    assert digests(grown) == digests(whole)
    np.testing.assert_allclose(grown.returns, whole.returns, rtol=1e-5)
    assert records(tmp_path / "run", "eval.jsonl") == records(tmp_path / "whole", "eval.jsonl")
    assert {row["member"] for row in lines(tmp_path / "run/metrics.jsonl")} == set(range(len(whole.members)))
    again = run(tmp_path / "run", resume=True, **after | {"env_steps": 480})
    longer = run(tmp_path / "whole", resume=True, **after | {"env_steps": 480})
    assert digests(again) == digests(longer)


def test_members_that_were_stopped_half_way_go_on_beside_those_that_begin(tmp_path: Path) -> None:
    run(tmp_path, env_steps=120, seeds=2)
    grown = run(tmp_path, seeds=3, resume=True)
    assert digests(grown) == digests(run(None, seeds=3))


def test_a_failed_member_stays_so_in_its_new_place(tmp_path: Path) -> None:
    poison = {"hyper.poison_at": [25.0, -1.0]}
    first = run(tmp_path, env_steps=360, swept=poison)
    grown = run(tmp_path, env_steps=360, swept={"hyper.poison_at": [-3.0, 25.0, -1.0]}, resume=True)
    assert [row["status"] for row in grown.summary["members"]] == ["finished", "failed", "finished"]
    assert digests(first).items() < digests(grown).items()


def same(root: Path, other: Path) -> None:
    """Two directories have the same members under the same numbers, with the same records and policies."""
    for name in ("eval.jsonl", "metrics.jsonl"):
        assert records(root, name) == records(other, name)
    with np.load(root / "best.npz") as ours, np.load(other / "best.npz") as theirs:
        for name in ("member", "number", "env_steps"):
            assert ours[name].tolist() == theirs[name].tolist()
        for name in set(theirs.files) - {"member"}:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)
    rows = [json.loads((path / "summary.json").read_text())["members"] for path in (root, other)]
    told = [[(row["member"], row["seed"], row["numbers"], row["state_sha256"]) for row in x] for x in rows]
    assert told[0] == told[1]


UNEVEN = {"hyper.rate": [0.1, 0.3], "hyper.poison_at": [-1.0, -2.0]}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"swept": RATES}, {"swept": {"hyper.rate": [0.3, 0.1]}}),
        ({"seeds": [0, 1]}, {"seeds": [1, 0]}),
    ],
    ids=["values", "seeds"],
)
def test_members_may_be_given_in_another_order(
    before: dict[str, Any], after: dict[str, Any], tmp_path: Path
) -> None:
    run(tmp_path / "run", **before)
    run(tmp_path / "whole", **after)
    run(tmp_path / "run", resume=True, **after)  # nothing is left to train
    same(tmp_path / "run", tmp_path / "whole")
    run(tmp_path / "run", resume=True, env_steps=480, **before)
    run(tmp_path / "never", **before)
    run(tmp_path / "never", resume=True, env_steps=480, **before)
    same(tmp_path / "run", tmp_path / "never")


def test_names_of_members_do_not_depend_on_the_order_of_axes_in_a_resumed_run(tmp_path: Path) -> None:
    run(tmp_path / "run", swept=UNEVEN)
    run(tmp_path / "run", resume=True, env_steps=480, swept=dict(reversed(UNEVEN.items())))
    run(tmp_path / "never", swept=UNEVEN)
    run(tmp_path / "never", resume=True, env_steps=480, swept=UNEVEN)
    same(tmp_path / "run", tmp_path / "never")


@pytest.mark.parametrize("then", slow_except([(0.1, 0.3)], [(0.1, 0.3), (0.3,), (0.5, 0.3)]))
@pytest.mark.parametrize(
    ("module", "struck", "call"),
    [
        (added_members, "_grow_checkpoint", 0),
        (added_members, "_grow_checkpoint", 1),
        (best_policies, "arrange", 0),
        (log, "drop_after", 1),
        (rundir, "write_config", 0),
    ],
)
def test_growing_may_be_interrupted(
    module: Any,
    struck: str,
    call: int,
    then: tuple[float, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever command continues: the same, the first one, or one that adds something else."""
    run(tmp_path / "run", swept={"hyper.rate": [0.3]}, seeds=2)
    step, calls = getattr(module, struck), iter(range(10))

    def killed(*arguments: Any) -> None:
        if next(calls) == call:
            raise KeyboardInterrupt
        step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, struck, killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", swept=RATES, seeds=2, resume=True)
    run(tmp_path / "run", swept={"hyper.rate": then}, seeds=2, resume=True)
    run(tmp_path / "whole", swept={"hyper.rate": then}, seeds=2)
    same(tmp_path / "run", tmp_path / "whole")


def test_the_best_policies_of_earlier_versions_keep_their_members(tmp_path: Path) -> None:
    """They were recorded by number alone."""
    first = run(tmp_path, swept={"hyper.rate": [0.3]})
    with np.load(tmp_path / "best.npz") as file:
        old = {name: file[name].copy() for name in file.files if name != "member"}
    np.savez(tmp_path / "best.npz", **old)
    grown = run(None, swept=RATES, env_steps=24).members
    for _ in range(2):
        best_policies.arrange(tmp_path / "best.npz", first.members, grown)
    with np.load(tmp_path / "best.npz") as file:
        for name in set(old) - {"number"}:
            np.testing.assert_array_equal(file[name][1], old[name][0])
        assert file["number"].tolist() == [0, 1]
        assert file["return"][0] == -np.inf


def test_members_are_never_taken_away(tmp_path: Path) -> None:
    run(tmp_path, seeds=3)
    before = checkpoint.generations(tmp_path / "checkpoints")
    for fewer in ({"seeds": 2}, {"seed": 1, "seeds": 3}, {"seeds": 3, "swept": RATES}):
        with pytest.raises(Refused, match="was run with other options"):
            run(tmp_path, resume=True, **fewer)
    assert checkpoint.generations(tmp_path / "checkpoints") == before


TINY = ["tiny", "--env", "probe/context", "--env-steps", "24", "--log-every", "12", "--run-dir", "run"]


@pytest.mark.parametrize(
    ("before", "after", "count"),
    [
        (["--seeds=2"], ["--seeds=3"], 3),
        pytest.param(
            ["--sweep=config.capacity=10,20"], ["--sweep=config.capacity=10,20,30"], 3, marks=pytest.mark.slow
        ),
        (["--sweep=config.capacity=10,20"], ["--sweep=config.capacity=10,20", "--seeds=2"], 4),
        (["--sweep=config.capacity=10,20"], ["--sweep=config.capacity=10,20", "--checkpoint-every=12"], 2),
        pytest.param(["--seeds=2", "--slice=1"], ["--seeds=3", "--slice=1"], 3, marks=pytest.mark.slow),
    ],
)
def test_the_command_line_adds(
    before: list[str], after: list[str], count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(cli.METHODS, "tiny", "tests.host.tiny")
    monkeypatch.chdir(tmp_path)
    assert cli.run([*TINY, *before]) == 0
    assert cli.run([*TINY, *after, "--resume"]) == 0
    rows = json.loads(Path("run/summary.json").read_text())["members"]
    assert len(rows) == count
    assert {row["status"] for row in rows} == {"finished"}
    if "--sweep" in before[0]:
        assert cli.run([*TINY, "--sweep=config.capacity=10", "--resume"]) == 2  # one program is no directory
