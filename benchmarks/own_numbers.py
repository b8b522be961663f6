"""Cost of a gradient step with hyperparameters for each agent, relative to one with common hyperparameters.

    python benchmarks/own_numbers.py --agents sac ppo --out benchmarks/results/own-numbers-cpu.json

Hyperparameters for each agent add an axis to a few scalars and should cost next to nothing; the cost is the
ratio of the medians. The two are measured in turn; on a CPU in processor time, which depends less on other
programs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import record

from popjax import agents
from popjax.core import as_arrays
from popjax.envs import make
from popjax.population import offpolicy, onpolicy


def phases(kind: str, population: int, batch: int, hyper: Any) -> tuple[Any, Any]:
    """Return the compiled phase ``learn``, one gradient step off-policy, and a State to take it from."""
    env, config = make("gymnax/Pendulum-v1"), (agents.AGENTS | agents.ON_POLICY_AGENTS)[kind].Config()
    layer: Any = onpolicy if agents.on_policy(config) else offpolicy
    sizes = {"agent": config, "population": population, "lanes": 1, "steps": batch}
    if layer is offpolicy:
        sizes |= {"updates": 1, "batch": batch, "warmup": 0, "capacity": batch}
    base = layer.build(env, layer.Config(**sizes))
    state = jax.jit(lambda: layer.State(**base.fields(jax.random.key(0), hyper)))()
    return jax.jit(base.learn), jax.jit(base.collect)(state)


def measure(kind: str, population: int, batch: int, repeats: int) -> list[float]:
    """Return the median seconds with common hyperparameters, and with hyperparameters for each agent."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    common = as_arrays(agents.default_hyper((agents.AGENTS | agents.ON_POLICY_AGENTS)[kind].Config()))
    each = jax.tree.map(lambda x: jnp.full(population, x), common)
    pairs = [phases(kind, population, batch, hyper) for hyper in (common, each)]
    seconds: list[list[float]] = [[], []]
    for turn in range(repeats + 1):
        for taken, (learn, state) in zip(seconds, pairs, strict=True):
            begun = clock()
            jax.block_until_ready(learn(state))
            if turn:  # the first compiles
                taken.append(clock() - begun)
    return [statistics.median(taken) for taken in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", nargs="+", default=["sac", "ppo"])
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rows = {}
    for kind in chosen.agents:
        common, each = measure(kind, chosen.population, chosen.batch, chosen.repeats)
        rows[kind] = {"common_seconds": common, "each_seconds": each, "ratio": round(each / common, 3)}
        print(f"{kind}: common {1e3 * common:.2f} ms, own {1e3 * each:.2f} ms, ratio {each / common:.3f}")
    record.write(chosen.out, rows=rows)


if __name__ == "__main__":
    main()
