"""Remarks on a run beside its results, in the output and in config.json."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from popjax.agents import td3
from popjax.envs import make
from popjax.host import provenance
from popjax.host.runs.configuration import configuration
from popjax.host.runs.options import Options
from popjax.host.training import train
from popjax.methods import independent
from tests.host import tiny

PACKAGE = Path(provenance.__file__).parents[1]
ASK = "from popjax.host import provenance as here; print(here.git_commit(), here.git_dirty())"


def told(directory: Path, *command: str, **environment: str) -> str:
    """Return the output of a command that runs in ``directory``."""
    environment = os.environ | environment
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=True
    ).stdout


def git(directory: Path, *command: str) -> str:
    return told(directory, "git", "-c", "user.name=n", "-c", "user.email=e", *command).strip()


def origin(root: Path, **environment: str) -> list[str]:
    """Commit and changes that the package in ``root`` reports."""
    return told(root, sys.executable, "-c", ASK, PYTHONPATH=str(root), **environment).split()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a copy of the package."""
    root = tmp_path_factory.mktemp("checkout")
    git(root, "init", "-q")
    shutil.copytree(PACKAGE, root / "popjax")
    (root / ".gitignore").write_text("__pycache__\nsite-packages\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "all")
    return root


def test_a_checkout_has_its_commit_and_says_when_it_was_edited(checkout: Path):
    commit = git(checkout, "rev-parse", "HEAD")
    assert origin(checkout) == [commit, "False"]
    (checkout / "notes.txt").write_text("no part of the package")
    assert origin(checkout) == [commit, "False"]
    (checkout / "popjax" / "new.py").write_text("")
    assert origin(checkout) == [commit, "True"]


def test_a_checkout_of_another_user_has_its_commit(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    refused = subprocess.run(["git", "status"], cwd=checkout, capture_output=True, text=True, check=False)
    assert "dubious ownership" in refused.stderr
    assert origin(checkout)[0] == commit


def test_git_that_cannot_tell_leaves_commit_and_changes_unknown(checkout: Path, tmp_path: Path):
    """Not so for a package that is in no repository, or that pip installed."""
    (tmp_path / "git").write_text("#!/bin/sh\nexit 128\n")
    (tmp_path / "git").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert origin(checkout, PATH=path) == ["None", "None"]
    shutil.copytree(PACKAGE, tmp_path / "popjax")
    assert origin(tmp_path, PATH=path) == ["None", "False"]
    installed = checkout / "site-packages"
    shutil.copytree(PACKAGE, installed / "popjax", dirs_exist_ok=True)
    facts = installed / "popjax-0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: popjax\nVersion: 0\n")
    (facts / "direct_url.json").write_text('{"url": "u", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}')
    assert origin(installed, PATH=path) == ["c0ffee", "False"]
    shutil.rmtree(installed)


def test_git_that_takes_too_long_leaves_changes_unknown(checkout: Path, tmp_path: Path):
    slow = f'#!/bin/sh\ncase "$*" in *status*) sleep 9;; esac\nexec {shutil.which("git")} "$@"\n'
    (tmp_path / "git").write_text(slow)
    (tmp_path / "git").chmod(0o755)
    commit = git(checkout, "rev-parse", "HEAD")
    ask = ASK.replace("; print", "; here.PATIENCE = 1; print")
    path = f"{tmp_path}:{os.environ['PATH']}"
    answer = told(checkout, sys.executable, "-c", ask, PYTHONPATH=str(checkout), PATH=path)
    assert answer.split() == [commit, "None"]


def test_asking_for_changes_leaves_the_index_alone(checkout: Path):
    """Its lock, taken to refresh it, could make a commit of the user fail."""
    index, module = checkout / ".git" / "index", checkout / "popjax" / "version.py"
    os.utime(module, (1, 1))
    before = index.read_bytes()
    origin(checkout)
    assert index.read_bytes() == before
    git(checkout, "status")
    assert index.read_bytes() != before


def test_a_run_whose_changes_are_unknown_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provenance, "git_dirty", lambda: None)
    monkeypatch.setattr(provenance, "git_commit", lambda: None)
    env = make("probe/context")
    config = configuration(tiny.build(env), env, tiny.Hyper(), Options(env_steps=12), {}, None)
    assert config["git_dirty"] is None
    assert (
        "whether popjax has uncommitted changes to commit (unknown) is not recorded" in config["remarks"][0]
    )
    assert f"in {PACKAGE}: try git status there" in config["remarks"][0]


def test_a_package_inside_a_project_has_not_the_commit_of_the_project(checkout: Path):
    installed = checkout / "site-packages"
    shutil.copytree(PACKAGE, installed / "popjax")
    assert origin(installed) == ["None", "False"]


def built(warmup: int) -> Any:
    env = make("probe/endless")
    agent = td3.Config(hidden=(4,))
    config = independent.Config(agent=agent, warmup=warmup, batch=4, capacity=50, population=2)
    return independent.build(env, config), env


@pytest.mark.parametrize(("warmup", "warned"), [(20, True), (5, False)])
def test_a_budget_that_ends_before_learning_begins_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], warmup: int, warned: bool
):
    method, env = built(warmup)
    assert method.learning_starts == 2 * warmup
    train(method, env, env_steps=40, eval_every=40, eval_episodes=1, run_dir=tmp_path)
    assert ("learning begins after 40 environment steps" in capsys.readouterr().err) == warned
    remarks = json.loads((tmp_path / "config.json").read_text())["remarks"]
    assert any("nothing is learned" in line for line in remarks) == warned


def test_a_run_whose_bits_may_differ_says_so_at_its_start_and_when_it_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    env = make("probe/context")._replace(reproducible=False)
    method = tiny.build(env)
    for steps, resume in ((12, False), (24, True)):
        train(method, env, env_steps=steps, eval_every=12, eval_episodes=1, run_dir=tmp_path, resume=resume)
        assert "so may a resumed run and one that was never stopped" in capsys.readouterr().err
    remarks = json.loads((tmp_path / "config.json").read_text())["remarks"]
    assert any("probe/context does not compute the same bits every time" in line for line in remarks)


def test_a_run_shorter_than_the_interval_of_logs_records_its_end(tmp_path: Path):
    env = make("probe/context")
    result = train(tiny.build(env), env, env_steps=60, log_every=1_000, run_dir=tmp_path, quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["env_steps"] for row in rows] == [60]
    assert result.history.env_steps.tolist() == [[60]]
