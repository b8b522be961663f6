"""One command, several programs: what it asks for, and the directory of runs that comes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from popjax import cli
from popjax.cli import building, grid, training
from popjax.cli.program import understand
from popjax.host.errors import TooLarge
from popjax.host.scaling import memory, shard
from tests.test_cli import TINY, refused

BASE = ["tiny", "--env-steps", "240", "--eval-every", "120", "--checkpoint-every", "120"]


@pytest.fixture(autouse=True)
def _tiny_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(cli.METHODS, "tiny", "tests.host.tiny")
    monkeypatch.chdir(tmp_path)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--sweep", "hyper.rat=1,2"], ["hyper.rat: there is no such hyperparameter"]),
        (["--sweep", "hyper.rate="], ["--sweep hyper.rate needs values"]),
        (["--sweep", "hyper.rate=0.1,,0.2"], ["--sweep hyper.rate needs values"]),
        (["--sweep", "hyper.rate=0.1,fast"], ["--sweep hyper.rate", "'fast'"]),
        (["--sweep", "rate=0.1"], ["hyper.NAME=V1,V2", "'rate=0.1'"]),
        (["--sweep", "hyper.rate=1", "--sweep", "hyper.rate=2"], ["hyper.rate is given twice"]),
        (
            ["--sweep", "hyper.poison-at=1,2", "--sweep", "hyper.rate,hyper.poison_at=0.3:-1,0.4:-2"],
            ["--sweep hyper.poison_at is given twice"],
        ),
        (["--sweep", "hyper.rate,hyper.rate=1:2,3:4"], ["hyper.rate is given twice"]),
        (["--sweep", "hyper.rate=1,2", "--sweep", "hyper.rate=uniform(3,4)"], ["hyper.rate is given twice"]),
        (
            ["--sweep", "hyper.poison-at=uniform(1,2)", "--sweep", "hyper.poison_at=loguniform(1,2)"],
            ["hyper.poison_at is given twice"],
        ),
        (
            ["--sweep", "hyper.rate=1,2", "--hyper.rate", "0.5"],
            ["--hyper.rate is both given a value"],
        ),
        (["--hyper.poison_at=5", "--sweep", "hyper.rate,hyper.poison-at=1:2"], ["--hyper.poison-at is both"]),
        (["--hyper.rate", "0.5", "--sweep", "hyper.rate=uniform(0,1)"], ["--hyper.rate is both"]),
        (["--sweep", "config.capacity=10,20", "--config.capacity", "10"], ["--config.capacity is both"]),
        (["--sweep", "config.uneven=true,false", "--config.no-uneven"], ["--config.uneven is both"]),
        (["--sweep", "config.capacty=1,2"], ["did you mean --config.capacity?"]),
        (["--sweep", "config.capacity=10,0"], ["capacity", "at least 1"]),
        (["--sweep", "config.capacity=10,10"], ["config.capacity=10 is requested twice"]),
        (["--sweep", "config.capacity=10,20", "--hyper.rate", "fast"], ["--hyper.rate", "'fast'"]),
        (["--members", "3"], ["FIRST:END", "'3'"]),
        (["--members", "1:2"], ["--members 1:2 must lie in the members 0:1"]),
        (["--slice", "0"], ["--slice must be at least 1, got 0"]),
        (["--devices", "two"], ["--devices must be a number or all"]),
        (["--launcher", "cloud"], ["local, slurm or ray", "'cloud'"]),
        (["--processes", "2"], ["--coordinator"]),
        (["--retries", "2"], ["--retries are for --launcher slurm or ray"]),
        (["--from", "nowhere"], ["nowhere holds no run"]),
    ],
)
def test_what_is_no_sweep_is_told_in_one_line(
    argv: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused([*TINY, *argv], capsys)
    for part in parts:
        assert part in error
    assert not Path("runs").exists()


def test_values_out_of_range_name_the_number(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "independent",
        "--env",
        "probe/context",
        "--env-steps",
        "9000",
        "--sweep",
        "hyper.discount=0.9,2",
    ]
    assert "hyper.discount must be in [0, 1], got 2" in refused(argv, capsys)


def test_axes_become_arguments() -> None:
    argv = ["--env", "a/b", "c/d", "--seeds", "2", "--sweep", "config.hidden=64 64,8"]
    axes, rest = grid._axes([*argv, "--sweep", "hyper.x=1,2", "--sweep", "config.agent.flag=true,False"])
    assert rest == ["--seeds", "2", "--sweep", "hyper.x=1,2"]
    assert axes == {
        "env": [("a-b", ["--env", "a/b"]), ("c-d", ["--env", "c/d"])],
        "config.hidden": [("64x64", ["--config.hidden", "64", "64"]), ("8", ["--config.hidden", "8"])],
        "config.agent.flag": [("true", ["--config.agent.flag"]), ("False", ["--config.agent.no-flag"])],
    }
    words = ["--env=a/b", "c/d", "--seeds", "2", "--env", "e/f"]
    assert grid._values(words, "--env") == ([["a/b", "c/d"], ["e/f"]], ["--seeds", "2"])
    assert grid._axes(["--env", "a/b", "--sweep", "config.n-step=3"]) == (
        {},
        ["--env", "a/b", "--config.n-step", "3"],
    )


def test_a_sweep_of_numbers_is_one_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*TINY, "--seeds", "2", "--sweep", "hyper.rate=0.1,0.4"]
    assert cli.run(argv) == 0
    assert "hyper.rate 0.4, mean" in capsys.readouterr().out
    root = Path("runs/tiny-probe-context-sweep-seeds0to1")
    assert read(root / "config.json")["sweep"] == {"hyper.rate": [0.1, 0.4]}
    assert cli.evaluate([str(root), "--member", "3", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(row["member"], row["seed"], row["numbers"]) for row in shown["seeds"]] == [
        (3, 1, {"hyper.rate": 0.4})
    ]
    assert cli.evaluate([str(root), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)["seeds"]
    for name in ("lengths", "returns"):  # of the same episodes
        np.testing.assert_allclose(shown["seeds"][0][name], whole[3][name], rtol=1e-5)
    assert whole[3]["returns"] != whole[2]["returns"]
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.evaluate([str(root), "--member", "3"]) == 0
    assert "hyper.rate=0.4,seed1" in capsys.readouterr().out
    assert "--member must be in 0 to 3" in refused([str(root), "--member", "4"], capsys, cli.evaluate)
    loaded = building.load(root, 2)
    whole = building.load(root)
    np.testing.assert_array_equal(loaded.state.weight, whole.state.weight[2:3])
    error = refused(
        [*TINY, "--seeds", "2", "--sweep", "hyper.rate=0.1,0.5", "--run-dir", str(root), "--resume"], capsys
    )
    assert "--sweep.hyper.rate" in error


def test_a_member_is_continued_alone(capsys: pytest.CaptureFixture[str]) -> None:
    swept = [*BASE, "--env", "probe/context", "--seeds", "2", "--sweep", "hyper.rate=0.1,0.4"]
    assert cli.run([*swept, "--run-dir", "sweep"]) == 0
    alone = [*swept, "--members", "2:3", "--env-steps", "480", "--run-dir", "alone"]
    assert cli.run([*alone, "--from", "sweep"]) == 0
    assert cli.run([*swept, "--env-steps", "480", "--run-dir", "sweep", "--resume"]) == 0
    mine, theirs = read(Path("alone/summary.json"))["members"], read(Path("sweep/summary.json"))["members"]
    assert [(row["member"], row["numbers"]) for row in mine] == [(2, {"hyper.rate": 0.4})]
    np.testing.assert_allclose(mine[0]["final_return"], theirs[2]["final_return"], rtol=1e-5)
    rows = [json.loads(line) for line in Path("alone/eval.jsonl").read_text().splitlines()]
    assert {row["member"] for row in rows} == {2}
    assert [row["env_steps"] for row in rows] == [0, 120, 240, 360, 480]
    capsys.readouterr()
    assert "already holds a run" in refused([*alone, "--from", "sweep"], capsys)


def test_several_programs_make_a_directory_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*BASE, "--env", "probe/context", "probe/delay", "--sweep", "config.capacity=10,20"]
    assert cli.run([*argv, "--run-dir", "all"]) == 0
    names = [f"probe-{env},config.capacity={size}" for env in ("context", "delay") for size in (10, 20)]
    assert [run["directory"] for run in read(Path("all/index.json"))["runs"]] == names
    rows = read(Path("all/summary.json"))["members"]
    assert [row["run"] for row in rows] == names
    for name in names:
        assert read(Path("all") / name / "config.json")["config"]["capacity"] == int(name[-2:])
    capsys.readouterr()
    assert "already holds runs: add --resume" in refused([*argv, "--run-dir", "all"], capsys)
    fewer = [
        *BASE,
        "--env",
        "probe/context",
        "--sweep",
        "config.capacity=10,30",
        "--run-dir",
        "all",
        "--resume",
    ]
    assert "was made by another command" in refused(fewer, capsys)
    before = Path("all/index.json").read_text()
    changed = refused([*argv, "--run-dir", "all", "--resume", "--hyper.rate=0.9"], capsys)
    assert f"all/{names[0]} was begun with other options: nothing -> --hyper.rate 0.9" in changed
    assert Path("all/index.json").read_text() == before
    summary = Path("all") / names[0] / "summary.json"
    kept = summary.read_text()
    shorter = {"generations": 10, "env_steps_per_seed": [120]}  # of a shorter budget, as it were
    summary.write_text(json.dumps(json.loads(kept) | shorter))
    assert cli.run([*argv, "--run-dir", "all", "--resume"]) == 0  # finished all the same: nothing is run
    assert cli.run([*BASE, "--env", "probe/context", "--config.capacity", "10", "--resume",
                    "--run-dir", f"all/{names[0]}"]) == 0  # fmt: skip
    assert read(summary)["generations"] == json.loads(kept)["generations"]
    capsys.readouterr()
    assert "holds several runs" in refused(["all"], capsys, cli.evaluate)
    assert cli.evaluate([f"all/{names[1]}", "--json"]) == 0


def test_a_directory_of_runs_is_resumed_where_it_was_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*BASE, "--env", "probe/context", "--sweep", "config.capacity=10,20,30"]
    assert cli.run([*argv, "--run-dir", "straight"]) == 0
    done: list[Path] = []
    train_one = training.train_program

    def interrupted(program, root, resume):  # type: ignore[no-untyped-def]
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(root)
        return train_one(program, root, resume)

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(training, "train_program", interrupted)
    monkeypatch.setattr(cli.os, "_exit", leave)
    with pytest.raises(SystemExit):
        cli.run([*argv, "--run-dir", "stopped"])
    monkeypatch.setattr(training, "train_program", train_one)
    assert cli.run([*argv, "--run-dir", "stopped", "--resume"]) == 0
    assert "run 1 of 2" in capsys.readouterr().err  # the first is not run again
    digests = [
        [row["state_sha256"] for row in read(Path(root) / "summary.json")["members"]]
        for root in ("straight", "stopped")
    ]
    assert digests[0] == digests[1]


def test_seeds_and_intervals_are_free_to_change_in_a_directory_of_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = [*BASE, "--env", "probe/context", "--sweep", "config.capacity=10,20", "--run-dir", "all"]
    assert cli.run([*argv, "--seeds", "3", "7"]) == 0
    more = ["--seeds", "3", "7", "11", "--keep-checkpoints=3", "--stop-at-return", "-1e9", "--resume"]
    assert cli.run([*argv, *more]) == 0
    rows = read(Path("all/summary.json"))["members"]
    assert [row["seed"] for row in rows] == [3, 7, 11, 3, 7, 11]
    capsys.readouterr()
    asked = [*argv, "--hyper.rate", "0.9", "--seeds", "3", "7", "11", "--resume"]
    assert "nothing -> --hyper.rate 0.9" in refused(asked, capsys)


def test_a_run_that_fails_leaves_the_others_alone(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*BASE, "--env", "probe/context", "--seeds", "3", "--slice", "1", "--run-dir", "all"]
    assert cli.run([*argv, "--sweep", "hyper.poison-at=-1,5,-2", "--seeds", "1"]) == 1
    error = capsys.readouterr().err
    assert "losses.loss of seed 0 became NaN or infinite in generation 5" in error
    assert "1 of 3 runs failed: members1to1" in error
    rows = read(Path("all/summary.json"))["members"]
    assert [row["status"] for row in rows] == ["finished", "unfinished", "finished"]


def test_what_cannot_be_built_is_known_before_anything_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*BASE, "--env", "probe/context", "probe/action-discrete", "--run-dir", "all"]
    assert "continuous" in refused(argv, capsys)
    assert "no task 'value'" in refused([*argv[:-3], "probe/value", *argv[-2:]], capsys)
    assert not Path("all").exists()


def test_the_largest_slice_is_one_for_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [*BASE[1:], "--env", "probe/context", "--seeds", "12", "--devices", "4"]
    common = understand("tiny", argv).arguments.common
    monkeypatch.setattr(shard, "number", int)
    assert grid.largest_slice(common, TooLarge("", 11)) == 8
    with pytest.raises(TooLarge, match="needs 9 GB; 3 would fit at a time: use --devices 3"):
        grid.largest_slice(common, TooLarge("the run needs 9 GB", 3))
    assert grid.device_count(common, "ray") == 4
    assert grid.device_count(replace(common, devices="all"), "ray") == 1  # its workers find out


@pytest.mark.parametrize("by_hand", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_sweep_in_slices_has_the_members_of_the_whole(
    by_hand: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*BASE, "--env", "probe/context", "--seeds", "5", "--config.capacity", "100000"]
    assert cli.run([*argv, "--run-dir", "whole"]) == 0
    if not by_hand:
        monkeypatch.setattr(memory, "available_bytes", lambda device: 4_500_000)
    assert cli.run([*argv, "--run-dir", "parts", *(["--slice", "2"] if by_hand else [])]) == 0
    if not by_hand:
        assert "training 2 of 5 members at a time" in capsys.readouterr().err
    parts = ["members0to1", "members2to3", "members4to4"]
    assert [run["directory"] for run in read(Path("parts/index.json"))["runs"]] == parts
    whole, rows = (read(Path(root) / "summary.json")["members"] for root in ("whole", "parts"))
    assert [row["member"] for row in rows] == [row["member"] for row in whole] == list(range(5))
    np.testing.assert_allclose(
        [row["final_return"] for row in rows], [row["final_return"] for row in whole], rtol=1e-5
    )
    np.testing.assert_allclose(
        building.load("parts", 3).state.weight[0], building.load("whole", 3).state.weight[0], rtol=1e-5
    )
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**9)
    assert cli.run([*argv, "--run-dir", "parts", "--resume", *(["--slice", "2"] if by_hand else [])]) == 0


@pytest.mark.parametrize("again", [["--slice", "2"], []], ids=["slice", "recorded"])
def test_what_would_move_members_to_other_slices_is_refused(
    again: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Seeds vary fastest, so that with a further one the second slice would train others."""
    argv = [*BASE, "--env", "probe/context", "--run-dir", "parts"]
    rates = "--sweep=hyper.rate=0.1,0.2"
    assert cli.run([*argv, rates, "--seeds=2", "--slice=2"]) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("parts").rglob("*")}
    capsys.readouterr()
    told = refused([*argv, rates, "--seeds=3", "--resume", *again], capsys)
    assert "members2to3 was begun with hyper.rate=0.2,seed1, which this command would not train" in told
    assert "another --run-dir" in told
    assert {path: path.stat().st_mtime_ns for path in Path("parts").rglob("*")} == before
    assert cli.run([*argv, rates, "--seeds=2", "--resume", *again]) == 0
    assert cli.run([*argv, f"{rates},0.3", "--seeds=2", "--resume", *again]) == 0
    rows = read(Path("parts/summary.json"))["members"]
    assert [(row["numbers"]["hyper.rate"], row["seed"]) for row in rows] == [
        (rate, seed) for rate in (0.1, 0.2, 0.3) for seed in (0, 1)
    ]
