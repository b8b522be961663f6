"""Every benchmark runs, at sizes that measure nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "against": "--other-flags=--xla_cpu_enable_fast_math=false --cases sac-1 --repeats 1",
    "atari": "--lanes 1 2 --env-steps 8 --rounds 1",
    "collaboration": "--populations 1 2 --updates 2 --repeats 1 --capacity 2000",
    "compile": "--cases sac --env gymnax/Pendulum-v1",
    "compile_peers": "--trainers ours --algorithms ppo --task Pendulum-v1",
    "cooperation": "--env gymnax/Pendulum-v1 --phase 200 --repeats 1 --capacity 2000",
    "distillation": (
        "--pair rooms --env-steps 2000 --align-steps 2000 --units 8 --seeds 1 --align-hidden 8"
        " --protocols a3c kd-distill online concurrent"
    ),
    "own_numbers": "--population 2 --batch 8 --repeats 1",
    "prioritized": "--batches 32 --capacity 2000 --iterations 2 --repeats 1",
    "race": "--tasks ppo-cartpole --searches pbt fixed --population 5 --seeds 2 --fraction 0.1",
    "sweep": "--hidden 8 --seeds 2 --steps 20 --repeats 1 --state-bytes 1000000 --saved-steps 20 --saves 1",
    "throughput": (
        "--methods sac ppo cem_rl es pbt ca2e --populations 2 --capacity 4000 --batch 8 --iterations 2"
        " --repeats 1"
    ),
    "to_score": "--trainers ours --tasks ppo-cartpole --seeds 1",
    "update_modes": "--pairs rooms --iterations 1 --repeats 1",
}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_runs(name, tmp_path):
    if name == "prioritized":
        pytest.importorskip("flashbax", reason="of the extra peers")
    if name == "atari":
        pytest.importorskip("ale_py", reason="of the extra atari")
    out = tmp_path if name == "distillation" else tmp_path / "found.json"
    run = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *SMALL[name].split(), "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1_200,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2_000:]
    (found,) = tmp_path.glob("*.json")
    assert json.loads(found.read_text())
