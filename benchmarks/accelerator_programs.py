"""Compile every method for an H100 and a TPU v5e, without having either, and analyse the programs; ``align``
and ``distil``, which begin with finished runs, are left out.

    pip install -c constraints.txt -e '.[aot-gpu,aot-tpu]'
    python benchmarks/accelerator_programs.py --cases sac-1 sac-64 --out benchmarks/results/programs.json

Each case is compiled in a process of its own. A row has the bytes of the State and of the program's arguments
(more if a TPU pads them), aliases and temporaries; the collectives, callbacks and 64-bit floats in its text;
and, for an iteration and for each loop that takes gradient or environment steps, launches, library calls,
copies of more than 1 MB, bytes moved, floating-point operations, and the least time that bandwidth and peak
allow. A loop whose number of turns depends on data counts as one turn.

Limits: matrix kernels for a GPU are not tuned without one, and nothing is run. A launch takes 1.5 to 4
microseconds; the cycles of a TPU are the compiler's estimate, for comparisons only.

On a GPU, a loop whose number of turns depends on data asks the host after each turn; there are
``loops_that_data_decide`` of them. On drivers from 12.4 on, XLA can record such loops as CUDA graphs, which
do not ask the host:

    KINDS=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE
    XLA_FLAGS=--xla_gpu_enable_command_buffer=$KINDS popjax ...

On an H200, this gained 15% if MJX's solver is such a loop (SAC on dmc/pendulum-swingup) and 3% for SAC with
64 agents; PPO lost 4%, and SAC with one agent became four times as slow. So it is not the default.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # before JAX is imported
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"
sys.path.append(str(ROOT))
from benchmarks import accelerators  # noqa: E402

PENDULUM, BREAKOUT = "gymnax/Pendulum-v1", "gymnax/Breakout-MinAtar"
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sac-1": ("independent", PENDULUM, {}),
    "sac-8": ("independent", PENDULUM, {"population": 8}),
    "sac-64": ("independent", PENDULUM, {"population": 64}),
    "sac-256": ("independent", PENDULUM, {"population": 256}),
    "sac-8-hopper": ("independent", "gym/Hopper-v4", {"population": 8}),
    "ppo-8": ("onpolicy", PENDULUM, {"agent": "ppo", "population": 8, "lanes": 8}),
    "ce-4": ("ce", PENDULUM, {}),
    "diayn": ("diayn", PENDULUM, {}),
    "dice": ("dice", PENDULUM, {}),
    "sunrise": ("sunrise", PENDULUM, {}),
    "pderl": ("pderl", PENDULUM, {}),
    "erl": ("erl", PENDULUM, {}),
    "cem-rl": ("cem_rl", PENDULUM, {}),
    "es": ("es", PENDULUM, {}),
    "pbt": ("pbt", PENDULUM, {}),
    "cspc": ("cspc", PENDULUM, {}),
    "ca2e": ("ca2e", BREAKOUT, {}),
    "cdrl": ("cdrl", BREAKOUT, {}),
}
"""Method, task, and fields that differ from its default Config."""
LARGE = 1_000_000
"""Size above which a copy counts as large [bytes]."""
PEAKS = {"h100": accelerators.PEAKS["NVIDIA H100 80GB HBM3"], "v5e": accelerators.PEAKS["TPU v5 lite"]}


@dataclass(frozen=True)
class Arguments:
    """Choices of what is compiled."""

    cases: tuple[str, ...] = tuple(CASES)
    """Cases to compile."""
    devices: tuple[Literal["h100", "v5e"], ...] = ("h100", "v5e")
    """Devices to compile for."""
    capacities: tuple[int, ...] = (100_000,)
    """Transitions that each replay holds."""
    rows: tuple[Literal["own", "apart"], ...] = ("own",)
    """Layout of rows in replays: as on the device, or with their leaves apart as on a CPU."""
    out: Path | None = None
    """JSON file for the results."""


def build(case: str, capacity: int) -> Any:
    """Return the method of a case, with the steps of its environment labelled in its program."""
    import jax

    import popjax
    from popjax.agents import ppo
    from popjax.host.recipes import recipe
    from popjax.recipe import default_config

    name, task, changes = CASES[case]
    env, made_by = popjax.make(task), recipe(name)
    config = default_config(made_by, env.spec)
    config = replace(config, **changes | ({"agent": ppo.Config()} if "agent" in changes else {}))
    if hasattr(config, "capacity"):
        config = replace(config, capacity=capacity)
    return made_by.build(env._replace(step=jax.named_scope("environment")(env.step)), config)


def costs(loop: Any, kind: str) -> dict[str, Any]:
    """Return what one turn of a loop takes."""
    kernels = list(loop.turn())
    moved = sum(kernel.bytes * times for kernel, times in kernels)
    flops = sum(kernel.flops * times for kernel, times in kernels)
    large = [(kernel, times) for kernel, times in kernels if kernel.copies and kernel.bytes > 2 * LARGE]
    found = {
        "launches": sum(times for _, times in kernels),
        "library_calls": sum(
            times for kernel, times in kernels if kernel.instruction.opcode == "custom-call"
        ),
        "large_copies": sum(times for _, times in large),
        "large_copy_megabytes": round(sum(kernel.bytes / 2 * times for kernel, times in large) / 1e6, 1),
        "megabytes": round(moved / 1e6, 2),
        "megaflops": round(flops / 1e6, 1),
        "roofline_microseconds": round(1e6 * max(moved / PEAKS[kind].bytes, flops / PEAKS[kind].products), 1),
    }
    if cycles := sum(kernel.cycles * times for kernel, times in kernels):
        found["estimated_cycles"] = cycles
    return found


def labelled(loop: Any, label: str) -> list[Any]:
    """Return the innermost loops that have kernels from operations with ``label`` in their names."""
    inside = [found for each in loop.loops for found in labelled(each, label)]
    own = any(label in kernel.instruction.operation for kernel in loop.kernels)
    return inside or ([loop] if own else [])


def phase(loop: Any) -> str:
    """Return where a loop stands in the source: phases and loops."""
    parts = loop.operation.split("/")
    return "/".join(part for part in parts if part not in ("body", "closed_call") and "jit(" not in part)


def facts(compiled: Any, kind: str) -> dict[str, Any]:
    """Return the facts of a compiled chunk."""
    from tests import hlo

    text, memory = compiled.as_text(), compiled.memory_analysis()
    main = hlo.read(text).main()
    # A chunk is a loop of iterations; a compiler for TPUs does not tell how many.
    iteration = max(main.loops, key=lambda loop: len(list(loop.turn())), default=main)
    targets = Counter(re.findall(r'custom_call_target="([^"]+)"', text))
    return {
        "argument_megabytes": round(memory.argument_size_in_bytes / 1e6, 2),
        "alias_megabytes": round(memory.alias_size_in_bytes / 1e6, 2),
        "temporary_megabytes": round(memory.temp_size_in_bytes / 1e6, 2),
        "collectives": {name: count for name in hlo.COLLECTIVES if (count := text.count(f" {name}"))},
        "callbacks": text.count("callback"),
        "float64": len(re.findall(r"\bf64\[", text)),
        "custom_calls": dict(targets),
        "iteration": costs(iteration, kind),
        "gradient_steps": [
            {"loop": phase(loop)} | costs(loop, kind) for loop in labelled(iteration, "transpose(")
        ],
        "environment_steps": [
            {"loop": phase(loop)} | costs(loop, kind) for loop in labelled(iteration, "environment")
        ],
        "loops_that_data_decide": sum(loop.turns is None for loop in main.walk()),
    }


def one(case: str, kind: str, capacity: str, rows: str) -> None:
    """Print the row of one case as JSON."""
    import jax

    from popjax.host.scaling import memory
    from tests import absent

    method = build(case, int(capacity))
    begun = time.perf_counter()
    lowered = absent.lower(method, kind, platform="cpu" if rows == "apart" else "")
    traced = time.perf_counter()
    compiled = lowered.compile()
    row = {
        "case": case,
        "device": kind,
        "capacity": int(capacity),
        "rows": rows,
        "state_megabytes": round(memory.tree_bytes(jax.eval_shape(method.init, *_started(method))) / 1e6, 2),
        "trace_seconds": round(traced - begun, 1),
        "compile_seconds": round(time.perf_counter() - traced, 1),
    }
    print(json.dumps(row | facts(compiled, kind)), flush=True)


def _started(method: Any) -> tuple[Any, Any]:
    import jax

    return jax.eval_shape(lambda: jax.random.key(0)), method.hyper


def main(arguments: Arguments) -> None:
    """Compile, print and write."""
    from benchmarks import record
    from tests import absent

    record.check_known(arguments.cases, CASES)
    for kind in arguments.devices:
        if lack := absent.missing(kind):
            raise SystemExit(f"error: {lack}")
    rows: list[dict[str, Any]] = []
    for case, kind, capacity, lie in product(
        arguments.cases, arguments.devices, arguments.capacities, arguments.rows
    ):
        command = [sys.executable, __file__, "--one", case, kind, str(capacity), lie]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if told.returncode:
            asked = {"case": case, "device": kind, "capacity": capacity, "rows": lie}
            rows.append(asked | {"failed": told.returncode})
        else:
            rows.append(json.loads(told.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
        record.write(arguments.out, rows=rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        import tyro

        main(tyro.cli(Arguments, description=__doc__))
