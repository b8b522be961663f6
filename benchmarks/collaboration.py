"""Cost of collaboration: SAC, Replica and Collaborative Exploration at several sizes, in one process.

    python benchmarks/collaboration.py --out benchmarks/results/collaboration-cpu.json

All agents take one gradient step per environment step of any agent, the paper's ratio: ``N`` agents do ``N``
times the work of one for each environment step. Chunks of all programs alternate, so that a noisy machine is
noisy for all; figures are medians over ``--repeats`` rounds, and ratios are medians of ratios within a round.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import popjax
from benchmarks import record
from benchmarks.program import Program, in_turn
from popjax.host.scaling import memory
from popjax.methods import ce


@dataclass(frozen=True)
class Arguments:
    """Choices of the measurement."""

    populations: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of agents; SAC always has one."""
    env: str = "gymnax/Pendulum-v1"
    """Environment as SUITE/TASK."""
    updates: int = 64
    """Gradient steps of each agent in a timed chunk, at least those of one step of the method."""
    repeats: int = 5
    """Rounds of timed chunks."""
    capacity: int = 100_000
    """Transitions that the replay holds."""
    out: Path | None = None
    """JSON file for the results."""


@dataclass
class Row:
    """A method at one population size; replay and temporaries in bytes, compile time in seconds."""

    method: str
    population: int
    env_steps_per_second: float
    agent_updates_per_second: float
    seconds_per_env_step_over_sac: float
    over_replica: float | None
    compile_seconds: float
    replay_bytes: int
    temporary_bytes: int
    seconds: list[float] = field(default_factory=list)


def main(arguments: Arguments) -> None:
    """Measure and print; write ``arguments.out`` after every size, and skip the sizes that it already has."""
    rows, _ = record.kept(arguments.out)
    had = {row["population"] for row in rows if row["method"] == "ce"}
    for population in arguments.populations:
        if population not in had:
            rows += [asdict(row) for row in measure(population, arguments)]
            Console(stderr=True).print(f"measured {population} agents", style="dim")
            record.write(arguments.out, rows=rows)
    show(rows, arguments)


def measure(population: int, arguments: Arguments) -> list[Row]:
    """Return the rows of Replica and CE at this size and, at the first size, that of SAC."""
    configs = {
        "sac": ce.Config(population=1, drive=None),
        "replica": ce.Config(population=population, drive=None),
        "ce": ce.Config(population=population),
    }
    programs = {}
    for name, config in configs.items():
        options = {"warmup": 512, "capacity": arguments.capacity}
        method = ce.build(popjax.make(arguments.env), replace(config, **options))
        length = max(1, arguments.updates // method.steps_bound)
        program = Program(lambda key, method=method: method.init(key, method.hyper), method.step, length)
        while int(program.state.env_steps) < 512 + length * method.steps_bound:
            program()
        programs[name] = program
    seconds = in_turn(programs, arguments.repeats)
    return [
        row(name, configs[name].population, program, seconds)
        for name, program in programs.items()
        if name != "sac" or population == arguments.populations[0]
    ]


def row(name: str, population: int, program: Program, seconds: dict[str, list[float]]) -> Row:
    """Return the row of one method; ``seconds`` are per environment step, of every method in every round."""

    def over(other: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True))

    typical = statistics.median(seconds[name])
    return Row(
        method=name,
        population=population,
        env_steps_per_second=1 / typical,
        agent_updates_per_second=population / typical,
        seconds_per_env_step_over_sac=over("sac"),
        over_replica=over("replica") if name == "ce" else None,
        compile_seconds=program.compile_seconds,
        replay_bytes=memory.tree_bytes(program.state.replay),
        temporary_bytes=program.compiled.memory_analysis().temp_size_in_bytes,
        seconds=seconds[name],
    )


def show(rows: list[dict[str, Any]], arguments: Arguments) -> None:
    """Print the table on standard output."""
    table = Table(title=f"{arguments.env} on {jax.devices()[0].device_kind}")
    headers = ["method", "N", "env steps/s", "agent updates/s", "time / SAC", "time / Replica", "replay MB"]
    for header in headers:
        table.add_column(header, justify="left" if header == "method" else "right")
    for entry in rows:
        table.add_row(
            entry["method"],
            str(entry["population"]),
            f"{entry['env_steps_per_second']:,.1f}",
            f"{entry['agent_updates_per_second']:,.0f}",
            f"{entry['seconds_per_env_step_over_sac']:.2f}",
            "" if entry["over_replica"] is None else f"{entry['over_replica']:.2f}",
            f"{entry['replay_bytes'] / 1e6:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
