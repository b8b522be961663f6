"""Count what compiling costs: processor seconds of tracing and of XLA, lines of StableHLO, and the places at
which the physics step and the reset stand in the program of a chunk; and what a user waits for.

    python benchmarks/compile.py --cases sac cspc --env gym/Hopper-v4 --out benchmarks/results/compile.json
    PYTHONPATH=/tmp/before python benchmarks/compile.py --no-starts ...     the same of another checkout

Every case is compiled alone in a process of its own, without a cache. A start is a process from its beginning
until all programs of a run are there, those of ``init`` and the evaluation, too: *cold* without anything in
JAX's cache on disk, *warm* with what the cold start left there, both in seconds and processor seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

BEGUN = time.perf_counter()
ROOT = Path(__file__).resolve().parents[1]
FUSED = {"fused": True, "lanes": 10, "on_policy_lanes": 10, "reset_at_batch": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sac": ("independent", {}),
    "ppo": ("onpolicy", {"agent": "ppo"}),
    "pderl": ("pderl", {}),
    "ce": ("ce", {}),
    "ca2e": ("ca2e", {"agent": "ddpg"}),
    "cspc": ("cspc", {}),
    "cspc-fused": ("cspc", FUSED),
}
"""Method and fields of its default Config."""


@dataclass(frozen=True)
class Arguments:
    """Choices of what is compiled."""

    cases: tuple[str, ...] = tuple(CASES)
    """Which cases."""
    env: str = "gym/Hopper-v4"
    """Environment as SUITE/TASK."""
    starts: bool = True
    """Whether to measure starts."""
    out: Path | None = None
    """JSON file for the results."""


def config_of(module: Any, changes: dict[str, Any]) -> Any:
    """Return the Config of a case."""
    from popjax.agents import ddpg, ppo

    changes = dict(changes)
    agent = changes.pop("agent", None)
    if agent == "ddpg":
        return module.default_config(ddpg.BASELINES)
    return module.Config(**changes, **({"agent": ppo.Config()} if agent == "ppo" else {}))


def marked(env: Any) -> Any:
    """Return the environment with an operation in its step and another in its reset that nothing else has."""
    import jax
    import jax.numpy as jnp

    def step(state: Any, action: Any) -> Any:
        state, timestep = env.step(state, action)
        nothing = jax.lax.population_count(timestep.terminated.astype(jnp.int32)) * 0
        return state, replace(timestep, reward=timestep.reward + nothing)

    def reset(key: Any) -> Any:
        state, obs = env.reset(key)
        return state, obs + jax.lax.clz((obs[0] > 1e9).astype(jnp.int32)) * 0

    return env._replace(step=step, reset=reset)


def places(jaxpr: Any, primitive: str) -> int:
    """Return how often a primitive stands in a program, whatever encloses it."""
    found = 0
    for equation in jaxpr.eqns:
        found += equation.primitive.name == primitive
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                found += places(inner, primitive) if hasattr(inner, "eqns") else 0
    return found


def one(case: str, task: str) -> None:
    """Print the row of one case as JSON."""
    import jax

    import popjax

    name, changes = CASES[case]
    module = importlib.import_module(f"popjax.methods.{name}")
    env = popjax.make(task)

    def program(env: Any) -> Any:
        method = module.build(env, config_of(module, changes))
        state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
        return method, state

    method, state = program(env)
    chunk = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: (method.step(s), None), s, length=2)[0], donate_argnums=0
    )
    begun = time.process_time()
    lowered = chunk.lower(state)
    traced = time.process_time()
    lowered.compile()
    compiled = time.process_time()
    method, state = program(marked(env))
    seen = jax.make_jaxpr(method.step)(state).jaxpr
    row = {
        "case": case,
        "env": task,
        "steps": places(seen, "population_count"),
        "resets": places(seen, "clz"),
        "trace_processor_seconds": round(traced - begun, 1),
        "stablehlo_lines": lowered.as_text().count("\n"),
        "compile_processor_seconds": round(compiled - traced, 1),
    }
    print(json.dumps(row), flush=True)


def start(case: str, task: str) -> None:
    """Make all programs of a run with one seed; print the seconds as JSON."""
    import jax

    import popjax
    from popjax.host.runs.options import Options
    from popjax.host.scaling import shard, sweep
    from popjax.host.training import program_store
    from popjax.host.training.compiled_programs import compile_programs

    name, changes = CASES[case]
    module = importlib.import_module(f"popjax.methods.{name}")
    env = popjax.make(task)
    method = module.build(env, config_of(module, changes))
    members = sweep.grid(0, 1, {})
    begin = sweep.keys(members), sweep.hypers(method.hyper, members)
    program_store.trace_nobody_elses_code()
    store = program_store.of(method, env, begin, Options(), shard.chosen(1))
    state = store.shapes() or jax.eval_shape(sweep.lift(method.init, 1), *begin)
    compile_programs(method, env, begin, state, Options(), shard.place(state, 1), store, fresh=True)
    seconds = {"seconds": time.perf_counter() - BEGUN, "processor_seconds": time.process_time()}
    print(json.dumps({name: round(value, 1) for name, value in seconds.items()}))


def told(what: str, case: str, task: str, **environment: str) -> Any:
    """Return what a process of its own prints of a case."""
    path = {"PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))}
    done = subprocess.run(
        [sys.executable, __file__, what, case, task],
        env=os.environ | path | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"error: {case} on {task} ended with exit status {done.returncode}; see above")
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Arguments) -> None:
    """Compile, print and write after every case."""
    from benchmarks import record

    record.check_known(arguments.cases, CASES)
    rows = []
    for case in arguments.cases:
        row = told("--one", case, arguments.env, JAX_ENABLE_COMPILATION_CACHE="0")
        if arguments.starts:
            with tempfile.TemporaryDirectory() as cache:
                kept = {"JAX_ENABLE_COMPILATION_CACHE": "1", "JAX_COMPILATION_CACHE_DIR": cache}
                for which in ("cold_start", "warm_start"):
                    row[which] = told("--start", case, arguments.env, **kept)
        rows.append(row)
        print(json.dumps(row), flush=True)
        record.write(arguments.out, rows=rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    elif sys.argv[1:2] == ["--start"]:
        start(*sys.argv[2:])
    else:
        import tyro

        sys.path.append(str(ROOT))
        main(tyro.cli(Arguments, description=__doc__))
