"""What a run survives: Ctrl-C, a polite request to end, and no request at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.envs import make
from popjax.host import signals
from popjax.host.checkpoints import checkpoint, state_arrays
from popjax.host.checkpoints.writer import Writer
from popjax.host.errors import Refused
from popjax.host.training import train
from tests.host import tiny

ROOT = Path(__file__).parents[2]
ENV = make("probe/context")
OPTIONS = {"env_steps": 24_000, "log_every": 12, "eval_every": 6_000, "checkpoint_every": 2_400}
ARGUMENTS = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
PROGRAM = "from popjax import cli; raise SystemExit(cli.run())"


@pytest.fixture(scope="module")
def straight() -> str:
    """The digest of a run that nothing disturbed."""
    return state_arrays.digest(train(tiny.build(ENV), ENV, quiet=True, **OPTIONS).state)


def start(run: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "tests.host.tiny",
        "--env",
        "probe/context",
        f"--run-dir={run}",
        *ARGUMENTS,
        *more,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def resume(run: Path) -> str:
    method = tiny.build(ENV)
    result = train(method, ENV, run_dir=run, resume=True, quiet=True, **OPTIONS)
    return result.summary["state_sha256"]


def generations(run: Path) -> list[int]:
    return [json.loads(line)["generation"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGUSR2, signal.SIGTERM))],
)
def test_a_signal_saves_and_says_how_to_resume(number: signal.Signals, tmp_path: Path, straight: str) -> None:
    run = tmp_path / "run"
    process = start(run)
    wait_until(lambda: checkpoint.generations(run / "checkpoints"), process)
    with pytest.raises(Refused, match="another process"):
        resume(run)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert "Traceback" not in error
    assert "finishing the chunk" in error
    assert "--resume" in error
    done = generations(run)
    assert checkpoint.generations(run / "checkpoints")[0] == done[-1] < 2_000
    assert resume(run) == straight
    assert generations(run) == list(range(1, 2_001))


def test_a_kill_loses_at_most_what_follows_the_last_checkpoint(tmp_path: Path, straight: str) -> None:
    run = tmp_path / "run"
    process = start(run)
    wait_until(lambda: len(checkpoint.generations(run / "checkpoints")) == 2, process)
    wait_until(lambda: list((run / "checkpoints").glob("partial-*")), process)  # in the middle of saving
    process.kill()
    process.wait()
    assert process.stderr is not None
    process.stderr.close()
    assert checkpoint.generations(run / "checkpoints")[0] >= 400
    assert resume(run) == straight
    assert generations(run) == list(range(1, 2_001))
    assert not list((run / "checkpoints").glob("partial-*"))


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed_it_ends_in_the_same_state(
    kills: int, tmp_path: Path, straight: str
) -> None:
    """Half of the kills strike while a checkpoint is being written."""
    run, choose, struck = tmp_path / "run", np.random.default_rng(kills), 0
    often = f"--checkpoint-every={24_000 // (4 * kills)}"
    for number in range(kills):
        reached = newest(run)
        process = start(run, often, *(["--resume"] if number else []))
        wait_until(lambda: newest(run) > reached, process)
        if number % 2:
            wait_until(lambda: list((run / "checkpoints").glob("partial-*")), process)
        else:
            time.sleep(choose.uniform(0, 0.2))
        process.kill()
        process.wait()
        struck += bool(list((run / "checkpoints").glob("partial-*")))
        assert process.stderr is not None
        process.stderr.close()
    assert newest(run) < 2_000, "the kills came too late to mean anything"
    assert struck
    final = start(run, often, "--resume")
    assert final.wait(timeout=60) == 0
    assert json.loads((run / "summary.json").read_text())["state_sha256"] == straight
    assert generations(run) == list(range(1, 2_001))


def newest(run: Path) -> int:
    """Generation of the newest checkpoint, 0 without one."""
    return next(iter(checkpoint.generations(run / "checkpoints")), 0)


def test_the_second_signal_stops_at_once_and_handlers_return() -> None:
    before = signal.getsignal(signal.SIGINT)
    said: list[str] = []
    with signals.deferred(said.append) as stop:
        assert stop.arrived is None
        signal.raise_signal(signal.SIGINT)
        assert stop.arrived == signal.SIGINT
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_is_heard_while_the_first_state_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first State of many large networks takes long; this one takes seconds."""
    train_module = sys.modules[train.__module__]
    method, struck, compile_programs = tiny.build(ENV), [], train_module.compile_programs

    def slow_init(key: Any, hyper: Any) -> Any:
        state = method.init(key, hyper)
        noise = jax.lax.fori_loop(0, 200_000, lambda i, x: jnp.sin(x + i) @ x, jnp.ones((40, 40)))
        return state.replace(weight=state.weight + 0 * noise.sum())

    def strike() -> None:
        struck.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    def then_strike(*arguments: Any, **options: Any) -> Any:
        programs = compile_programs(*arguments, **options)
        threading.Timer(0.2, strike).start()
        return programs

    monkeypatch.setattr(train_module, "compile_programs", then_strike)
    with pytest.raises(KeyboardInterrupt):
        train(method._replace(init=slow_init), ENV, quiet=True, **OPTIONS)
    assert time.monotonic() - struck[0] < 1


def test_a_cluster_may_ask_twice_and_nothing_interrupts_the_last_saving(tmp_path: Path) -> None:
    """SLURM sends SIGUSR2 and, a little later, SIGTERM."""
    with signals.deferred(lambda line: None) as stop:
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR2):
            signal.raise_signal(number)
        assert stop.arrived == signal.SIGUSR2
    run, saves, save = tmp_path / "run", [], Writer.save

    def struck(*arguments: Any, **options: Any) -> None:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        save(*arguments, **options)
        saves.append(arguments[1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "save", struck)
        result = train(
            tiny.build(ENV), ENV, run_dir=run, quiet=True, **(OPTIONS | {"checkpoint_every": 24_000})
        )
    assert saves == checkpoint.generations(run / "checkpoints") == [2_000]
    assert result.summary["generations"] == 2_000
    assert json.loads((run / "summary.json").read_text()) == result.summary
