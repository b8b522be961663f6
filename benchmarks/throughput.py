"""Speed at which populations step and learn, and what they take: one table, and a JSON file beside it.

    python benchmarks/throughput.py --methods sac td3 pderl --populations 1 2 4 8 16

Every figure is the median of ``--repeats`` timed chunks of one compiled program, after one untimed chunk;
``benchmarks/peers.py`` compares with other libraries.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import popjax
from benchmarks import record
from popjax.agents import AGENTS, ddpg, dqn, ppo
from popjax.core import Method
from popjax.host.scaling import memory
from popjax.methods import ca2e, ce, independent, onpolicy, pderl


@dataclass(frozen=True)
class Arguments:
    """Choices of the measurement."""

    methods: tuple[Literal["sac", "td3", "ddpg", "ppo", "pderl", "ce", "ca2e"], ...] = (
        "sac",
        "td3",
        "ddpg",
        "pderl",
    )
    """Agents of ``independent`` or ``onpolicy``, or methods; ca2e is its own eight actors."""
    populations: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Population sizes; pderl starts at 2."""
    lanes: int = 1
    """Environments of each agent; not of pderl."""
    env: str = "gymnax/Pendulum-v1"
    """Environment as SUITE/TASK."""
    capacity: int = 131_072
    """Replay, transitions; every independent agent has its own, rejax's default size."""
    batch: int = 256
    """Transitions per gradient step of an independent agent."""
    iterations: int = 500
    """Environment steps, and updates, of each independent agent in a timed chunk; pderl's is a generation."""
    repeats: int = 5
    """Timed chunks."""
    out: Path | None = None
    """JSON file for the results."""


@dataclass
class Row:
    """Medians over the timed chunks; memory in bytes, compile time in seconds."""

    method: str
    population: int
    env_steps_per_second: float = 0.0
    gradient_steps_per_second: float = 0.0
    compile_seconds: float = 0.0
    peak_bytes: int = 0
    state_bytes: int = 0
    temporary_bytes: int = 0


class Program:
    """A compiled, donated chunk with its state: call it to advance; returns the seconds it took."""

    def __init__(self, init: Callable[[Any], Any], step: Callable[[Any], Any], length: int) -> None:
        self.state = jax.jit(init)(jax.random.key(0))

        def chunk(state: Any) -> Any:
            return jax.lax.scan(lambda s, _: (step(s), None), state, length=length)[0]

        begun = time.perf_counter()
        self.compiled = jax.jit(chunk, donate_argnums=0).lower(self.state).compile()
        self.compile_seconds = time.perf_counter() - begun

    def __call__(self) -> float:
        begun = time.perf_counter()
        self.state = jax.block_until_ready(self.compiled(self.state))
        return time.perf_counter() - begun


def main(arguments: Arguments) -> None:
    """Measures and prints; writes ``arguments.out``."""
    env = popjax.make(arguments.env)
    rows = []
    for name in arguments.methods:
        for population in arguments.populations:
            if name == "pderl" and population < 2:
                continue
            rows.append(measure(name, population, env, arguments))
            Console(stderr=True).print(f"measured {name} with population {population}", style="dim")
    show(rows, arguments)
    record.write(arguments.out, rows=[asdict(row) for row in rows])


def measure(name: str, population: int, env: popjax.Env, arguments: Arguments) -> Row:
    """One row of the table."""
    method, length = build(name, population, env, arguments)
    program = Program(lambda key: method.init(key, method.hyper), method.step, length)
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
    row.gradient_steps_per_second = statistics.median(n / s for n, s in zip(updates, seconds, strict=True))
    row.peak_bytes = memory.compiled_bytes(program.compiled)
    row.state_bytes = memory.tree_bytes(program.state)
    row.temporary_bytes = program.compiled.memory_analysis().temp_size_in_bytes
    return row


def build(name: str, population: int, env: popjax.Env, arguments: Arguments) -> tuple[Method, int]:
    """The method and how many of its steps make a chunk."""
    own = {"capacity": arguments.capacity}
    if name == "pderl":
        return pderl.build(env, pderl.Config(population=population, **own)), 1
    if name == "ppo":
        config = onpolicy.Config(agent=ppo.Config(), population=population, lanes=max(arguments.lanes, 4))
        return onpolicy.build(env, config), 1
    own |= {"lanes": arguments.lanes, "batch": arguments.batch}
    if name == "ce":
        config = ce.Config(population=population, warmup=arguments.batch, **own)
        return ce.build(env, config), arguments.iterations
    if name == "ca2e":
        agent = dqn.Config() if env.spec.discrete else ddpg.BASELINES
        config = replace(ca2e.default_config(agent), learning_starts=1_000, **own)
        return ca2e.build(env, config), arguments.iterations
    config = independent.Config(
        agent=AGENTS[name].Config(), population=population, warmup=arguments.batch, **own
    )
    return independent.build(env, config), arguments.iterations


def gradient_steps(name: str, taken: int, method: Method, after: Any, arguments: Arguments) -> int:
    """Updates in a chunk of ``taken`` environment steps, summed over agents; of PPO those of the policy."""
    assert method.built
    config = method.built.config
    if name == "pderl":
        return int(after.metrics.gradient_steps)
    if name == "ppo":
        return int(after.metrics.losses.policy_steps.sum())
    if name == "ca2e":
        return taken // config.env_steps_per_update
    if name == "ce":
        return taken * config.population
    return arguments.iterations * config.population


def show(rows: Sequence[Row], arguments: Arguments) -> None:
    """The table on standard output."""
    table = Table(title=f"{arguments.env} on {jax.devices()[0].device_kind}")
    headers = ["method", "P", "env steps/s", "gradient steps/s", "compile s", "peak MB", "temporaries/State"]
    for header in headers:
        table.add_column(header, justify="left" if header == "method" else "right")
    for row in rows:
        cells = [
            row.method,
            str(row.population),
            f"{row.env_steps_per_second:,.0f}",
            f"{row.gradient_steps_per_second:,.0f}",
            f"{row.compile_seconds:.1f}",
            f"{row.peak_bytes / 1e6:,.1f}",
            f"{row.temporary_bytes / row.state_bytes:.2f}",
        ]
        table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
