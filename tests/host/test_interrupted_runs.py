"""However a run ends, the State at hand is saved, and resumed it comes to what it would have come to."""

from __future__ import annotations

import ctypes
import errno
import gc
import io
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import popjax
from popjax.envs import make
from popjax.host import signals
from popjax.host.checkpoints import checkpoint, state_arrays
from popjax.host.runs import Result, log, rundir
from popjax.host.terminal import Lasting, complain
from popjax.host.training import compiled_programs, loop, train
from tests.host import tiny
from tests.host.test_train import OPTIONS, lines
from tests.support import slow_except

ROOT = Path(__file__).parents[2]
ENV = make("probe/context")
METHOD = tiny.build(ENV)
PROGRAM = "from popjax import cli; cli.METHODS['tiny'] = 'tests.host.tiny'; raise SystemExit(cli.{}())"


def run(root: Path | None, **more: Any) -> Result:
    return train(METHOD, ENV, env_steps=360, run_dir=root, **(OPTIONS | more))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict], list[dict]]:
    """Digest, metrics and evaluations of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("straight")
    digest = run(root).summary["state_sha256"]
    return digest, lines(root / "metrics.jsonl"), lines(root / "eval.jsonl"), best(root)


def best(root: Path) -> dict[str, Any]:
    with np.load(root / "best.npz") as kept:
        return {name: kept[name].tolist() for name in kept.files}


def failing(error: BaseException, at: int) -> log.Sink:
    def sink(index: int, history: Any) -> None:
        if index == at:
            raise error

    return sink


@pytest.mark.parametrize(
    "error",
    [ConnectionError("the tracker is down"), OSError(errno.ENOSPC, "full"), popjax.Interrupted("enough", 2)],
    ids=["tracker", "disk", "enough"],
)
def test_a_sink_that_raises_ends_the_run_saved(error: BaseException, tmp_path: Path, straight: Any) -> None:
    told: list[int] = []
    sinks = [failing(error, 5), lambda index, _: told.append(index)]
    with pytest.raises(type(error)) as failure:
        run(tmp_path, sinks=sinks)
    assert failure.value is error
    assert told == [0, 1, 2, 3, 4, 5]  # the others hear of the last chunk too
    assert checkpoint.generations(tmp_path / "checkpoints")[0] == 15  # where none was due
    assert_resumes(tmp_path, straight)


def assert_resumes(root: Path, straight: Any) -> None:
    assert run(root, resume=True).summary["state_sha256"] == straight[0]
    assert lines(root / "metrics.jsonl") == straight[1]
    assert lines(root / "eval.jsonl") == straight[2]
    assert best(root) == straight[3]


def test_a_policy_whose_evaluation_a_resume_makes_up_for_may_be_the_best(
    tmp_path: Path, straight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever evaluation it is that a signal prevents."""
    advance = loop._advance
    for end in range(1, 11):

        def at_the_end(*given: Any, end: int = end) -> Any:
            made = advance(*given)
            if made[1].generation == 3 * end:
                os.kill(os.getpid(), signal.SIGTERM)
            return made

        with monkeypatch.context() as patch:
            patch.setattr(loop, "_advance", at_the_end)
            with pytest.raises(popjax.Interrupted):
                run(tmp_path / str(end))
        assert_resumes(tmp_path / str(end), straight)


def test_an_evaluation_that_fails_ends_the_run_saved(tmp_path: Path, straight: Any) -> None:
    """It is made when the run goes on."""

    ready, calls = compiled_programs.ready, iter(range(100))

    def third_fails(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise RuntimeError("RESOURCE_EXHAUSTED")
        return ready(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_programs, "ready", third_fails)
        with pytest.raises(RuntimeError, match="RESOURCE"):
            run(tmp_path)
    assert checkpoint.generations(tmp_path / "checkpoints")[0] == 18  # 216 environment steps
    assert lines(tmp_path / "eval.jsonl") == straight[2][:2]
    assert_resumes(tmp_path, straight)


def test_a_failure_while_saving_is_told_beside_what_failed(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(popjax.host.errors.NotSaved, match="could not be written"):
        run(tmp_path / "run", sinks=[occupy(tmp_path / "run")], quiet=False)
    assert "ConnectionError: gone" in capsys.readouterr().err


def occupy(root: Path) -> log.Sink:
    def sink(index: int, history: Any) -> None:
        if index == 1:
            (root / "checkpoints").write_text("a file where the directory should be")
            raise ConnectionError("gone")

    return sink


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU])
def test_a_signal_while_the_last_chunk_is_computed_leaves_its_evaluation_to_the_resumed_run(
    number: int, tmp_path: Path, straight: Any
) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the shell ignores this signal, as nohup does, and so does popjax")
    compute, chunks = loop._run_chunk, iter(range(100))

    def struck(*arguments: Any) -> Any:
        answer = compute(*arguments)
        if next(chunks) == 9:  # of 10, which end at 360
            signal.raise_signal(number)
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_run_chunk", struck)
        with pytest.raises(popjax.Interrupted) as stopped:
            run(tmp_path)
    assert stopped.value.signal_number == number
    assert not (tmp_path / "summary.json").exists()
    assert lines(tmp_path / "eval.jsonl") == straight[2][:-1]
    assert_resumes(tmp_path, straight)
    assert (tmp_path / "summary.json").exists()


def test_what_is_computed_is_left_when_a_signal_comes() -> None:
    class Slow:
        dtype = float
        asked = 0

        def is_ready(self) -> bool:
            self.asked += 1
            if self.asked == 3:
                stop.arrived = signal.SIGTERM
            return False

    stop = signals.Stop()
    with pytest.raises(signals.Left):
        signals.ready([Slow()], stop)
    assert signals.beside(lambda: 5, lambda: 6) == [5, 6]
    with pytest.raises(ZeroDivisionError):
        signals.beside(lambda: 5, lambda: 1 // 0)


@pytest.mark.parametrize("needed", [0.001, 0.03, 0.3, 3.0])
def test_waiting_for_a_chunk_adds_little(needed: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 2% of it, and no more than 20 ms; by a clock that only the pauses move."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Computed:
        dtype = float

        def is_ready(self) -> bool:
            return now >= needed

    monkeypatch.setattr(signals.time, "sleep", sleep)
    monkeypatch.setattr(signals.time, "perf_counter", lambda: now)
    signals.ready([Computed()])
    assert needed <= now <= needed + max(2e-4, min(needed / 50, 0.02))


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_that_is_ignored_stays_so(number: int) -> None:
    """As SIGHUP under nohup, and SIGINT in a shell's background."""
    before, said = signal.signal(number, signal.SIG_IGN), []
    other = next(known for known in reversed(signals.SIGNALS) if known != number)
    try:
        with signals.deferred(said.append) as stop:
            signal.raise_signal(number)
            assert stop.arrived is None
            assert signal.getsignal(number) is signal.SIG_IGN
            signal.raise_signal(other)
            assert ("press Ctrl-C again" in said[0]) is (number != signal.SIGINT)
    finally:
        signal.signal(number, before)


def test_a_signal_that_a_library_handles_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python calls a handler None that was there before it; it does not know of this one, and is told so."""
    number, known, heard = signal.SIGUSR2, signal.getsignal, []
    before = known(number)
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(heard.append)
    monkeypatch.setattr(signal, "getsignal", lambda asked: None if asked == number else known(asked))
    try:
        ctypes.CDLL(None).signal(number, handler)
        with signals.deferred(lambda line: None) as stop:
            signal.raise_signal(number)
        signal.raise_signal(number)
    finally:
        signal.signal(number, before)
    assert heard == [number, number]
    assert stop.arrived is None


CAPACITY = 123_457  # of no other test, so that a State is known by its shape


def strike(index: int, history: Any) -> None:
    if index == 3:
        signal.raise_signal(signal.SIGTERM)


def break_down(index: int, history: Any) -> None:
    seen = history.generation.tolist()
    if index == 3:
        raise ConnectionError(f"gone after {seen}")


def press_ctrl_c(index: int, history: Any) -> None:
    if index == 3:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("sink", "saved", "kind"),
    [
        (strike, True, popjax.Interrupted),
        (break_down, True, ConnectionError),
        (break_down, False, ConnectionError),
        (press_ctrl_c, False, KeyboardInterrupt),
    ],
)
def test_an_exception_that_is_kept_does_not_keep_the_state(
    sink: log.Sink, saved: bool, kind: type[BaseException], tmp_path: Path
) -> None:
    """A notebook keeps the last one, and the cell is run again. A user's own frames stay for a debugger."""
    method, root = tiny.build(ENV, tiny.Config(capacity=CAPACITY)), tmp_path if saved else None
    seen = []

    def count(index: int, history: Any) -> None:
        seen.append(alive())

    def alive() -> int:
        return sum(array.shape == (1, CAPACITY, 2) for array in jax.live_arrays())

    with pytest.raises(kind) as kept:
        train(method, ENV, env_steps=360, run_dir=root, sinks=[count, sink], **OPTIONS)
    gc.collect()
    assert seen[0]
    assert not alive()
    frames = {
        frame.f_code.co_name: frame.f_locals for frame, _ in traceback.walk_tb(kept.value.__traceback__)
    }
    assert "train" in frames
    if sink is break_down:
        assert frames["break_down"]["seen"]


PROBE = "import fcntl, os, sys; fcntl.lockf(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def test_another_machine_sees_the_lock_of_a_run_until_it_ends(tmp_path: Path) -> None:
    """As far as it sees POSIX locks alone: NFS keeps the lock of a directory on the client."""

    def probe() -> int:
        return subprocess.run(
            [sys.executable, "-c", PROBE, tmp_path / "lock"], capture_output=True
        ).returncode

    found = []
    run(tmp_path, sinks=[lambda index, _: found.append(probe()) if index in (0, 9) else None])
    assert found == [1, 1]
    assert probe() == 0
    (tmp_path / "lock").unlink()
    assert popjax.load(tmp_path)
    assert not (tmp_path / "lock").exists()  # so that a run that cannot be written to is read all the same


def test_a_run_that_another_machine_trains_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    waits = f"{PROBE}; print('locked', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", waits, tmp_path / "lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(popjax.Refused, match="another process is training"):
        run(tmp_path, resume=True, seeds=2)
    assert before == {path: path.read_bytes() for path in before}
    holder.communicate("")
    run(tmp_path, resume=True, seeds=2)


def refusing(number: int) -> Callable[..., None]:
    def lock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return lock


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, 524])
def test_a_file_system_without_locks_holds_runs_all_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fcntl, files = pytest.importorskip("fcntl"), rundir.RunDirectory(tmp_path)
    with monkeypatch.context() as without_posix:
        without_posix.setattr(fcntl, "lockf", refusing(number))
        with rundir._locked(files), pytest.raises(popjax.Refused, match="another"), rundir._locked(files):
            pass
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    with rundir._locked(files):
        assert subprocess.run([sys.executable, "-c", PROBE, files.lock], capture_output=True).returncode == 1
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(fcntl, "lockf", refusing(number))
    with rundir._locked(files):
        assert capsys.readouterr().err.startswith(f"{tmp_path} is not locked, since its file system has no")


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize(("function", "file"), [("flock", "."), ("lockf", "lock")])
def test_a_lock_that_fails_otherwise_names_its_file(
    function: str, file: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytest.importorskip("fcntl"), function, refusing(number))
    told = re.escape(
        f"{tmp_path / file} cannot be locked ({os.strerror(number)}): try again, or name another"
    )
    with pytest.raises(popjax.Refused, match=told), rundir._locked(rundir.RunDirectory(tmp_path)):
        pass


ENDLESS = ["tiny", "--env=gymnax/Pendulum-v1", "--env-option=max_steps_in_episode=2000000000"]


def start(tool: str, *argv: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM.format(tool), *map(str, argv)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def seconds_to_end(process: subprocess.Popen[str]) -> float:
    time.sleep(1)  # it plays by now
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    try:
        process.wait(30)
    finally:
        process.kill()
    return time.monotonic() - begun


def test_ctrl_c_is_heard_while_an_evaluation_is_computed(tmp_path: Path) -> None:
    """Here and by evaluate.py, which then plays what the run has saved."""
    root = tmp_path / "run"
    training = start("run", *ENDLESS, "--env-steps=1200", "--run-dir", root)
    assert training.stderr is not None
    while "compiled in" not in training.stderr.readline():
        assert training.poll() is None
    assert seconds_to_end(training) < 5
    said = training.stderr.read()
    assert training.returncode == 130, said
    assert "SIGINT" in said
    assert "--resume" in said
    assert checkpoint.generations(root / "checkpoints") == [0]
    tells = "import sys; import popjax.host.training.evaluation as e; ready = e.ready\n"
    tells += "e.ready = lambda x: (print('playing', file=sys.stderr, flush=True), ready(x))[1]\n"
    program = tells + PROGRAM.format("evaluate")
    playing = subprocess.Popen(
        [sys.executable, "-c", program, str(root)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert playing.stderr is not None
    assert "playing" in playing.stderr.readline()
    assert seconds_to_end(playing) < 5
    assert playing.returncode == 130
    training.stderr.close()
    playing.stderr.close()


class Gone(io.StringIO):
    """A terminal that is closed after some lines."""

    encoding = "ascii"

    def __init__(self, error: int, after: int = 2):
        super().__init__()
        self.error, self.left = error, after

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(self.error, os.strerror(self.error))
        return super().write(text.encode("ascii").decode())

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "stream",
    [
        lambda: Gone(errno.EIO),
        lambda: Gone(errno.EPIPE, 0),
        lambda: Gone(errno.ENOSPC, 5),
        lambda: None,
        lambda: shut(),
    ],
    ids=["hung up", "no reader", "full", "none", "closed"],
)
def test_standard_error_that_goes_away_does_not_end_a_run(
    stream: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, straight: Any
) -> None:
    monkeypatch.setattr(sys, "stderr", stream())
    assert state_arrays.digest(run(None, quiet=False).state) == straight[0]


def shut() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def test_a_terminal_without_a_character_shows_another(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", stream)
    complain("5 ± 1")
    stream.seek(0)
    assert stream.read() == "5 ? 1\n"
    assert not Lasting(None).isatty()


@pytest.mark.parametrize(
    "how",
    slow_except(["2>&- >&- <&-", ">/dev/full"], ["2>&-", ">&-", "2>&- >&- <&-", ">/dev/full", "2>/dev/full"]),
)
def test_streams_that_the_shell_closed_or_filled(how: str, tmp_path: Path) -> None:
    """Nothing that a library prints goes into a file of the run, and the exit code is that of success."""
    program = PROGRAM.format("run")
    command = (
        f'exec "{sys.executable}" -c "{program}" tiny --env probe/context --env-steps 24 --run-dir run {how}'
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, timeout=120, check=False)
    assert done.returncode == 0
    assert len(lines(tmp_path / "run/eval.jsonl")) == 2
