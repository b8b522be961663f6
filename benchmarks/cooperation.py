"""Cost of cooperation: the team of SAC, PPO and CEM beside SAC alone, in one process.

    python benchmarks/cooperation.py --out benchmarks/results/cooperation-cpu.json

Both play equally many environment steps in an iteration, are tested after it, and take a gradient step for
every environment step. Iterations alternate, so that a noisy machine is noisy for both; the ratio of seconds
per environment step is the median over neighbouring iterations. Handing over policies, following episodes and
drawing from two replays are also timed alone, as often as they happen in an iteration.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import popjax
from benchmarks import record
from benchmarks.program import Program, in_turn
from popjax import counting, tree
from popjax.core import Env
from popjax.methods import cspc, cspc_team
from popjax.population import exchange
from popjax.replay import good_episodes


@dataclass(frozen=True)
class Arguments:
    """Choices of the measurement."""

    env: str = "gym/Hopper-v4"
    """Environment as SUITE/TASK."""
    phase: int = 2_000
    """Environment steps of each agent in an iteration; SAC alone plays three times as many."""
    repeats: int = 5
    """Rounds of timed iterations."""
    capacity: int = 1_000_000
    """Transitions that the replay holds."""
    out: Path | None = None
    """JSON file for the results."""


def main(arguments: Arguments) -> None:
    """Measure and print; write ``arguments.out``."""
    env = popjax.make(arguments.env)
    team = cspc.Config(
        phase=arguments.phase, first_phase=arguments.phase, capacity=arguments.capacity, warmup=1000
    )
    alone = replace(team, on_policy=None, evolution=None, phase=3 * arguments.phase)
    programs = {name: program(env, config) for name, config in (("cspc", team), ("sac", alone))}
    seconds = in_turn(programs, arguments.repeats)
    ratio = statistics.median(a / b for a, b in zip(seconds["cspc"], seconds["sac"], strict=True))
    iteration = statistics.median(seconds["cspc"]) * 3 * arguments.phase
    parts = pieces(env, team, programs["cspc"].state)
    result = {
        "env": arguments.env,
        "cspc_over_sac": ratio,
        "seconds_per_env_step": {name: statistics.median(s) for name, s in seconds.items()},
        "seconds_per_iteration": iteration,
        "seconds_of_cooperation_in_it": parts,
        "share_of_cooperation": sum(parts.values()) / iteration,
        "compile_seconds": {name: one.compile_seconds for name, one in programs.items()},
        "rounds": seconds,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=1))
    record.write(arguments.out, **result)


def program(env: Env, config: cspc.Config) -> Program:
    """Return the compiled iteration, after the first phase."""
    method = cspc.build(env, config)
    made = Program(lambda key: method.init(key, method.hyper), method.step, 1)
    for _ in range(2):
        made()
    return made


def pieces(env: Env, config: cspc.Config, state: Any) -> dict[str, float]:
    """Return the seconds that an iteration spends on each part of cooperating."""
    roster, steps = cspc_team.gather(env.spec, config), 3 * config.phase
    gate = good_episodes.Gate(jnp.array([True]), jnp.float32(-jnp.inf))
    thin = replace(state.memory, replay=())

    def hand_over(state: Any) -> Any:
        taken = exchange.ahead(state.scores, state.hyper.gap) & cspc_team.givers(roster)
        return cspc_team.hand_over(roster, state.team, taken)

    def follow(thin: Any) -> Any:
        def one(carry: Any, number: Any) -> Any:
            kept, episodes = carry
            length, end = number % 100, number % 100 == 99
            row = tree.repeat(counting.none() + number, 1)
            kept, episodes, _ = good_episodes.follow(
                kept, episodes, length[None], row, jnp.ones(1), end[None], gate
            )
            return (kept, episodes), None

        episodes = tree.repeat(tree.repeat(counting.none(), env.spec.episode_length), 1)
        return jax.lax.scan(one, (thin, episodes), jnp.arange(2 * config.phase))[0]

    def draw(sample: Callable[[Any, Any], Any], held: Any) -> Any:
        """Return the sum of all batches, so that the compiler drops none."""

        def one(total: Any, key: Any) -> Any:
            return jax.tree.map(lambda t, x: t + x.sum(0), total, sample(held, key)), None

        batch = jax.eval_shape(sample, held, jax.random.key(0))
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), batch)
        return jax.lax.scan(one, blank, jax.random.split(jax.random.key(0), steps))[0]

    def from_two(held: Any, key: Any) -> Any:
        return good_episodes.sample(held, key, config.batch, 0.3, config.local_least)

    def plainly(held: Any, key: Any) -> Any:
        return good_episodes.sample_all(held, key, config.batch)

    return {
        "hand over": timed(hand_over, state),
        "follow episodes": timed(follow, thin),
        "draw from two memories": timed(partial(draw, from_two), state.memory)
        - timed(partial(draw, plainly), state.memory),
    }


def timed(function: Callable[[Any], Any], argument: Any) -> float:
    """Return the seconds of a call, the median of five after the first."""
    compiled, found = jax.jit(function), []
    for _ in range(6):
        begun = time.perf_counter()
        jax.block_until_ready(compiled(argument))
        found.append(time.perf_counter() - begun)
    return statistics.median(found[1:])


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
