"""The sink to Weights & Biases: what it logs, and that it works without a network."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from popjax import cli
from popjax.host.history import Evaluation, History
from popjax.host.tracking import rows


def test_what_is_logged_of_a_member() -> None:
    metrics = {"fitness": np.array([[[1.0, 3.0]], [[5.0, 7.0]]]), "loss": np.array([[0.5], [0.25]])}
    made = (Evaluation(4, 1, 10, (1.0, 2.0), (5, 7), 2), Evaluation(4, 1, 12, (8.0, 8.0), (5, 5), 3))
    history = History(np.array([[1], [1]]), np.array([[10], [12]]), metrics, made)
    assert list(rows(history, 1, 3)) == [
        {"env_steps": 12, "metrics/fitness/mean": 6, "metrics/fitness/max": 7, "metrics/loss": 0.25},
        {"env_steps": 12, "eval/return": 8, "eval/length": 5},
    ]


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


def test_without_the_package_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(cli.METHODS, "tiny", "tests.host.tiny")
    assert cli.run([*TINY, "--run-dir", str(tmp_path / "run"), "--wandb", "x"]) == 2
    assert "pip install 'popjax[tracking]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
