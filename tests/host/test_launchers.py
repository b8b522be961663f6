"""Launchers, for real: a Ray of our own and submitit's executor for one machine. Workers are killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from popjax import cli
from popjax.envs import make
from popjax.host import signals
from popjax.host.checkpoints import checkpoint
from popjax.host.errors import Interrupted, Refused
from popjax.host.runs import launchers
from popjax.host.training import train
from tests.host import tiny, worker

ROOT = Path(__file__).parents[2]
OPTIONS = {"env_steps": 36_000, "eval_every": 18_000, "log_every": 1_200, "checkpoint_every": 600}
ARGUMENTS = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]


@pytest.fixture(scope="module")
def straight() -> list[str]:
    """The digests of the runs of two seeds that nothing disturbed."""
    env = make("probe/context")
    return [
        train(tiny.build(env), env, seed=seed, quiet=True, **OPTIONS).summary["state_sha256"]
        for seed in (0, 1)
    ]


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def jobs(root: Path) -> list[launchers.Job]:
    common = ("tiny", "--env", "probe/context", *ARGUMENTS)
    return [launchers.Job((*common, "--seed", str(seed)), root / f"seed{seed}") for seed in (0, 1)]


def pids(directory: Path) -> list[int]:
    file = directory.parent / f"{directory.name}.pids"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def test_no_run_starts_after_one_that_finished_on_a_signal(tmp_path: Path) -> None:
    """The signal arrives during the last save, so that the run itself ends as if there had been none."""
    ran: list[str] = []

    def execute(argv: Sequence[str]) -> int:
        ran.append(argv[-1])
        with signals.deferred(lambda line: None) as stop:
            stop.saving = True
            if len(ran) == 2:
                signal.raise_signal(signal.SIGTERM)
        return int(len(ran) == 1)  # the first one failed

    wanted = [launchers.Job((), tmp_path / name) for name in "abcd"]
    with pytest.raises(Interrupted, match="stopped; 3 of 4 runs have not finished") as stopped:
        launchers.local(wanted, execute, lambda line: None)
    assert stopped.value.signal_number == signal.SIGTERM
    assert len(ran) == 2
    ran.clear()
    assert launchers.local(wanted[:2], execute, lambda line: None) == [1, 0]  # nothing is left to start


def signal_when_saved(directory: Path, number: signal.Signals) -> threading.Thread:
    """Sends a signal to the process that trains in ``directory`` after its first checkpoint."""

    def wait() -> None:
        deadline = time.monotonic() + 120
        while not checkpoint.generations(directory / "checkpoints") and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(pids(directory)[0], number)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def digests(root: Path) -> list[str]:
    return [json.loads((job.directory / "summary.json").read_text())["state_sha256"] for job in jobs(root)]


@pytest.fixture
def _submitit() -> None:
    pytest.importorskip("submitit")


@pytest.fixture
def _ray() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("_ray")
def test_a_worker_of_ray_that_is_killed_finishes_in_the_same_state(
    number: signal.Signals, tmp_path: Path, straight: list[str]
) -> None:
    said: list[str] = []
    killer = signal_when_saved(tmp_path / "seed1", number)
    codes = launchers.ray(jobs(tmp_path), worker.run, said.append, {"num_cpus": 1}, retries=2)
    killer.join()
    assert codes == [0, 0], said
    assert digests(tmp_path) == straight
    assert len(pids(tmp_path / "seed0")) == 1
    assert len(pids(tmp_path / "seed1")) == 2
    how = "died" if number == signal.SIGKILL else "was preempted"
    assert [line for line in said if how in line] == [
        f"{tmp_path / 'seed1'} {how}; continuing it, 1 of 2 retries"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGUSR2, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=["USR2", "TERM"]
)
@pytest.mark.usefixtures("_submitit")
def test_a_job_of_slurm_that_is_preempted_finishes_in_the_same_state(
    number: signal.Signals, tmp_path: Path, straight: list[str]
) -> None:
    said: list[str] = []
    killer = signal_when_saved(tmp_path / "seed1", number)
    options = {"cluster": "local", "timeout_min": 5}
    codes = launchers.slurm(jobs(tmp_path), worker.run, said.append, options, retries=2)
    killer.join()
    assert codes == [0, 0], said
    assert digests(tmp_path) == straight
    assert any("was preempted; continuing it, 1 of 2" in line for line in said)


@pytest.mark.usefixtures("_submitit")
def test_slurm_options_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"--launcher slurm: .*colour"):
        launchers.slurm(jobs(tmp_path), worker.run, print, {"cluster": "local", "colour": 1}, retries=0)


@pytest.mark.usefixtures("_submitit")
def test_the_reason_of_a_failed_job_comes_from_its_worker(tmp_path: Path) -> None:
    refused = launchers.Job(("tiny", "--env", "probe/context", "--env-steps=1"), tmp_path / "refused")
    said: list[str] = []
    codes = launchers.slurm(
        [refused], worker.run, said.append, {"cluster": "local", "timeout_min": 5}, retries=0
    )
    assert codes == [2]
    assert "ended with exit code 2: --env-steps 1 is less than one generation" in said[-1]


@pytest.mark.usefixtures("_submitit")
def test_what_cannot_run_jobs_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(cli.METHODS, "tiny", "tests.host.tiny")
    launchers.require("local", {})
    launchers.require("slurm", {"cluster": "local"})
    argv = ["tiny", "--env", "probe/context", "--env-steps", "240", "--sweep", "config.capacity=9,10"]
    assert cli.run([*argv, "--launcher", "slurm", "--run-dir", str(tmp_path / "runs")]) == 2
    assert "--launcher slurm: srun is not found" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("_submitit")
def test_a_job_of_slurm_needs_a_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """submitit would set one of five minutes, and of two for jobs on this machine."""
    import submitit

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setitem(cli.METHODS, "tiny", "tests.host.tiny")
    for options in (
        {"timeout_min": 60},
        {"slurm_timeout_min": 60},
        {"slurm_time": "10:00:00"},
        {"cluster": "local"},
        {"cluster": "debug"},
    ):
        launchers.require("slurm", options)
    argv = ["tiny", "--env", "probe/context", "--env-steps", "240", "--sweep", "config.capacity=9,10"]
    for option in ("cluster=slurm", "timeout_min=1e3", "timeout_min=10:00:00"):
        options = ["--launcher-option", option]
        assert cli.run([*argv, "--launcher", "slurm", *options, "--run-dir", str(tmp_path / "runs")]) == 2
        assert "add --launcher-option timeout_min=600" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    limits: list[float] = []

    def start(*, timeout_min: float, **_: object) -> None:
        limits.append(timeout_min)
        raise KeyboardInterrupt

    monkeypatch.setattr(submitit.local.local, "start_controller", start)
    for options in ({"cluster": "local"}, {"cluster": "local", "timeout_min": 7}):
        with pytest.raises(KeyboardInterrupt):
            launchers.slurm(jobs(tmp_path), worker.run, print, options, retries=0)
    assert limits == [60 * 24 * 365, 7]


class Elsewhere:
    """A Ray in this process, whose workers begin in another working directory."""

    class exceptions:
        RayTaskError = RayError = RuntimeError

    def __init__(self, directory: Path):
        self.directory = directory
        self.cluster_resources = dict
        self.cancel = self.init = lambda **_: None
        self.get = lambda task: task

    def remote(self, **_: object) -> Callable:
        return lambda function: SimpleNamespace(remote=partial(self.task, function))

    def task(self, function: Callable, *arguments: object) -> object:
        with contextlib.chdir(self.directory):
            return function(*arguments)

    def wait(self, tasks: list, **_: object) -> tuple[list, list]:
        return tasks[:1], tasks[1:]


def test_jobs_run_in_the_directory_that_they_were_submitted_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    (here / "runs" / "begun").mkdir(parents=True)
    (here / "runs" / "begun" / "config.json").touch()
    elsewhere.mkdir()
    ran: list[tuple[Path, list[str]]] = []
    said: list[str] = []

    def execute(argv: Sequence[str]) -> int:
        ran.append((Path.cwd(), list(argv)))
        return 0

    monkeypatch.chdir(here)
    monkeypatch.setattr(launchers, "_imported", lambda _: Elsewhere(elsewhere))
    job = launchers.Job(("tiny",), Path("runs/begun"))
    assert launchers.ray([job], execute, said.append, {}, retries=0) == [0]
    expected = ["tiny", "--run-dir", str(here / "runs" / "begun"), "--resume"]
    assert ran == [(here, expected)]
    assert said[-1] == "runs/begun has finished; 0 jobs left"
    with contextlib.chdir(elsewhere):  # a node that has only the directory of the run
        ended = launchers._run(execute, launchers._anywhere(job), tmp_path / "nowhere")
        assert ended == launchers.Ended(0)
        assert ran[-1] == (elsewhere, ["tiny", "--run-dir", str(elsewhere / "runs" / "begun")])


def test_a_single_program_is_a_job_whose_directory_is_that_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not that of several runs, so whatever reads a run reads this one."""
    submitted: list[int] = []

    def slurm(jobs: list[launchers.Job], execute: launchers.Execute, *_: object) -> list[int]:
        submitted.append(len(jobs))
        return [execute(launchers.arguments(job)) for job in jobs]

    monkeypatch.setattr(launchers, "require", lambda *_: None)
    monkeypatch.setattr(launchers, "slurm", slurm)
    monkeypatch.setitem(cli.METHODS, "tiny", "tests.host.tiny")
    run = tmp_path / "run"
    argv = [
        "tiny",
        "--env",
        "probe/context",
        "--launcher",
        "slurm",
        "--run-dir",
        str(run),
        "--eval-every",
        "240",
    ]
    assert cli.run([*argv, "--env-steps", "240"]) == 0
    assert "environment steps per seed" in capsys.readouterr().out
    assert json.loads((run / "summary.json").read_text())["env_steps"] == 240
    assert not (run / "index.json").exists()
    assert cli.run([*argv, "--env-steps", "240"]) == 2
    assert f"{run} already holds a run: add --resume" in capsys.readouterr().err
    assert cli.run([*argv, "--env-steps", "240", "--resume"]) == 0  # there is nothing left to do
    assert cli.run([*argv, "--env-steps", "480", "--resume"]) == 0
    assert json.loads((run / "summary.json").read_text())["env_steps"] == 480
    other = [word.replace("context", "corridor") for word in argv]
    capsys.readouterr()
    assert cli.run([*other, "--env-steps", "480", "--resume"]) == 1  # the job says why
    assert "was run with other options: --env probe/context -> probe/corridor" in capsys.readouterr().err
    assert submitted == [1] * 4
    monkeypatch.setattr(launchers, "slurm", lambda *_: [3])
    assert cli.run([*argv, "--env-steps", "720", "--resume"]) == 1


class Clock:
    """A scheduler in this process: tasks end in the order in which they were submitted."""

    def __init__(self, codes: dict[str, list[int]]):
        self.codes, self.submitted, self.cancelled, self.said = codes, [], [], []  # type: ignore[var-annotated]

    def submit(self, job: launchers.Job) -> object:
        self.submitted.append(job.directory.name)
        return (job.directory.name, len(self.submitted))

    def run(self, jobs: list[launchers.Job], retries: int, wait: Callable | None = None) -> list[int]:
        return launchers._supervise(
            jobs,
            self.submit,
            wait or (lambda tasks: min(tasks, key=lambda task: task[1])),
            lambda task: launchers.Ended(self.codes[task[0]].pop(0), "no room"),
            self.cancelled.append,
            self.said.append,
            retries,
        )


def test_what_is_retried_and_what_is_not(tmp_path: Path) -> None:
    """A job that died or was preempted is, until there are no retries left; one that failed or was refused is
    not."""
    clock = Clock({"seed0": [143, launchers._DIED, 0], "seed1": [1]})
    assert clock.run(jobs(tmp_path), retries=2) == [0, 1]
    assert clock.submitted == ["seed0", "seed1", "seed0", "seed0"]
    clock = Clock({"seed0": [143, 143], "seed1": [2]})
    assert clock.run(jobs(tmp_path), retries=1) == [143, 2]
    assert f"{tmp_path / 'seed1'} ended with exit code 2: no room" in clock.said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_cancels_what_still_runs_and_waits_for_it(number: signal.Signals, tmp_path: Path) -> None:
    waited: list[int] = []

    def wait(tasks: list) -> object:
        waited.append(len(tasks))
        if len(waited) == 1:
            signal.raise_signal(number)
            return None
        return tasks[0]

    clock = Clock({"seed0": [143], "seed1": [143]})
    with pytest.raises(Interrupted, match="2 of 2 jobs have not finished") as stopped:
        clock.run(jobs(tmp_path), 1, wait)
    assert stopped.value.signal_number == number
    assert [name for name, _ in clock.cancelled] == clock.submitted == ["seed0", "seed1"]
    assert waited == [2, 2, 1]


SUPERVISOR = """
import sys
from pathlib import Path
from popjax.host.runs import launchers
from popjax.host.errors import Interrupted
from tests.host import test_launchers, worker

root, launcher, options = Path(sys.argv[1]), *eval(sys.argv[2])
jobs = [job._replace(argv=(*job.argv, "--env-steps=200000000", "--checkpoint-every=200000000"))
        for job in test_launchers.jobs(root)]
try:
    getattr(launchers, launcher)(jobs, worker.run, lambda line: print(line, flush=True), options, 2)
except Interrupted as stop:
    print(stop)
    raise SystemExit(128 + stop.signal_number)
"""


@pytest.mark.parametrize(
    "launcher",
    [
        ("slurm", {"cluster": "local", "timeout_min": 5}),
        pytest.param(("ray", {"num_cpus": 1}), marks=pytest.mark.slow),
    ],
    ids=lambda launcher: launcher[0],
)
def test_a_signal_to_the_supervisor_lets_its_workers_save(launcher: tuple, tmp_path: Path) -> None:
    """They would have made no checkpoint for hours."""
    pytest.importorskip({"slurm": "submitit", "ray": "ray"}[launcher[0]])
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path), repr(launcher)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    records = [job.directory / "metrics.jsonl" for job in jobs(tmp_path)]
    deadline = time.monotonic() + 120
    while not all(file.exists() and file.stat().st_size for file in records):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "2 of 2 jobs have not finished" in said
    for job in jobs(tmp_path):
        assert len(checkpoint.generations(job.directory / "checkpoints")) == 1, said
