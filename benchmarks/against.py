"""Compare two checkouts of popjax, or this one with other XLA flags, on the same work: chunks of both
alternate, so that a noisy machine is noisy for both.

    git worktree add --detach /tmp/before v0.1.0
    python benchmarks/against.py --other /tmp/before --out benchmarks/results/against.json
    python benchmarks/against.py --other-flags=--xla_gpu_deterministic_ops=true --cases sac-1 sac-64

Every case runs in two processes, of which only one computes at a time. A ratio is the environment steps per
second of this checkout, with the flags in XLA_FLAGS, divided by the other's: the median over ``--repeats``
pairs of chunks. On one core of a CPU, seconds are processor time (``clock``).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if "--worker" not in sys.argv:  # a worker has the path of the other checkout
    sys.path.insert(0, str(ROOT))
    from benchmarks import clock
    from benchmarks.processes import Worker
    from benchmarks.trainers import Cannot
CASES = {
    "sac-1": ("independent", "gymnax/Pendulum-v1", {"warmup": 256, "capacity": 100_000}, 300),
    "sac-8": ("independent", "gymnax/Pendulum-v1", {"population": 8, "warmup": 256, "capacity": 20_000}, 60),
    "pderl": ("pderl", "gymnax/Pendulum-v1", {"capacity": 100_000}, 1),
    "ce-4": ("ce", "gymnax/Pendulum-v1", {"warmup": 256, "capacity": 100_000}, 60),
    "cspc": (
        "cspc",
        "gymnax/Pendulum-v1",
        {"first_phase": 1_000, "phase": 1_000, "capacity": 100_000, "warmup": 256, "trials": 1},
        1,
    ),
    "ca2e": ("ca2e", "gymnax/Breakout-MinAtar", {"learning_starts": 1_000, "capacity": 50_000}, 200),
    "cdrl": ("cdrl", "gymnax/Breakout-MinAtar", {}, 4),
}
"""Method, task, fields that differ from its default Config, and steps of the method in a chunk."""
MORE = {
    "sac-64": (*CASES["sac-8"][:2], {**CASES["sac-8"][2], "population": 64}, 60),
    "ppo-breakout": (
        "onpolicy",
        "gymnax/Breakout-MinAtar",
        {"agent": "ppo", "population": 80, "steps": 64},
        20,
    ),
    "sac-swingup": ("ce", "dmc/pendulum-swingup", {"population": 1, "drive": None, "warmup": 64}, 800),
}
"""Cases for accelerators, run only if named; PPO with four epochs of four minibatches."""


@dataclass(frozen=True)
class Arguments:
    """Choices of the comparison."""

    other: Path = ROOT
    """Root of the other checkout."""
    other_flags: str = ""
    """Flags that the other one has in addition to XLA_FLAGS."""
    cases: tuple[str, ...] = tuple(CASES)
    """Cases to compare, from ``CASES`` and ``MORE``."""
    repeats: int = 9
    """Pairs of timed chunks."""
    out: Path | None = None
    """JSON file for the results."""


def start(checkout: Path, case: str, flags: str = "") -> Worker:
    """Start the process of one checkout and one case, whose chunks answer with environment steps per
    second."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    asked = {"POPJAX_CASE": case, "POPJAX_CLOCK": clock.kind(), "XLA_FLAGS": flags}
    process = subprocess.Popen(
        [sys.executable, __file__, "--worker"],
        env=os.environ | {"PYTHONPATH": str(checkout)} | asked,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Worker(process)


def work() -> None:
    """Compile the case of this process, then compute a chunk for every line on standard input."""
    import importlib

    import jax

    import popjax

    name, task, changes, length = (CASES | MORE)[os.environ["POPJAX_CASE"]]
    if "agent" in changes:
        from popjax.agents import ppo

        changes = changes | {"agent": ppo.Config(policy_epochs=4, value_epochs=4, minibatches=4)}
    module = importlib.import_module(f"popjax.methods.{name}")
    env = popjax.make(task)
    method = module.build(env, module.Config(**changes))
    state = jax.jit(method.init)(jax.random.key(0), method.hyper)

    def chunk(state: Any) -> Any:
        return jax.lax.scan(lambda s, _: (method.step(s), None), state, length=length)[0]

    begun = time.process_time()
    program = jax.jit(chunk, donate_argnums=0).lower(state).compile()
    compiled = time.process_time() - begun
    warmed = 0
    while warmed < 2 or int(state.env_steps) < 2_500:  # beyond the warm-up of every case
        state, warmed = jax.block_until_ready(program(state)), warmed + 1
    print(json.dumps({"compiled": compiled}), flush=True)
    now = time.process_time if os.environ["POPJAX_CLOCK"] == "processor" else time.perf_counter
    for _ in sys.stdin:
        before, begun = int(state.env_steps), now()
        state = jax.block_until_ready(program(state))
        per_second = (int(state.env_steps) - before) / (now() - begun)
        print(json.dumps({"per_second": per_second}), flush=True)


def compare(case: str, arguments: Arguments) -> dict[str, Any]:
    """Return one row: both speeds, their ratios and processor seconds of compiling."""
    workers = [start(ROOT, case), start(arguments.other, case, arguments.other_flags)]
    pairs = []
    try:
        compiled = [worker.answer()["compiled"] for worker in workers]
        for turn in range(arguments.repeats):
            order = workers if turn % 2 == 0 else workers[::-1]
            speeds = [worker.chunk()["per_second"] for worker in order]
            pairs.append(speeds if turn % 2 == 0 else speeds[::-1])
    except Cannot as error:
        raise SystemExit(f"error: {case}: a worker {error}; see its error above") from None
    finally:
        for worker in workers:
            worker.close()
    ratios = [new / old for new, old in pairs]
    return {
        "case": case,
        "env_steps_per_second": statistics.median(new for new, _ in pairs),
        "other_env_steps_per_second": statistics.median(old for _, old in pairs),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "compile_processor_seconds": compiled[0],
        "other_compile_processor_seconds": compiled[1],
    }


def main(arguments: Arguments) -> None:
    """Compare, print and write after every case."""
    from benchmarks import record

    if arguments.other.resolve() == ROOT and not arguments.other_flags:
        raise SystemExit("error: nothing to compare with: name --other or --other-flags")
    record.check_known(arguments.cases, CASES | MORE)
    head = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(
        head, cwd=arguments.other, capture_output=True, text=True, check=True
    ).stdout.strip()
    rows = []
    for case in arguments.cases:
        rows.append(compare(case, arguments))
        print(json.dumps(rows[-1]), flush=True)
        record.write(arguments.out, other_git_commit=commit, clock=clock.kind(), rows=rows)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        work()
    else:
        import tyro

        main(tyro.cli(Arguments, description=__doc__))
