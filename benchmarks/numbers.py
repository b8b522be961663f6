"""A gradient step of a population whose numbers are one for each agent, beside one with common numbers.

    python benchmarks/numbers.py --population 16 --agents sac ppo

Numbers of each agent are an axis of the same program, and should cost next to nothing: the ratio of the two
medians is printed, the two measured in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from popjax import agents
from popjax.core import as_arrays
from popjax.envs import make
from popjax.population import offpolicy, onpolicy


def phases(kind: str, population: int, batch: int, hyper):
    """Return the compiled learning phase and a State with these numbers."""
    env = make("gymnax/Pendulum-v1")
    config = (agents.AGENTS | agents.ON_POLICY_AGENTS)[kind].Config()
    if kind in agents.ON_POLICY_AGENTS:
        layer, own = onpolicy, onpolicy.Config(agent=config, population=population, steps=batch)
    else:
        sizes = {"population": population, "batch": batch, "warmup": 0, "capacity": 4 * batch}
        layer, own = offpolicy, offpolicy.Config(agent=config, updates=10, steps=batch, **sizes)
    base = layer.build(env, own)
    state = jax.jit(lambda: layer.State(**base.fields(jax.random.key(0), hyper)))()
    return jax.jit(base.learn), jax.jit(base.collect)(state)


def measure(kind: str, population: int, batch: int, repeats: int) -> tuple[float, float]:
    """Return the median seconds with common numbers, and with those of each agent."""
    config = (agents.AGENTS | agents.ON_POLICY_AGENTS)[kind].Config()
    common = as_arrays(agents.default_hyper(config))
    each = jax.tree.map(lambda x: jnp.full(population, x), common)
    pairs = [phases(kind, population, batch, hyper) for hyper in (common, each)]
    seconds = [[], []]
    for learn, state in pairs:
        jax.block_until_ready(learn(state))
    for _ in range(repeats):
        for taken, (learn, state) in zip(seconds, pairs, strict=True):
            begun = time.perf_counter()
            jax.block_until_ready(learn(state))
            taken.append(time.perf_counter() - begun)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", nargs="+", default=["sac", "ppo"])
    parser.add_argument("--population", type=int, default=16)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=50)
    chosen = parser.parse_args()
    for kind in chosen.agents:
        common, each = measure(kind, chosen.population, chosen.batch, chosen.repeats)
        print(f"{kind}: common {1e3 * common:.2f} ms, own {1e3 * each:.2f} ms, ratio {each / common:.3f}")


if __name__ == "__main__":
    main()
