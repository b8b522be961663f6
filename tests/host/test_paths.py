"""Paths are never patterns, and names that are made of something are bounded and told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import eval_shape

from popjax.cli import grid, show
from popjax.host import paths
from popjax.host.checkpoints import checkpoint
from popjax.host.errors import Refused
from popjax.host.runs.options import Options


def test_home_is_expanded_and_missing_homes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.path("~/runs/a") == tmp_path / "runs/a"
    assert paths.path("a~b") == Path("a~b")
    with pytest.raises(Refused, match="write the path in full"):
        paths.path("~nobody-of-this-name/runs")


@pytest.mark.parametrize("url", ["s3://bucket/run", "hf://a/b", "file:///a", Path("gs://a/b"), "S3://a"])
def test_urls_are_refused(url: str | Path):
    with pytest.raises(Refused, match="is a URL, and paths are local"):
        paths.path(url)


@pytest.mark.parametrize("local", ["C:/runs/a", "c://runs", "runs/a:/b", "./s3:/a", "run:3", "lr=1:2/a"])
def test_colons_are_allowed_in_paths(local: str):
    assert paths.path(local) == Path(local)


def test_an_empty_path_is_refused():
    with pytest.raises(Refused, match=r"write \. for the working directory"):
        paths.path("")


def test_long_names_are_cut_and_told_apart_by_a_digest():
    long = ",".join(f"hyper.number{i}=0.12345678" for i in range(20))
    names = [paths.file_name(long + end) for end in ("1", "2")]
    assert len(set(names)) == 2
    assert all(len(name.encode()) <= paths.LONGEST and name.startswith("hyper.number0=") for name in names)
    assert paths.file_name("short") == "short"
    umlauts = paths.file_name("ü" * 200)
    assert len(umlauts.encode()) <= paths.LONGEST


def test_equal_names_of_different_things_get_a_digest():
    names = paths.distinct(["a-b", "a-b", "c", "d", "d"], ["a b", "a-b", "c", "d", "d"])
    assert len(set(names)) == 4
    assert names[2:] == ["c", "d", "d"]
    assert all(name.startswith("a-b-") for name in names[:2])


@pytest.mark.parametrize("name", ["lr[0.1]", "lr[/2]", r"a\b", "what*?", "50%20 #1", "ü{x}'\"$y"])
def test_checkpoints_lie_in_directories_of_any_name(tmp_path: Path, name: str):
    directory = tmp_path / name / "checkpoints"
    state = {"weights": jnp.arange(6.0).reshape(2, 3), "count": jnp.int32(3)}
    for generation in (1, 2):
        checkpoint.save(directory, generation, state, {"note": name})
    told: list[str] = []
    found: Any = checkpoint.restore_newest(directory, eval_shape(lambda: state), told.append)
    assert not told
    assert (found[0], found[2]) == (2, {"note": name})
    np.testing.assert_array_equal(found[1]["weights"], state["weights"])


def test_text_of_a_result_is_no_markup_and_paths_are_whole(capsys: pytest.CaptureFixture[str]):
    root = Path("project-with-a-long-name/" * 8) / "lr[/2] :smile: [bold]"
    row = {"run": "a[/b]", "member": 0, "seed": 0, "env_steps": 10, "final_return": 1.0}
    rows = [row | {"numbers": {"hyper.max_grad_norm": "inf", "hyper.actor_lr": 0.00012345678}}]
    show.results(rows, root)
    out = capsys.readouterr().out
    assert f"files: {root}\n" in out
    assert "a[/b] hyper.max_grad_norm inf, hyper.actor_lr 0.00012345678" in out


def test_programs_of_different_values_have_directories_of_their_own():
    class Common:
        slice = None
        options = Options()

    def names(*argv: str) -> list[str]:
        return [entry.directory for entry in grid.programs(argv, lambda _: Common())]

    found = names("--env", "probe/a-b", "--sweep", "config.x=a/b,a-b,c")
    assert len(set(found)) == 3
    assert "config.x=c" in found
    assert names("--env", "probe/a-b", "--env-steps", "9", "--sweep", "config.x=a/b,a-b,c") == found
    long = "x" * 300
    found = names("--env", "probe/a", "--sweep", f"config.x={long}1,{long}2")
    assert len(set(found)) == 2
    assert all(len(name) <= paths.LONGEST for name in found)
