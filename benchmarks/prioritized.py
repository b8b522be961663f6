"""Cost of prioritized replay beside a gradient step: popjax, flashbax and DDPG updates, in one process.

    taskset -c 1 python benchmarks/prioritized.py --out benchmarks/results/prioritized-cpu.json

One iteration draws a batch, with rows and probabilities, and gives its rows new priorities; a hundred of them
are one compiled scan, so that no dispatch is measured. The replays are full. ``uniform`` is only the draw
from a plain ring, ``ddpg`` only the gradient step (``popjax.agents.ddpg`` with ERL's networks; ``ddpg-64``
with those of OpenAI Baselines, 64-64). The cost of prioritized replay beyond a uniform draw is also given as
a share of a gradient step of ``ddpg-64``. All programs take turns, so that a noisy machine is noisy for all;
figures are medians over rounds, ratios medians of ratios within a round. Processor time is given as well as
wall-clock time: it is steadier on a core that others use, too. The command uses one core, since XLA may hand
kernels of a few microseconds from thread to thread, which takes longer than they do.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flashbax
import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import record
from benchmarks.program import Program
from popjax import tree
from popjax.agents import ddpg
from popjax.core import Spec, Transition, as_arrays, example_transition
from popjax.host.scaling.shard import cores
from popjax.replay.prioritized import prioritized
from popjax.replay.ring import ring

EXPONENT = 0.6


@dataclass(frozen=True)
class Arguments:
    """Choices of the measurement."""

    batches: tuple[int, ...] = (256, 32)
    """Rows of a draw, and of a gradient step."""
    capacity: int = 1_000_000
    """Rows that the replays hold."""
    obs: int = 11
    """Observation size; the action has three components, as Hopper's."""
    iterations: int = 100
    """Iterations of a timed chunk."""
    repeats: int = 21
    """Rounds of timed chunks."""
    out: Path | None = None
    """JSON file for the results."""


def main(arguments: Arguments) -> None:
    """Measure and print; write ``arguments.out``."""
    rows = [measure(batch, arguments) for batch in arguments.batches]
    show(rows)
    record.write(arguments.out, cores=cores(), rows=rows)


def measure(batch: int, arguments: Arguments) -> dict[str, Any]:
    """Return the seconds of an iteration of every program, and ratios."""
    spec = Spec("hopper", (arguments.obs,), 3, 1000)
    example, capacity = example_transition(spec), arguments.capacity
    sources = {
        "popjax": of_replay(example, batch, capacity, prioritized(capacity)),
        "flashbax": of_flashbax(example, batch, capacity),
        "uniform": of_ring(example, batch, capacity),
        "ddpg": of_agent(spec, batch, ddpg.Config(), ddpg.Hyper()),
        "ddpg-64": of_agent(spec, batch, ddpg.BASELINES, ddpg.baselines_hyper()),
    }
    programs = {name: Program(*pair, arguments.iterations) for name, pair in sources.items()}
    clock: dict[str, list[float]] = {name: [] for name in programs}
    processor: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(arguments.repeats + 1):
        for name, program in programs.items():
            begun = time.process_time()
            seconds = program()
            if turn:  # the first round warms the caches
                clock[name].append(seconds / arguments.iterations)
                processor[name].append((time.process_time() - begun) / arguments.iterations)

    figures: dict[str, Any] = {"batch": batch, "capacity": capacity}
    for kind, times in (("clock", clock), ("processor", processor)):
        figures[kind] = {
            "seconds": {name: statistics.median(values) for name, values in times.items()},
            "flashbax_over_popjax": typical(times, lambda t: t["flashbax"] / t["popjax"]),
            "popjax_over_ddpg": typical(times, lambda t: t["popjax"] / t["ddpg"]),
            "popjax_over_ddpg_64": typical(times, lambda t: t["popjax"] / t["ddpg-64"]),
            "beyond_uniform_over_ddpg_64": typical(
                times, lambda t: (t["popjax"] - t["uniform"]) / t["ddpg-64"]
            ),
        }
    figures["temporary_bytes"] = {
        name: program.compiled.memory_analysis().temp_size_in_bytes for name, program in programs.items()
    }
    return figures


def typical(times: dict[str, list[float]], figure: Callable[[dict[str, float]], float]) -> float:
    """Return the median over rounds of a figure computed from one round's times."""
    rounds = zip(*times.values(), strict=True)
    return statistics.median(figure(dict(zip(times, one, strict=True))) for one in rounds)


def new_priority(drawn: Any) -> jax.Array:
    """Return priorities [B] that depend on every leaf of the ``drawn`` rows, so that none is left unread."""
    read = sum(jnp.sum(x.reshape(x.shape[0], -1), 1) for x in jax.tree.leaves(drawn))
    return jnp.abs(jnp.sin(read))


def random_rows(key: Any, example: Transition, count: int) -> Transition:
    """Return [count] transitions of normal random numbers."""
    return tree.normal_like(key, jax.tree.map(lambda x: jnp.zeros((count, *x.shape)), example))


def of_replay(example: Transition, batch: int, capacity: int, memory: Any) -> tuple[Callable, Callable]:
    """Return init and step of a full prioritized replay of popjax: draw, update."""

    def init(key: Any) -> Any:
        state = memory.init(example, EXPONENT)
        rows, priority = random_rows(key, example, capacity), jax.random.exponential(key, (capacity,))
        return memory.add(state, rows, jnp.ones(capacity, bool), priority), key

    def step(carry: Any) -> Any:
        state, key = carry
        key, key_sample = jax.random.split(key)
        rows, draw = memory.sample(state, key_sample, batch)
        return memory.update(state, draw.slots, new_priority((rows, draw.probability))), key

    return init, step


def of_flashbax(example: Transition, batch: int, capacity: int) -> tuple[Callable, Callable]:
    """Return init and step of a full prioritised flat buffer of flashbax: draw, update.

    The buffer stores steps and draws pairs of neighbours, so that as much is read as for a ``Transition``.
    """
    added = math.gcd(capacity, 10_000)
    buffer = flashbax.make_prioritised_flat_buffer(
        max_length=capacity,
        min_length=batch,
        sample_batch_size=batch,
        add_sequences=True,
        priority_exponent=EXPONENT,
        device=jax.default_backend(),
    )
    row = {"obs": example.obs, "action": example.action, "reward": example.reward, "done": example.discount}

    def init(key: Any) -> Any:
        rows = tree.normal_like(key, jax.tree.map(lambda x: jnp.zeros((added, *x.shape)), row))
        state = buffer.init(row)
        state = jax.lax.fori_loop(0, capacity // added, lambda _, state: buffer.add(state, rows), state)
        return state, key

    def step(carry: Any) -> Any:
        state, key = carry
        key, key_sample = jax.random.split(key)
        drawn = buffer.sample(state, key_sample)
        new = new_priority((drawn.experience, drawn.probabilities))
        return buffer.set_priorities(state, drawn.indices, new), key

    return init, step


def of_ring(example: Transition, batch: int, capacity: int) -> tuple[Callable, Callable]:
    """Return init and step of a full ring of popjax: only the draw."""
    memory = ring(capacity)

    def init(key: Any) -> Any:
        rows = random_rows(key, example, capacity)
        return memory.add(memory.init(example), rows, jnp.ones(capacity, bool)), key, jnp.zeros(batch)

    def step(carry: Any) -> Any:
        state, key, read = carry
        key, key_sample = jax.random.split(key)
        return state, key, read + new_priority(memory.sample(state, key_sample, batch))

    return init, step


def of_agent(spec: Spec, batch: int, config: Any, hyper: Any) -> tuple[Callable, Callable]:
    """Return init and step of an agent: a gradient step on a window that moves over random transitions."""
    agent, hyper = ddpg.build(spec, config), as_arrays(hyper)

    def init(key: Any) -> Any:
        return agent.init(key, hyper), random_rows(key, example_transition(spec), 1000 + batch), jnp.int32(0)

    def step(carry: Any) -> Any:
        state, rows, start = carry
        window = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, batch), rows)
        state, _ = agent.learn(state, window, hyper, jax.random.key(0))
        return state, rows, (start + 7) % 1000

    return init, step


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table on standard output."""
    table = Table(title=f"Microseconds of an iteration on {jax.devices()[0].device_kind}")
    names = list(rows[0]["clock"]["seconds"])
    ratios = [name for name in rows[0]["clock"] if name != "seconds"]
    for header in ("batch", "time", *names, *(name.replace("_", " ") for name in ratios)):
        table.add_column(header, justify="right")
    for row in rows:
        for kind in ("clock", "processor"):
            found = row[kind]
            seconds = (f"{found['seconds'][name] * 1e6:,.0f}" for name in names)
            table.add_row(str(row["batch"]), kind, *seconds, *(f"{found[name]:.3f}" for name in ratios))
    Console(width=160).print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
