"""The sink to Weights & Biases: what it logs, and that it works without a network."""

from __future__ import annotations

import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popjax import cli
from popjax.host.runs.history import Evaluation, History, Scalars, Seconds
from popjax.host.runs.recorded_scalars import of_history


def test_what_is_logged_of_a_member() -> None:
    metrics = {"fitness": np.array([[[1.0, 3.0]], [[5.0, 7.0]]]), "loss": np.array([[0.5], [0.25]])}
    made = (Evaluation(4, 1, 12, (8.0, 8.0), (5, 5), 3),)
    history = History(
        np.array([[1], [1]]), np.array([[10], [12]]), metrics, Seconds(np.ones(1), np.ones(1)), made
    )
    assert list(of_history(replace(history, stopped=frozenset({0})), [2, 3])) == [
        Scalars(3, 12, {"metrics/fitness/mean": 6, "metrics/fitness/max": 7, "metrics/loss": 0.25}),
        Scalars(3, 12, {"eval/return": 8, "eval/length": 5}),
    ]
    assert [record.member for record in of_history(history, [2, 3])] == [2, 3, 3]


TINY = ["tiny", "--env", "probe/context", "--env-steps", "24", "--seeds", "2", "--log-every", "12"]


def test_a_run_is_tracked_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install 'popjax[tracking]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(cli.METHODS, "tiny", "tests.host.tiny")
    root = tmp_path / "run"
    assert cli.run([*TINY, "--run-dir", str(root), "--wandb", "popjax-tests"]) == 0
    files = sorted((root / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2  # one per member
    content = [file.read_bytes() for file in files]
    for part in (b"popjax-tests", b"eval/return", b"metrics/losses.loss", b"metrics/fitness/max"):
        assert all(part in text for text in content)
    assert {b"run seed0" in text for text in content} == {True, False}
    for part in (b"probe/context", b"checkpoint_every", b"poison_at", b"git_commit", b'"number":'):
        assert all(part in text for text in content), part  # all of config.json, and which member it is
    # The same member goes on in the same run of the project.
    longer = [argument.replace("24", "48") for argument in TINY]
    assert cli.run([*longer, "--run-dir", str(root), "--wandb", "popjax-tests", "--resume"]) == 0
    names = [file.stem for file in (root / "wandb").glob("offline-run-*/*.wandb")]
    assert len(set(names)) == 2


class Stub(types.ModuleType):
    """As much of wandb as is used; ``made`` has the arguments of every ``init``, ``logged`` rows by id and
    ``ended`` the codes with which runs finished, by name."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.made: list[dict[str, Any]] = []
        self.logged: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        self.ended: dict[str, int] = {}
        self.down = False

    def Settings(self, **given: Any) -> Any:
        return given

    def init(self, **given: Any) -> Any:
        self.made.append(given)
        (Path(given["dir"]) / "wandb" / f"run-20260101_000000-{given['id']}").mkdir(
            parents=True, exist_ok=True
        )
        rows = self.logged.setdefault(given["id"], [])

        def log(row: dict[str, Any], step: int) -> None:
            if self.down:
                raise ConnectionError("no route to host")
            assert not rows or step >= rows[-1][0], "W&B drops what goes back"
            rows.append((step, row))

        def finish(exit_code: int) -> None:
            self.ended[given["name"]] = exit_code

        return types.SimpleNamespace(log=log, define_metric=lambda *_, **__: None, finish=finish)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stub:
    monkeypatch.setitem(cli.METHODS, "tiny", "tests.host.tiny")
    monkeypatch.chdir(tmp_path)
    wandb = Stub()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return wandb


def longer(argv: list[str], *more: str) -> list[str]:
    return [argument.replace("24", "48") for argument in argv] + list(more)


def evaluated(rows: list[tuple[int, dict[str, Any]]]) -> list[int]:
    return sorted({step for step, row in rows if "eval/return" in row})


def test_a_run_is_known_by_what_it_is_and_not_by_its_path(stub: Stub) -> None:
    track = ["--wandb", "project"]
    assert cli.run([*TINY, *track, "--run-dir", "run"]) == 0
    Path("run").rename("moved")
    assert cli.run(longer(TINY, *track, "--run-dir", "moved", "--resume")) == 0
    first, second = ({given["id"] for given in made} for made in (stub.made[:2], stub.made[2:]))
    assert first == second
    assert [evaluated(rows) for rows in stub.logged.values()] == [[0, 24, 48]] * 2
    assert {step for rows in stub.logged.values() for step, _ in rows} == {0, 12, 24, 36, 48}
    shutil.rmtree("moved")
    assert cli.run([*TINY, *track, "--run-dir", "run"]) == 0
    assert not {given["id"] for given in stub.made[4:]} & first  # another run at the old place


def test_what_begins_late_is_sent_from_the_beginning(stub: Stub) -> None:
    """A run that was not tracked before, and a member that is continued alone."""
    assert cli.run([*TINY, "--run-dir", "two"]) == 0
    assert cli.run(longer(TINY, "--wandb", "project", "--run-dir", "two", "--resume")) == 0
    track = ["--wandb", "project", "--members", "1:2", "--from", "two", "--run-dir", "one"]
    assert cli.run([argument.replace("24", "72") for argument in TINY] + track) == 0
    whole = stub.logged[stub.made[0]["id"]], stub.logged[stub.made[2]["id"]]
    assert stub.made[2]["config"]["member"]["number"] == 1
    assert [evaluated(rows) for rows in whole] == [[0, 24, 48], [0, 24, 48, 72]]
    for logged in whole:
        steps = sorted({step for step, row in logged if "metrics/losses.loss" in row})
        assert steps == list(range(12, steps[-1] + 1, 12))
        assert {name for _, row in logged for name in row} >= {"metrics/fitness/mean", "metrics/fitness/max"}


def test_the_runs_of_a_sweep_are_one_group(stub: Stub) -> None:
    for root in ("sweep", "other"):
        argv = [*TINY, "--wandb", "project", "--sweep", "config.capacity=10,20", "--run-dir", root]
        assert cli.run(argv) == 0
    groups = [given["group"] for given in stub.made]
    assert len(set(groups[:4])) == len(set(groups[4:])) == 1
    assert groups[0] != groups[4]
    assert stub.made[0]["name"] == "sweep/config.capacity=10 seed0"
    assert len({given["id"] for given in stub.made}) == 8


def test_a_tracker_that_fails_is_one_line_and_the_state_is_saved(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.down = True
    argv = [*TINY, "--wandb", "project", "--run-dir", "run"]
    assert cli.run(argv) == 1
    said = capsys.readouterr().err
    assert "error: Weights & Biases failed (ConnectionError: no route to host)" in said
    assert "--resume" in said
    assert "Traceback" not in said
    assert set(stub.ended.values()) == {1}
    stub.down = False
    assert cli.run([*argv, "--resume"]) == 0
    assert stub.ended == {"run seed0": 0, "run seed1": 0}


def test_only_the_runs_of_failed_members_end_as_failed(stub: Stub) -> None:
    argv = [*TINY, "--wandb", "project", "--sweep", "hyper.poison_at=-1,2", "--run-dir", "run"]
    assert cli.run(argv) == 0
    codes = {name.rpartition("poison_at=")[2]: code for name, code in stub.ended.items()}
    assert codes == {"-1,seed0": 0, "-1,seed1": 0, "2,seed0": 1, "2,seed1": 1}


def test_without_the_package_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(cli.METHODS, "tiny", "tests.host.tiny")
    assert cli.run([*TINY, "--run-dir", str(tmp_path / "run"), "--wandb", "x"]) == 2
    assert "pip install 'popjax[tracking]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
