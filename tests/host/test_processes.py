"""Two processes on the loopback interface train one run; what the environment of a cluster says of others."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from popjax import cli
from popjax.host.checkpoints import checkpoint
from popjax.host.errors import Refused
from popjax.host.scaling import processes

ROOT = Path(__file__).parents[2]
PROGRAM = (
    "from popjax import cli;"
    "cli.METHODS |= {'tiny': 'tests.host.tiny', 'crowd': 'tests.host.crowd_of_eight'};"
    "raise SystemExit(cli.run())"
)
OPTIONS = ["--env", "probe/context", "--eval-every", "600", "--log-every", "120", "--checkpoint-every", "600"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(argv: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *argv],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def both(argv: list[str]) -> list[subprocess.Popen[str]]:
    port = free_port()
    numbers = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process"]
    return [start([*argv, "--devices", "all", *numbers, str(i)]) for i in range(2)]


def end(started: list[subprocess.Popen[str]], code: int = 0) -> list[tuple[str, str]]:
    said = []
    for process in started:
        try:
            said.append(process.communicate(timeout=120))
        finally:
            process.kill()
    assert [process.returncode for process in started] == [code] * len(started), said
    return said


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_two_processes_train_one_run_and_one_signal_stops_both(tmp_path: Path) -> None:
    swept = ["tests.host.tiny", *OPTIONS, "--seeds", "4", "--env-steps"]
    alone, run = tmp_path / "alone", tmp_path / "run"
    assert cli.run([*swept, "1200", "--run-dir", str(alone)]) == 0
    pair = both([*swept, "24000000", "--run-dir", str(run)])
    deadline = time.monotonic() + 100
    while len(checkpoint.generations(run / "checkpoints")) < 2:
        assert time.monotonic() < deadline
        assert pair[0].poll() is None, pair[0].communicate()
        time.sleep(0.01)
    pair[1].send_signal(signal.SIGTERM)  # to one of them
    said = end(pair, 128 + signal.SIGTERM)
    assert "Traceback" not in said[0][1] + said[1][1]
    reached = checkpoint.generations(run / "checkpoints")[0]
    budget = str(12 * (reached + 200))
    config = json.loads((run / "config.json").read_text())
    config["options"]["env_steps"] = 1_200  # only a larger budget continues a run
    (run / "config.json").write_text(json.dumps(config))
    said = end(both([*swept, budget, "--run-dir", str(run), "--resume"]))
    assert "final return" in said[0][0]
    assert "final return" not in said[1][0]  # the first process speaks for all
    assert cli.run([*swept, budget, "--run-dir", str(alone), "--resume"]) == 0
    rows, theirs = summary(run)["members"], summary(alone)["members"]
    assert [row["state_sha256"] for row in rows] == [row["state_sha256"] for row in theirs]
    assert summary(run)["state_sha256"] == summary(alone)["state_sha256"]
    records = [(path / "metrics.jsonl").read_text().splitlines() for path in (run, alone)]
    assert len(records[0]) == len(records[1]) == len(set(records[0]))


@pytest.mark.slow
def test_a_population_over_two_processes(tmp_path: Path) -> None:
    argv = ["crowd", *OPTIONS, "--env-steps", "1200", "--run-dir"]
    end([start([*argv, str(tmp_path / "alone")])])
    end(both([*argv, str(tmp_path / "both")]))
    ours, theirs = summary(tmp_path / "both"), summary(tmp_path / "alone")
    np.testing.assert_allclose(ours["final_return"], theirs["final_return"], rtol=1e-4)
    assert ours["generations"] == theirs["generations"] == 120


def test_a_refusal_of_the_first_process_ends_all(tmp_path: Path) -> None:
    argv = [
        "tiny",
        *OPTIONS,
        "--env-steps",
        "1200",
        "--seeds",
        "2",
        "--run-dir",
        str(tmp_path / "file"),
    ]
    (tmp_path / "file").touch()
    said = end(both(argv), 2)
    assert "is not a directory" in said[0][1]
    assert "another process has stopped" in said[1][1]


def test_slurm_says_who_is_there(tmp_path: Path) -> None:
    slurm = {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_LOCALID": "0",
    }
    argv = [
        "tiny",
        *OPTIONS,
        "--env-steps",
        "1200",
        "--seeds",
        "2",
        "--devices",
        "all",
        "--coordinator",
        "auto",
    ]
    pair = [
        start([*argv, "--run-dir", str(tmp_path / "run")], slurm | {"SLURM_PROCID": str(i)}) for i in range(2)
    ]
    end(pair)
    assert len(summary(tmp_path / "run")["members"]) == 2


POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}


def test_an_indexed_job_of_kubernetes_knows_its_first_pod() -> None:
    host = "sweep-3.popjax.team.svc.cluster.local"
    assert processes.kubernetes(POD, host, 4) == {
        "coordinator_address": f"sweep-0.popjax.team.svc.cluster.local:{processes.PORT}",
        "num_processes": 4,
        "process_id": 3,
    }
    assert processes.kubernetes({}, host, 4) is None
    with pytest.raises(Refused, match="needs --processes"):
        processes.kubernetes(POD, host, None)
    with pytest.raises(Refused, match="completionMode: Indexed"):
        processes.kubernetes(POD, "laptop", 4)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ((None, 2, None), "need --coordinator"),
        (("127.0.0.1:9", 2, None), "needs --processes N and --process I"),
        (("127.0.0.1:9", 2, 2), "--process must be in 0 to 1, got 2"),
    ],
)
def test_half_of_what_is_needed_is_refused(said: tuple, message: str) -> None:
    with pytest.raises(Refused, match=message):
        processes.start(*said)
