"""One table of every task of every suite: how fast it compiles and steps, its state's size, its fidelity.

    python benchmarks/envs.py --suite gymnax brax --out runs/envs
    python benchmarks/envs.py --task gym/Hopper-v5 'dmc/cheetah-*' --lanes 1 64 --out runs/some
    python benchmarks/envs.py --out runs/envs --resume
    python benchmarks/envs.py --task gym/Hopper-v5 --impl warp --out runs/warp

Each task is measured in a process of its own, so that memory does not pile up and a failure costs one row.
Rows are appended to ``rows.jsonl`` in ``--out`` as they come; ``--resume`` skips finished tasks and retries
failed ones. The finished table goes to ``--results``, by default ``--out``, as JSON and CSV.

- *compile*: tracing and compiling random play with automatic reset at 64 lanes, without persistent cache.
- *steps/s*: environment steps of that program in all lanes, at least one step in each lane.
- *reset cost*: how much longer this program takes than ``Env.step`` alone from the same states over the same
  number of steps, with the resets that random play needs; at 64 lanes, median of neighbouring pairs.
- *clock*: which seconds these are. A process that may use only one core of a CPU counts processor time, which
  excludes other work on that core.
- *truth*: error of the observations after one step against the original library, as the tests compute it.
"""

from __future__ import annotations

import csv
import fnmatch
import importlib
import importlib.metadata
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault(
    "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
)  # the parent must leave the GPU to its children

import jax
import numpy as np
import tyro
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import clock, record
from popjax import envs, rollout
from popjax.core import Env
from popjax.host import provenance
from popjax.host.errors import Refused
from popjax.host.scaling import memory, shard

# Modules with ``truth(task)`` or, for suites whose libraries are written in JAX, ``truth(suite, task)``.
TRUTH = {"gym": "tests.envs.test_gym", "dmc": "tests.envs.test_dmc"}
TRUTH_IN_JAX = "tests.envs.truth"
BESIDE = 64
LIBRARIES = ("gymnasium", "dm-control", "playground", "warp-lang")


@dataclass(frozen=True)
class Arguments:
    """Choices of the measurement."""

    suite: tuple[str, ...] = ("gym", "dmc", "brax", "gymnax", "playground")
    """Suites."""
    task: tuple[str, ...] = ("*",)
    """Tasks as SUITE/TASK; * matches any text and ? any character."""
    lanes: tuple[int, ...] = (1, 64, 1024)
    """Environments that step together."""
    seconds: float = 1.0
    """Stepping time of a measurement, seconds; at least one step is taken."""
    repeats: int = 3
    """Parts of that time, of which the median counts."""
    limit: float = 1200.0
    """Time after which a task is given up, seconds; XLA on CPU can lock up, and ``--resume`` tries again."""
    impl: Literal["jax", "warp"] = "jax"
    """MJX's implementation of the physics, for tasks of gym, dmc and playground."""
    devices: int = 1
    """Devices over which lanes are spread, each with its own loops, or as many of them as divide the lanes; a
    CPU is divided into so many. XLA uses little more than one core for small arrays, so two cores step about
    twice as fast if each is a device."""
    out: Path = Path("runs/envs")
    """Directory for the rows as they are measured."""
    results: Path | None = None
    """Directory for the finished table; by default that of the rows."""
    resume: bool = False
    """Continue what is in ``out``."""
    only: str = ""
    """Measure this one task in this process and print its row as JSON."""


def main(arguments: Arguments) -> None:
    """Measure task by task, then write and print the table."""
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments)))
        return
    file = arguments.out / "rows.jsonl"
    if file.exists() and not arguments.resume:
        sys.exit(f"{file} exists: continue it with --resume or name another --out")
    arguments.out.mkdir(parents=True, exist_ok=True)
    before = {row.get("devices", 1) for row in read(file).values() if "error" not in row}
    if before - {arguments.devices}:
        sys.exit(f"{file} was measured on other numbers of devices, {before}: name another --out")
    try:
        shard.divide_cpu(str(arguments.devices), shard.SWEEP)
        shard.number(arguments.devices)
    except Refused as refusal:
        sys.exit(str(refusal))
    names = chosen(arguments)
    for number, name in enumerate(names, 1):
        if {"error", "truth_error"} & set(read(file).get(name, ["error"])):
            row = in_its_own_process(name, arguments)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
            said = row.get("error") or f"{row['measured_in']:.0f} s"
            Console(stderr=True).print(f"{number}/{len(names)} {name}: {said}", style="dim", markup=False)
    rows = list(read(file).values())
    write(rows, arguments)
    show(rows, arguments)


def chosen(arguments: Arguments) -> list[str]:
    """Return the names of the tasks that match the filters."""
    named = [pattern.partition("/")[0] for pattern in arguments.task]  # others need not be installed
    suites = [suite for suite in arguments.suite if any(fnmatch.fnmatchcase(suite, name) for name in named)]
    names: list[str] = []
    for suite in suites:
        try:
            names += [f"{suite}/{task}" for task in envs.tasks(suite)]
        except ValueError as absent:  # the library is absent; the message names it
            Console(stderr=True).print(f"left out: {absent}", style="dim", markup=False)
    found = [n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in arguments.task)]
    if not found:
        sys.exit(f"no task of {', '.join(arguments.suite)} is called {' or '.join(arguments.task)}")
    return found


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Return the latest row of each task, by task."""
    if not file.exists():
        return {}
    return {row["task"]: row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}


def in_its_own_process(name: str, arguments: Arguments) -> dict[str, Any]:
    """Return the row of a task, or what went wrong."""
    command = [sys.executable, __file__, "--only", name, "--seconds", str(arguments.seconds), "--lanes"]
    command += [*map(str, arguments.lanes), "--devices", str(arguments.devices)]
    command += ["--repeats", str(arguments.repeats), "--impl", arguments.impl]
    begun = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=arguments.limit)
    except subprocess.TimeoutExpired:
        return {"task": name, "error": f"not finished within {arguments.limit:.0f} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing said"]
        return {"task": name, "error": f"exit {done.returncode}: {said[-1][:300]}"}
    return {**json.loads(done.stdout.splitlines()[-1]), "measured_in": time.perf_counter() - begun}


def measure(name: str, arguments: Arguments) -> dict[str, Any]:
    """Return one row of the table."""
    jax.config.update("jax_enable_compilation_cache", False)
    shard.divide_cpu(str(arguments.devices), shard.SWEEP)
    options = {} if arguments.impl == "jax" else {"impl": arguments.impl}
    env = envs.make(name, **options)
    compile_seconds, cost, steps_per_second = speed(env, arguments)
    return {
        "task": name,
        **options,
        "commit": provenance.git_commit(),
        "compile_seconds": compile_seconds,
        "env_steps_per_second": steps_per_second,
        "devices": arguments.devices,
        "clock": clock.kind(),
        "reset_cost_percent": cost,
        "state_bytes": memory.tree_bytes(jax.eval_shape(env.reset, jax.random.key(0))[0]),
        **truth(name, options),
    }


class Play:
    """Random play of ``lanes`` environments on as many of ``devices`` as divide them, compiled.

    A call continues to play and returns the seconds it took, by ``clock``.
    """

    def __init__(self, env: Env, state: Any, lanes: int, devices: int) -> None:
        count = math.gcd(lanes, devices)
        mesh, spread = jax.make_mesh((count,), ("lanes",), devices=jax.devices()[:count]), P("lanes")
        state = jax.tree.map(lambda x: x[np.arange(lanes) % len(x)], state)
        self.state = jax.device_put(state, NamedSharding(mesh, spread))
        step, spec, share = jax.vmap(env.step), env.spec, lanes // count

        def actions(t: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(jax.lax.axis_index("lanes")), t)
            if spec.discrete:
                return jax.random.randint(key, (share,), 0, spec.action_dim)
            return jax.random.uniform(key, (share, spec.action_dim), minval=-1)

        @partial(jax.shard_map, mesh=mesh, in_specs=(spread, P()), out_specs=spread, check_vma=False)
        def play(state: Any, steps: jax.Array) -> Any:
            # Sum rewards and observations: XLA would not compute a timestep that nothing reads.
            def one(t: jax.Array, carry: Any) -> Any:
                state, total = carry
                state, timestep = step(state, actions(t))
                return state, total + timestep.reward.sum() + timestep.obs.sum()

            return jax.lax.fori_loop(0, steps, one, (state, np.zeros(1, np.float32)))

        self.clock = clock.chosen()
        begun = self.clock()
        self.compiled = jax.jit(play).lower(self.state, np.int32(1)).compile()
        self.compile_seconds = self.clock() - begun

    def __call__(self, steps: int) -> float:
        begun = self.clock()
        self.state, _ = jax.block_until_ready(self.compiled(self.state, np.int32(steps)))
        return self.clock() - begun


def speed(env: Env, arguments: Arguments) -> tuple[float, float, dict[str, float]]:
    """Return compile seconds, cost of the automatic reset in per cent, and environment steps per second by
    lanes."""
    resetting = rollout.autoreset(env)
    carry, _ = jax.jit(jax.vmap(resetting.reset))(jax.random.split(jax.random.key(0), BESIDE))
    # Both start from the same states; ``autoreset`` also carries a key and a count.
    devices = arguments.devices
    play, bare = Play(resetting, carry, BESIDE, devices), Play(env, carry[1], BESIDE, devices)
    steps = affordable(bare, arguments.seconds / arguments.repeats)
    play(steps)
    pairs = [(play(steps), bare(steps)) for _ in range(arguments.repeats)]
    cost = 100 * (statistics.median(a / b for a, b in pairs) - 1)
    found = {BESIDE: BESIDE * steps / statistics.median(seconds for seconds, _ in pairs)}
    for lanes in set(arguments.lanes) - {BESIDE}:
        alone = Play(resetting, carry, lanes, devices)
        steps = affordable(alone, arguments.seconds / arguments.repeats)
        found[lanes] = lanes * steps / statistics.median(alone(steps) for _ in range(arguments.repeats))
    return play.compile_seconds, cost, {str(lanes): found[lanes] for lanes in arguments.lanes}


def affordable(play: Callable[[int], float], seconds: float) -> int:
    """Return the number of steps that take a program about ``seconds``; at least one."""
    play(1)  # the first call of a program is slower
    steps, taken = 1, play(1)
    while taken < seconds / 20 and steps < 1_000_000:
        steps *= 10
        taken = play(steps)
    return max(1, int(steps * seconds / taken))


def truth(name: str, options: dict[str, str]) -> dict[str, Any]:
    """Return the errors against the original library, relative to the scale of each quantity."""
    suite, _, task = name.partition("/")
    try:
        if suite in TRUTH:
            errors = importlib.import_module(TRUTH[suite]).truth(task, **options)
        else:
            errors = importlib.import_module(TRUTH_IN_JAX).truth(suite, task, **options)
    except Exception as failure:
        said = (str(failure) or repr(failure)).splitlines()[0]
        return {"truth_error": f"{type(failure).__name__}: {said[:200]}"}
    return {
        "truth_obs_median": float(np.median(errors.obs)),
        "truth_obs_p99": float(np.quantile(errors.obs, 0.99)),
        "truth_reward_p99": float(np.quantile(errors.reward, 0.99)),
        "truth_same_flags": float(np.mean(errors.same_flag)),
        "truth_states": len(errors.obs),
    }


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without nesting, for CSV."""
    row = dict(row)
    speeds = row.pop("env_steps_per_second", {})
    return {**row, **{f"steps_per_second_{lanes}": value for lanes, value in speeds.items()}}


def write(rows: Sequence[dict[str, Any]], arguments: Arguments) -> None:
    """Write ``envs-<platform>.json`` and ``.csv`` in ``arguments.results``."""
    found = {d.metadata["name"]: d.version for d in importlib.metadata.distributions()}
    versions = provenance.versions() | {name: found[name] for name in LIBRARIES if name in found}
    target = (arguments.results or arguments.out) / f"envs-{jax.default_backend()}.json"
    record.write(target, versions=versions, rows=rows)
    table = [flat(row) for row in rows]
    columns = list(dict.fromkeys(column for row in table for column in row))
    with target.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(table)


def show(rows: Sequence[dict[str, Any]], arguments: Arguments) -> None:
    """Print the table on standard output."""
    table = Table(title=f"Random play on {provenance.device_name()}")
    lanes = [f"steps/s, {n}" for n in arguments.lanes]
    for header in ["task", "compile s", *lanes, "reset %", "bytes", "truth median", "p99"]:
        table.add_column(header, justify="left" if header == "task" else "right", no_wrap=True)
    for row in rows:
        if "error" in row:
            continue
        speeds = row["env_steps_per_second"]
        table.add_row(
            row["task"],
            f"{row['compile_seconds']:.1f}",
            *(f"{speeds[str(n)]:,.0f}" if str(n) in speeds else "" for n in arguments.lanes),
            f"{row['reset_cost_percent']:.0f}",
            f"{row['state_bytes']:,}",
            f"{row['truth_obs_median']:.0e}" if "truth_obs_median" in row else "none",
            f"{row['truth_obs_p99']:.0e}" if "truth_obs_p99" in row else "",
        )
    console = Console(width=max(Console().width, 120))
    console.print(table)
    for row in rows:
        if failure := row.get("error") or row.get("truth_error"):
            console.print(f"{row['task']}: {failure}", markup=False)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
