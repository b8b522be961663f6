"""Speed at which populations step and learn, and the memory that they take, as a table and a JSON file.

    python benchmarks/throughput.py --methods sac td3 pderl --populations 1 2 4 8 16
    python benchmarks/throughput.py --methods cdrl ca2e --env gymnax/Breakout-MinAtar

Every figure is the median of ``--repeats`` timed chunks of one compiled program, after one untimed chunk and
the method's warm-up, in a process of its own; ``benchmarks/peers.py`` compares with other libraries. Methods
have their default Config except for the sizes below. ``align`` and ``distil``, which begin with finished
runs, are measured by ``update_modes.py``, ``alignment.py`` and ``distillation.py``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # this process leaves a GPU to its children

import jax
import tyro
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import popjax
from benchmarks import record
from benchmarks.program import Program
from popjax.agents import AGENTS, ON_POLICY_AGENTS
from popjax.core import Method
from popjax.host import recipes
from popjax.host.scaling import memory
from popjax.recipe import Recipe, default_config

Name = Literal[
    *("sac", "td3", "ddpg", "sac2018", "dqn", "ppo", "a2c"),
    *("pderl", "erl", "cem_rl", "es", "ce", "sunrise", "dice", "diayn", "pbt", "cspc", "ca2e", "cdrl"),
]
LONG = ("ppo", "pderl", "erl", "cem_rl", "es", "cspc")
"""Methods whose chunk is a single step, which plays whole episodes or thousands of environment steps."""


@dataclass(frozen=True)
class Arguments:
    """Choices of the measurement."""

    methods: tuple[Name, ...] = ("sac", "td3", "ddpg", "pderl")
    """Methods, or kinds of agent, which ``independent`` or ``onpolicy`` trains."""
    populations: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Population sizes; methods whose Config has none have one row."""
    lanes: int = 1
    """Environments of each agent, where the Config has them."""
    env: str = "gymnax/Pendulum-v1"
    """Environment as SUITE/TASK."""
    capacity: int = 131_072
    """Capacity of a replay [transitions], by default rejax's; every independent agent has its own."""
    batch: int = 256
    """Transitions per gradient step of independent agents and of CE's; other methods keep their own."""
    iterations: int = 500
    """Steps of a method in a timed chunk, but see ``LONG``."""
    repeats: int = 5
    """Timed chunks."""
    limit: float = 400
    """Time after which a row is given up [seconds]."""
    out: Path | None = None
    """JSON file for the results."""


@dataclass
class Row:
    """Medians over the timed chunks; memory in bytes, compile time in seconds.

    gradient_steps_per_second: summed over agents, for PPO and A2C those of the policy; None if a method does
                               not count them.
    peak_bytes:   as the host estimates it before it allocates anything.
    device_bytes: peak memory of the accelerator, including programs that initialise; None on a CPU.
    """

    method: str
    population: int
    env_steps_per_second: float = 0.0
    gradient_steps_per_second: float | None = None
    compile_seconds: float = 0.0
    peak_bytes: int = 0
    device_bytes: int | None = None
    state_bytes: int = 0
    temporary_bytes: int = 0


def main(arguments: Arguments) -> None:
    """Measure and print; write ``arguments.out`` after every row, and skip rows that it already has."""
    rows, _ = record.kept(arguments.out)
    had = {(row["method"], row["population"]) for row in rows}
    for name, population in product(arguments.methods, arguments.populations):
        if population != arguments.populations[0] and not hasattr(_recipe(name)[0].config(), "population"):
            continue
        if (name, population) not in had:
            rows.append(in_its_own_process(name, population, arguments))
            record.write(arguments.out, rows=rows)
    show(rows, arguments)


def in_its_own_process(name: str, population: int, arguments: Arguments) -> dict[str, Any]:
    """Return a row, or the first line of what went wrong."""
    told = json.dumps(asdict(arguments) | {"out": None})
    command = [sys.executable, __file__, "--one", name, str(population), told]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=arguments.limit)
    except subprocess.TimeoutExpired:
        said = {"cannot": f"no answer in {arguments.limit:g} s"}
    else:
        failed = {"cannot": f"ended with exit status {done.returncode}"}
        said = failed if done.returncode else json.loads(done.stdout.splitlines()[-1])
    Console(stderr=True).print(f"{name} with population {population}: {said}", style="dim", markup=False)
    return {"method": name, "population": population} | said


def one(name: str, population: int, arguments: Arguments) -> None:
    """Print the row of a method as JSON, or why there is none."""
    try:
        print(json.dumps(asdict(measure(name, population, popjax.make(arguments.env), arguments))))
    except (ValueError, jax.errors.JaxRuntimeError) as error:  # such as a device without enough memory
        print(json.dumps({"cannot": str(error).splitlines()[0][:200]}))


def measure(name: str, population: int, env: popjax.Env, arguments: Arguments) -> Row:
    """Return one row of the table."""
    method = build(name, population, env, arguments)
    program = Program(
        lambda key: method.init(key, method.hyper),
        method.step,
        1 if name in LONG else arguments.iterations,
    )
    program()
    while int(program.state.env_steps) <= method.learning_starts:
        program()
    seconds, env_steps, updates = [], [], []
    for _ in range(arguments.repeats):
        before = int(program.state.env_steps)
        seconds.append(program())
        env_steps.append(int(program.state.env_steps) - before)
        updates.append(gradient_steps(name, env_steps[-1], method, program.state, arguments))
    row = Row(name, population, compile_seconds=program.compile_seconds)
    row.env_steps_per_second = statistics.median(n / s for n, s in zip(env_steps, seconds, strict=True))
    counted = [n / s for n, s in zip(updates, seconds, strict=True) if n is not None]
    row.gradient_steps_per_second = statistics.median(counted) if counted else None
    row.peak_bytes = memory.compiled_bytes(program.compiled)
    row.state_bytes = memory.tree_bytes(program.state)
    row.temporary_bytes = program.compiled.memory_analysis().temp_size_in_bytes
    if jax.default_backend() != "cpu":
        row.device_bytes = memory.peak_bytes(jax.local_devices()[0])
    return row


def build(name: str, population: int, env: popjax.Env, arguments: Arguments) -> Method:
    """Return the method in the sizes that were asked for, as far as its Config has them."""
    sizes = {"population": population, "capacity": arguments.capacity, "lanes": arguments.lanes}
    if name in ON_POLICY_AGENTS:
        sizes["lanes"] = max(arguments.lanes, 4)
    if name in AGENTS or name == "ce":
        sizes |= {"batch": arguments.batch, "warmup": arguments.batch}
    if name == "ca2e":
        sizes["learning_starts"] = 1_000
    recipe, kinds = _recipe(name)
    config = default_config(recipe, env.spec, **kinds)
    config = replace(config, **{field: size for field, size in sizes.items() if hasattr(config, field)})
    return recipe.build(env, config)


def _recipe(name: str) -> tuple[Recipe, dict[str, str]]:
    """Return the Recipe of a method, or the one that trains plain agents, and the kind of these agents."""
    method = "independent" if name in AGENTS else "onpolicy" if name in ON_POLICY_AGENTS else name
    return recipes.recipe(method), {"agent": name} if method != name else {}


def gradient_steps(name: str, taken: int, method: Method, after: Any, arguments: Arguments) -> int | None:
    """Return the updates in a chunk of ``taken`` environment steps, summed over agents; see ``Row``."""
    assert method.built
    config = method.built.config
    if name in AGENTS:
        return arguments.iterations * config.population * config.updates
    if name == "ppo":
        return int(after.metrics.losses.policy_steps.sum())
    if name == "a2c":
        return arguments.iterations * config.population
    if name in ("pderl", "erl"):
        return int(after.metrics.gradient_steps)
    if name == "cem_rl":
        return int(after.metrics.gradient_steps) * config.trained
    if name == "ca2e":
        return taken // config.env_steps_per_update
    return taken * config.population if name == "ce" else None


def show(rows: Sequence[dict[str, Any]], arguments: Arguments) -> None:
    """Print the table on standard output."""
    table = Table(title=arguments.env)
    headers = ["method", "P", "env steps/s", "gradient steps/s", "compile s", "peak MB", "temporaries/State"]
    for header in headers:
        table.add_column(header, justify="left" if header == "method" else "right")
    for row in rows:
        if "cannot" in row:
            table.add_row(row["method"], str(row["population"]), row["cannot"])
            continue
        updates = row["gradient_steps_per_second"]
        table.add_row(
            row["method"],
            str(row["population"]),
            f"{row['env_steps_per_second']:,.0f}",
            "" if updates is None else f"{updates:,.0f}",
            f"{row['compile_seconds']:.1f}",
            f"{(row['device_bytes'] or row['peak_bytes']) / 1e6:,.1f}",
            f"{row['temporary_bytes'] / row['state_bytes']:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], int(sys.argv[3]), Arguments(**json.loads(sys.argv[4])))
    else:
        main(tyro.cli(Arguments, description=__doc__))
