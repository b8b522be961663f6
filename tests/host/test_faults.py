"""A full disk, a directory that cannot be written, files that are gone: one line, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.envs import make
from popjax.host.checkpoints import checkpoint
from popjax.host.checkpoints.writer import Writer
from popjax.host.errors import CallbackFailed, NotSaved
from popjax.host.training import loop, train
from tests.host import tiny
from tests.host.test_checkpoint import example, shapes_of
from tests.host.test_train import OPTIONS

ROOT = Path(__file__).parents[2]
ENV = make("probe/context")
PROGRAM = "from popjax import cli; raise SystemExit(cli.run())"


def can_mount() -> bool:
    """Whether this user may mount a file system that nobody else sees."""
    tried = ["unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(tried, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


needs_mount = pytest.mark.skipif(not can_mount(), reason="cannot mount a file system of its own")


def within(script: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell script that may mount what it likes; ``$RUN`` trains."""
    options = ["tests.host.tiny", "--env=probe/context", *argv]
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", *options]
    run = f'"{sys.executable}" -c "{PROGRAM}"'
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RUN": run}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0]


@needs_mount
def test_a_full_disk_is_one_line_and_the_checkpoint_before_it_is_whole(tmp_path: Path) -> None:
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    script = f"""mount -t tmpfs -o size=4m none {disk}
        saved="{disk}/run/checkpoints/[1-9]*"
        (until ls $saved; do sleep 0.05; done; cat /dev/zero > {disk}/filler) >/dev/null 2>&1 &
        eval $RUN '"$@"'; code=$?; cp -r {disk}/run {kept}; exit $code"""
    options = {"env_steps": 18_000, "eval_every": 18_000, "log_every": 18_000, "checkpoint_every": 120}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    done = within(script, *arguments, f"--run-dir={disk}/run")
    assert done.returncode == 1, done.stderr
    error = one_line(done)
    assert "No space left on device" in error
    assert "--resume" in error
    method = tiny.build(ENV)
    state = jax.eval_shape(
        lambda: jax.tree.map(lambda x: x[None], method.init(jax.random.key(0), method.hyper))
    )
    said: list[str] = []
    found = checkpoint.restore_newest(kept / "checkpoints", state, said.append)
    assert found is not None
    assert said == []
    assert f"generation {found[0]} is intact" in error
    straight = train(method, ENV, quiet=True, **options)
    again = train(method, ENV, run_dir=kept, resume=True, quiet=True, **options)
    assert again.summary["state_sha256"] == straight.summary["state_sha256"]


@needs_mount
def test_a_read_only_directory_is_one_line(tmp_path: Path) -> None:
    script = f"mount -t tmpfs -o ro none {tmp_path}; eval $RUN '\"$@\"'"
    done = within(script, "--env-steps=240", f"--run-dir={tmp_path}/run")
    assert done.returncode == 1
    assert "Read-only file system" in one_line(done)


def test_what_goes_wrong_in_the_background_is_told_by_the_next_call(tmp_path: Path) -> None:
    blocked = tmp_path / "checkpoints"
    blocked.write_text("a file where the directory should be")
    writer = Writer(blocked, background=True)
    writer.save(1, example(), {})
    first = r"there is no earlier one; --resume starts from the beginning"
    with pytest.raises(NotSaved, match=rf"generation 1 could not be written .*\(File exists\); {first}"):
        writer.wait()
    writer.wait()  # told once


def test_a_checkpoint_in_the_background_holds_what_the_state_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next chunk overwrites the State in place, and the next save comes, while the thread writes."""
    go, write = threading.Event(), checkpoint._write_arrays

    def held(*arguments: Any) -> None:
        assert go.wait(30)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "_write_arrays", held)
    overwrite = jax.jit(lambda s: {"a": s["a"] * 0 + 7, "b": s["b"] * 0}, donate_argnums=0)
    state = {"a": jax.random.normal(jax.random.key(0), (300_000,)), "b": jnp.arange(5)}
    states = [{name: np.array(leaf) for name, leaf in state.items()}]
    writer = Writer(tmp_path, background=True)
    writer.save(3, state, {})
    place = state["a"].unsafe_buffer_pointer()
    state = jax.block_until_ready(overwrite(state))
    assert state["a"].unsafe_buffer_pointer() == place, "the writer keeps the State from being reused"
    states.append({name: np.array(leaf) for name, leaf in state.items()})
    threading.Timer(0.5, go.set).start()
    writer.save(4, state, {})
    writer.wait()
    for generation, expected in zip((3, 4), states, strict=True):
        restored, _ = checkpoint.restore(tmp_path / str(generation), shapes_of(state))
        for name, leaf in expected.items():
            np.testing.assert_array_equal(restored[name], leaf)


def test_saving_in_the_background_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_write_arrays", lambda *_: time.sleep(2))
    begun = time.perf_counter()
    writer = Writer(tmp_path, background=True)
    writer.save(1, {"a": jnp.arange(3)}, {})
    assert time.perf_counter() - begun < 1.5
    with pytest.raises(NotSaved):  # nothing was made that could be completed
        writer.wait()


def test_without_any_checkpoint_files_a_run_begins_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = tiny.build(ENV)
    first = train(method, ENV, env_steps=240, run_dir=tmp_path, **OPTIONS)
    shutil.rmtree(tmp_path / "checkpoints")
    again = train(method, ENV, env_steps=240, run_dir=tmp_path, resume=True, **(OPTIONS | {"quiet": False}))
    assert "has no checkpoint yet: starting from the beginning" in capsys.readouterr().err
    assert again.summary["state_sha256"] == first.summary["state_sha256"]


def failing(env: Any, calls: int, told: str) -> Any:
    """``env`` with a reset that asks the host, where a function fails from so many ``calls`` on."""
    made = 0

    def ask(obs: Any) -> Any:
        nonlocal made
        made += 1
        if made > calls:
            raise RuntimeError(told)
        return np.asarray(obs)

    def reset(key: Any) -> Any:
        state, obs = env.reset(key)
        kind = jax.ShapeDtypeStruct(obs.shape, obs.dtype)
        return state, jax.pure_callback(ask, kind, obs, vmap_method="broadcast_all")

    return env._replace(reset=reset, origin=None)


def test_an_environment_that_fails_on_the_host_ends_the_run_at_its_last_checkpoint(tmp_path: Path) -> None:
    env = failing(ENV, 100, "the emulator is gone")
    options = {**OPTIONS, "env_steps": 6_000, "eval_every": 6_000, "checkpoint_every": 120}
    with pytest.raises(
        CallbackFailed, match=r"^the emulator is gone; the State of generation (\d+) is saved"
    ):
        train(tiny.build(env), env, run_dir=tmp_path, **options)
    assert max(checkpoint.generations(tmp_path / "checkpoints")) >= 10
    assert not (tmp_path / "summary.json").exists()


def test_what_a_callback_raised_is_told_apart_from_what_a_program_raises() -> None:
    told = "INTERNAL: CpuCallback error calling callback: Traceback ...\nRuntimeError: a worker: died\n"
    assert loop._of_callback(jax.errors.JaxRuntimeError(told)) == "a worker: died"
    assert loop._of_callback(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")) is None
