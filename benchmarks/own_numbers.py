"""Cost of a gradient step with hyperparameters for each agent, relative to one with common hyperparameters.

    python benchmarks/own_numbers.py --agents sac ppo --out benchmarks/results/own-numbers-cpu.json

Hyperparameters for each agent add an axis to a few scalars and should cost next to nothing; the cost is the
ratio of the medians. The two are measured in turn; on a CPU in processor time, which depends less on other
programs.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import record
from popjax import agents
from popjax.core import as_arrays
from popjax.envs import make
from popjax.population import offpolicy, onpolicy

KINDS = agents.AGENTS | agents.ON_POLICY_AGENTS


@dataclass(frozen=True)
class Arguments:
    """Choices of the measurement."""

    agents: tuple[str, ...] = ("sac", "ppo")
    """Kinds of agents."""
    population: int = 16
    """Number of agents."""
    batch: int = 256
    """Transitions per gradient step, of PPO and A2C per rollout."""
    repeats: int = 20
    """Timed gradient steps, of PPO and A2C all those of a rollout."""
    out: Path | None = None
    """JSON file for the results."""


def phases(kind: str, population: int, batch: int, hyper: Any) -> tuple[Any, Any]:
    """Return the compiled phase ``learn``, one gradient step off-policy, and a State to take it from."""
    env, config = make("gymnax/Pendulum-v1"), KINDS[kind].Config()
    layer: Any = onpolicy if agents.on_policy(config) else offpolicy
    sizes = {"agent": config, "population": population, "lanes": 1, "steps": batch}
    if layer is offpolicy:
        sizes |= {"updates": 1, "batch": batch, "warmup": 0, "capacity": batch}
    base = layer.build(env, layer.Config(**sizes))
    state = jax.jit(lambda: layer.State(**base.fields(jax.random.key(0), hyper)))()
    return jax.jit(base.learn), jax.jit(base.collect)(state)


def measure(kind: str, arguments: Arguments) -> list[float]:
    """Return the median seconds with common hyperparameters, and with hyperparameters for each agent."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    common = as_arrays(agents.default_hyper(KINDS[kind].Config()))
    each = jax.tree.map(lambda x: jnp.full(arguments.population, x), common)
    pairs = [phases(kind, arguments.population, arguments.batch, hyper) for hyper in (common, each)]
    seconds: list[list[float]] = [[], []]
    for turn in range(arguments.repeats + 1):
        for taken, (learn, state) in zip(seconds, pairs, strict=True):
            begun = clock()
            jax.block_until_ready(learn(state))
            if turn:  # the first compiles
                taken.append(clock() - begun)
    return [statistics.median(taken) for taken in seconds]


def main(arguments: Arguments) -> None:
    """Measure, print and write."""
    record.check_known(arguments.agents, KINDS)
    rows = {}
    for kind in arguments.agents:
        common, each = measure(kind, arguments)
        rows[kind] = {"common_seconds": common, "each_seconds": each, "ratio": round(each / common, 3)}
        print(f"{kind}: common {1e3 * common:.2f} ms, own {1e3 * each:.2f} ms, ratio {each / common:.3f}")
    record.write(arguments.out, rows=rows)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
