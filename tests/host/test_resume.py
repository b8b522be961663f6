"""What --resume takes: nothing yet, other intervals, numbers of another kind; and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import cli
from popjax.cli import jax_setup
from popjax.envs import make
from popjax.host import provenance
from popjax.host.errors import Refused
from popjax.host.runs import Result, member_subset
from popjax.host.scaling import shard
from popjax.host.training import program_store, train
from tests.host import tiny
from tests.host.test_train import OPTIONS

ENV = make("probe/context")
METHOD = tiny.build(ENV)
TINY = ["tiny", "--env", "probe/context", "--env-steps", "24", "--log-every", "12"]


def run(root: Path | None, env_steps: int, **more: Any) -> Result:
    return train(METHOD, ENV, env_steps=env_steps, run_dir=root, **(OPTIONS | more))


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(cli.METHODS, "tiny", "tests.host.tiny")
    monkeypatch.chdir(tmp_path)


def config(root: str) -> dict[str, Any]:
    return json.loads((Path(root) / "config.json").read_text())


@pytest.mark.parametrize(
    "other",
    [
        {"checkpoint_every": 60, "quiet": False},
        {"checkpoint_every": 100_000, "eval_every": 40, "quiet": False},
        {"eval_episodes": 3, "quiet": False},
        {"log_every": 12, "quiet": False},
    ],
)
def test_how_often_a_run_is_looked_at_may_change(
    other: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = run(None, 360)
    run(tmp_path / "run", 240)
    resumed = run(tmp_path / "run", 360, resume=True, **other)
    assert resumed.summary["state_sha256"] == run(None, 360).summary["state_sha256"]
    assert straight.summary["state_sha256"] == resumed.summary["state_sha256"]
    said = capsys.readouterr().err
    for name, value in other.items():
        if name != "quiet":
            assert f"--{name.replace('_', '-')} {OPTIONS[name]} -> {value}" in said
            assert config("run")["options"][name] == value


@pytest.mark.parametrize("number", [np.float32(0.1), np.float64(0.1), jnp.float32(0.1), np.array(0.1, "f4")])
def test_a_number_is_the_same_whatever_it_came_as(number: Any) -> None:
    run(Path("run"), 120, hyper=tiny.Hyper(rate=number))
    assert config("run")["hyper"]["rate"] == 0.1
    run(Path("run"), 240, hyper=tiny.Hyper(rate=0.1), resume=True)
    old = config("run")
    old["hyper"]["rate"] = float(np.float32(0.1))  # as runs were described before
    Path("run/config.json").write_text(json.dumps(old))
    run(Path("run"), 360, hyper=tiny.Hyper(rate=number), resume=True)
    with pytest.raises(Refused, match=r"--hyper.rate 0.1 -> 0.1001"):
        run(Path("run"), 360, hyper=tiny.Hyper(rate=0.1001), resume=True)


@contextmanager
def setting(name: str, value: Any) -> Iterator[None]:
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("jax_default_matmul_precision", "highest", "unset -> highest"),
        ("jax_threefry_partitionable", False, "True -> False"),
        ("jax_default_prng_impl", "unsafe_rbg", "threefry2x32 -> unsafe_rbg"),
        ("jax_random_seed_offset", 7, "0 -> 7"),
    ],
)
def test_settings_of_jax_that_decide_numbers_are_compared(name: str, value: Any, told: str) -> None:
    run(Path("run"), 120)
    with setting(name, value), pytest.raises(Refused) as refusal:
        run(Path("run"), 240, resume=True)
    assert f"{name.upper()} {told} (old -> new)" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    old = config("run")
    del old["jax"]  # as runs were described before
    Path("run/config.json").write_text(json.dumps(old))
    run(Path("run"), 240, resume=True)
    assert config("run")["jax"][name.upper()] == getattr(jax.config, name)


def test_flags_of_xla_that_decide_numbers_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    run(Path("run"), 120)
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=x {flags}")
    run(Path("run"), 120, resume=True)
    monkeypatch.setenv("XLA_FLAGS", f"--xla_gpu_deterministic_ops=true {flags}")
    with pytest.raises(Refused, match="XLA_FLAGS unset -> --xla_gpu_deterministic_ops=true"):
        run(Path("run"), 240, resume=True)


def test_determinism_is_asked_of_xla_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x --xla_gpu_deterministic_ops=true")
    assert cli.run([*TINY, "--deterministic", "--run-dir", "run"]) == 0
    assert os.environ["XLA_FLAGS"].split() == ["--xla_dump_to=x", *jax_setup.DETERMINISTIC]
    assert config("run")["jax"]["XLA_FLAGS"] == " ".join(sorted(jax_setup.DETERMINISTIC))


def test_flags_of_xla_in_a_file_count_as_those_in_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA reads a value without a leading hyphen as a file's name, and would take flags after it for part."""
    Path("flags").write_text("--xla_dump_to=x\n--xla_gpu_deterministic_ops=true\n")
    monkeypatch.setenv("XLA_FLAGS", "flags")
    assert provenance.jax_settings()["XLA_FLAGS"] == "--xla_gpu_deterministic_ops=true"
    before = program_store._settings()
    jax_setup.compute_deterministically()
    assert os.environ["XLA_FLAGS"].split() == ["--xla_dump_to=x", *jax_setup.DETERMINISTIC]
    monkeypatch.setenv("XLA_FLAGS", "flags")
    Path("flags").write_text("--xla_force_host_platform_device_count=3")
    assert program_store._settings() != before
    told: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(jax.config, "update", lambda *change: told.append(change))
        patch.setattr(shard, "cores", lambda: 2)
        shard.divide_cpu("2")
    assert told == []  # the flag divides it


def test_a_file_of_flags_that_is_missing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "xla_gpu_deterministic_ops=true")
    assert cli.run([*TINY, "--run-dir", "run"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: XLA_FLAGS=xla_gpu_deterministic_ops=true does not begin with a hyphen")
    assert said.count("\n") == 1
    assert not Path("run").exists()


@pytest.mark.parametrize("more", [[], ["--sweep", "config.capacity=10,20"], ["--seeds", "2", "--slice", "1"]])
def test_one_command_begins_and_continues(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As the script of a job has it that is requeued."""
    command = [*TINY, *more, "--run-dir", "run", "--resume"]
    for _ in range(2):
        assert cli.run(command) == 0
    said = capsys.readouterr().err
    assert said.count("run holds no run yet: starting from the beginning") == 1


def test_one_command_begins_and_continues_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*TINY, "--seeds", "2", "--run-dir", "two"]) == 0
    longer = [argument.replace("24", "48") for argument in TINY]
    command = [*longer, "--seeds", "2", "--members", "1:2", "--from", "two", "--run-dir", "one", "--resume"]
    assert cli.run(command) == 0
    assert "resuming at generation 2" in capsys.readouterr().err
    assert cli.run(command) == 0
    assert "has already finished" in capsys.readouterr().err
    # It has begun: another State to begin with would have no effect.
    assert cli.run([argument.replace("two", "two@1") for argument in command]) == 2
    assert "was begun with --from two, and --resume continues it" in capsys.readouterr().err
    assert cli.run([*longer, "--seeds", "2", "--from", "one", "--run-dir", "two", "--resume"]) == 2
    assert "two was begun without --from" in capsys.readouterr().err


def test_records_without_a_description_are_no_run_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*TINY, "--run-dir", "run"]) == 0
    Path("run/config.json").unlink()
    assert cli.run([*TINY, "--run-dir", "run", "--resume"]) == 2
    assert "there is no run/config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ["--sweep=hyper.rate=0.1,0.1"],
        ["--config.capacity=0"],
        ["--eval-every=0"],
        ["--env-steps=3"],
        ["--seed=-1"],
        ["--members=7:9"],
    ],
)
@pytest.mark.parametrize("more", [[], ["--sweep=config.uneven=true,false"], ["--from=two"]])
def test_a_refused_command_leaves_nothing(wrong: list[str], more: list[str]) -> None:
    if more == ["--from=two"]:
        if wrong == ["--config.capacity=0"]:
            pytest.skip("the run that is copied has one")
        assert cli.run([*TINY, "--run-dir", "two"]) == 0
    argv = [
        argument
        for argument in TINY
        if not (wrong == ["--env-steps=3"] and argument in ("--env-steps", "24"))
    ]
    assert cli.run([*argv, *more, *wrong, "--run-dir", "run"]) == 2
    assert not Path("run").exists()


def test_what_is_refused_late_blocks_no_corrected_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep of which no run has begun, and a copy of which nothing was trained."""
    sweep = [*TINY, "--sweep", "config.capacity=10,20", "--run-dir", "run"]
    with monkeypatch.context() as patch:
        patch.setattr("popjax.host.training.start.memory.available_bytes", lambda _: 10)
        assert cli.run(sweep) == 1
        assert Path("run/index.json").exists()
    assert cli.run([*TINY, "--sweep", "config.capacity=30,40", "--run-dir", "run"]) == 0
    assert cli.run([*TINY, "--run-dir", "one"]) == 0
    copy = [*TINY, "--from", "one", "--run-dir", "copy"]
    with monkeypatch.context() as patch:
        patch.setattr("popjax.host.training.start.memory.available_bytes", lambda _: 10)
        assert cli.run(copy) == 2
    assert not Path("copy").exists()
    assert cli.run([*copy, "--hyper.rate", "0.5"]) == 2  # the copy would be another run than it was
    assert cli.run(copy) == 0


def test_a_copy_that_was_killed_half_way_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run(Path("one"), 120)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(member_subset.checkpoint, "write_arrays", killed)
        with pytest.raises(KeyboardInterrupt), member_subset.detached(Path("one"), Path("copy"), None):
            pass
    with member_subset.detached(Path("one"), Path("copy"), None):
        pass
    assert sorted(path.name for path in Path("copy").iterdir()) == sorted(
        path.name
        for path in Path("one").iterdir()
        if path.name not in ("summary.json", "curve.png", "tensorboard", "lock")
    )
    shutil.rmtree("one")
    run(Path("copy"), 240, resume=True)
