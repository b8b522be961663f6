"""Measure the cost of compiling: processor seconds of tracing and of XLA, lines of StableHLO, how often the
physics step and the reset occur in the program of a chunk, and how long a user waits.

    python benchmarks/compile.py --out benchmarks/results/compile-cpu.json
    python benchmarks/compile.py --cases sac cspc --env gym/Hopper-v4
    PYTHONPATH=/tmp/before python benchmarks/compile.py --no-starts ...     another checkout

There is a case for every built-in method, with its default Config. ``align`` and ``distil``, which begin with
finished runs, get untrained policies, with which their programs are the same. Every case is compiled in a
process of its own, without a cache. A start lasts from the beginning of a process until all programs of a run
are ready, including ``init`` and the evaluation: *cold* with nothing in JAX's cache on disk, *warm* with what
the cold start left there, both in seconds and processor seconds. What ``--out`` already has is not measured
again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

BEGUN = time.perf_counter()
ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # after the PYTHONPATH of another checkout
from popjax.host.recipes import METHODS, recipe  # noqa: E402

HOPPER, BREAKOUT = "gym/Hopper-v4", "gymnax/Breakout-MinAtar"


class Case(NamedTuple):
    """What is compiled.

    method:  name of a built-in method.
    changes: fields that differ from its default Config.
    task:    SUITE/TASK, unless the command line names another.
    """

    method: str
    changes: Mapping[str, Any] = MappingProxyType({})
    task: str = HOPPER


DISCRETE = ("cdrl", "align")
"""Methods that only have discrete actions."""
CALLED = {"independent": "sac", "onpolicy": "ppo"}
"""Methods whose cases have the name of their default agents."""
FUSED = {"fused": True, "lanes": 10, "on_policy_lanes": 10, "reset_at_batch": False}
CASES = {
    CALLED.get(name, name): Case(name, task=BREAKOUT if name in DISCRETE else HOPPER) for name in METHODS
} | {"cspc-fused": Case("cspc", FUSED)}


@dataclass(frozen=True)
class Arguments:
    """Choices of what is compiled."""

    cases: tuple[str, ...] = tuple(CASES)
    """Which cases."""
    env: str | None = None
    """Environment as SUITE/TASK; by default gym/Hopper-v4, or for methods that only have discrete actions
    gymnax/Breakout-MinAtar."""
    starts: bool = True
    """Whether to measure starts."""
    out: Path | None = None
    """JSON file for the results."""


def build(case: str, env: Any) -> Any:
    """Return the method of a case."""
    from popjax.recipe import default_config

    name, changes, _ = CASES[case]
    made_by = recipe(name)
    config = replace(default_config(made_by, env.spec), **changes)
    return made_by.build(env, config, **finished_runs(name, env))


def finished_runs(name: str, env: Any) -> dict[str, Any]:
    """Return the finished runs that a method needs: policies with zeros as parameters, since their values do
    not change the program."""
    if name not in ("align", "distil"):
        return {}
    import jax
    import jax.numpy as jnp

    from popjax.core import Pretrained
    from popjax.methods.distil import Graded
    from popjax.population.imitation import Teacher

    method = recipe("cdrl" if name == "align" else "independent").build(env)
    shapes = jax.eval_shape(lambda key: method.policy(method.init(key, method.hyper)), jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    policy = Pretrained(env.spec.name, env.spec, method.act, params, method.memory, unroll=method.unroll)
    if name == "distil":
        return {"teachers": [Graded(policy, -1, 0.0)]}
    return {"teachers": [Teacher(policy)], "experts": [Teacher(policy)]}


def marked(env: Any) -> Any:
    """Return the environment with an operation in its step and one in its reset that occur nowhere else."""
    import jax
    import jax.numpy as jnp

    def step(state: Any, action: Any) -> Any:
        state, timestep = env.step(state, action)
        nothing = jax.lax.population_count(timestep.terminated.astype(jnp.int32)) * 0
        return state, replace(timestep, reward=timestep.reward + nothing)

    def reset(key: Any) -> Any:
        state, obs = env.reset(key)
        nothing = jax.lax.clz((obs.ravel()[0] > 1e9).astype(jnp.int32)) * 0
        return state, obs + nothing.astype(obs.dtype)

    return env._replace(step=step, reset=reset)


def places(jaxpr: Any, primitive: str) -> int:
    """Return how often a primitive occurs in a program and the programs nested in it."""
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

    env = popjax.make(task)

    def program(env: Any) -> Any:
        method = build(case, env)
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

    env = popjax.make(task)
    method = build(case, env)
    members = sweep.grid(0, 1, {})
    begin = sweep.keys(members), sweep.hypers(method.hyper, members)
    program_store.trace_nobody_elses_code()
    store = program_store.of(method, env, begin, Options(), shard.chosen(1))
    state = store.shapes() or jax.eval_shape(sweep.lift(method.init, 1), *begin)
    compile_programs(method, env, begin, state, Options(), shard.place(state, 1), store, fresh=True)
    seconds = {"seconds": time.perf_counter() - BEGUN, "processor_seconds": time.process_time()}
    print(json.dumps({name: round(value, 1) for name, value in seconds.items()}))


def told(what: str, case: str, task: str, **environment: str) -> Any:
    """Run this script on a case in a process of its own and return the JSON that it prints."""
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
    kept, before = record.kept(arguments.out)
    rows = {(row["case"], row["env"]): row for row in kept}
    further = {name: before[name] for name in ("other_git_commit", "other_rows", "remark") if name in before}
    for case in arguments.cases:
        task = arguments.env or CASES[case].task
        row = rows.get((case, task)) or told("--one", case, task, JAX_ENABLE_COMPILATION_CACHE="0")
        rows[case, task] = row
        if arguments.starts and "cold_start" not in row:
            with tempfile.TemporaryDirectory() as cache:
                place = {"JAX_ENABLE_COMPILATION_CACHE": "1", "JAX_COMPILATION_CACHE_DIR": cache}
                for which in ("cold_start", "warm_start"):
                    row[which] = told("--start", case, task, **place)
        print(json.dumps(row), flush=True)
        record.write(arguments.out, rows=list(rows.values()), **further)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    elif sys.argv[1:2] == ["--start"]:
        start(*sys.argv[2:])
    else:
        import tyro

        main(tyro.cli(Arguments, description=__doc__))
