"""Atari's speed: games as pure functions beside ale-py's own vector environment, and frames by reference.

    python benchmarks/atari.py

plays Pong at random with 1, 8 and 32 lanes: in this process, with worker processes, without emulation (the
same callback answers at once: its round trip and all that the device does) and in ale-py's ``AtariVectorEnv``
with as many threads as cores. Environment steps per second and per second of this process's processor time,
which other programs disturb less, the best of several rounds, in which the ways take turns; the emulator does
four frames a step everywhere. Then DQN's replay with frames by reference and with plain rows: bytes of the
State, and gradient steps per second of processor time on batches of 32. Writes ``atari-BACKEND.json`` to
``benchmarks/results``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import record
from popjax import rollout
from popjax.agents import dqn
from popjax.core import Env
from popjax.envs import atari
from popjax.envs.atari import crew
from popjax.host.scaling import memory
from popjax.methods import independent

RESULTS = Path(__file__).parent / "results"
GAME, LANES, ROUNDS, STEPS = "pong", (1, 8, 32), 3, 50
CAPACITY, UPDATES = 2_000, 5
Rates = tuple[float, float]
"""Per second, and per second of processor time."""


def rates(count: int, work: Callable[[], Any]) -> Rates:
    """Return how often ``work`` does one of ``count`` things."""
    begun, spent = time.perf_counter(), time.process_time()
    work()
    return count / (time.perf_counter() - begun), count / (time.process_time() - spent)


def game(workers: int, emulates: bool = True) -> Env:
    """Pong, played by so many workers, or with a callback that returns its state as it is."""
    os.environ[crew.VARIABLE] = str(workers)
    env = atari.make(GAME)
    if emulates:
        return env
    atari.Crew = Idle  # type: ignore[misc]
    try:
        return atari.make(GAME)
    finally:
        atari.Crew = crew.Crew  # type: ignore[misc]


class Idle(crew.Crew):
    """Workers that answer at once: every state as it was given, and a black screen."""

    def play(self, ale: Any, codes: Any, count: Any) -> list[np.ndarray]:
        ale, lead = np.asarray(ale), np.shape(count)
        none = np.zeros(lead, bool)
        screens = np.zeros((*lead, *self.console.shape), np.uint8)
        return [ale, screens, np.zeros(lead, np.float32), none, none]


def ours(env: Env, lanes: int) -> Callable[[], Rates]:
    """Return what plays ``STEPS`` vector steps in one program and tells the rate of environment steps."""
    env = rollout.autoreset(env)

    def act(carry: Any, obs: jax.Array, key: jax.Array) -> Any:
        return carry, jax.random.randint(key, (), 0, env.spec.action_dim)

    @jax.jit
    def play(states: Any, key: jax.Array) -> Any:
        def one(lane: Any, key: jax.Array) -> Any:
            return rollout.collect(env, act, lane, key, STEPS, record=lambda obs, a, t: t.reward)

        return jax.vmap(one)(states, jax.random.split(key, lanes))

    keys = jax.random.split(jax.random.key(0), lanes)
    start = jax.jit(jax.vmap(partial(rollout.start, env, ())))(keys)
    jax.block_until_ready(play(start, jax.random.key(1)))
    return lambda: rates(STEPS * lanes, lambda: jax.block_until_ready(play(start, jax.random.key(2))))


def theirs(lanes: int) -> Callable[[], Rates]:
    """The same of ale-py's vector environment, which steps in C++."""
    from ale_py.vector_env import AtariVectorEnv

    env = AtariVectorEnv(GAME, num_envs=lanes, num_threads=os.cpu_count() or 1)
    env.reset()
    chance = np.random.default_rng(0)

    def play() -> None:
        for _ in range(STEPS):
            env.step(chance.integers(6, size=lanes))

    return lambda: rates(STEPS * lanes, play)


def speeds(lanes: int) -> dict[str, Any]:
    """Rates of environment steps of every way, and the share of a step that is not emulation."""
    count = max(os.cpu_count() or 1, 2)
    ways = {
        "in_process": ours(game(0), lanes),
        f"workers_{count}": ours(game(count), lanes),
        "round_trip_alone": ours(game(0, emulates=False), lanes),
        "ale_vector": theirs(lanes),
    }
    best: dict[str, Rates] = dict.fromkeys(ways, (0.0, 0.0))
    for _ in range(ROUNDS):
        for name, measure in ways.items():
            wall, processor = measure()
            best[name] = max(best[name][0], wall), max(best[name][1], processor)
    found: dict[str, Any] = {}
    for name, (wall, processor) in best.items():
        found[name] = {"per_second": round(wall, 1)}
        if not name.startswith("workers"):  # whose processor time is their own
            found[name]["per_processor_second"] = round(processor, 1)
    share = best["in_process"][1] / best["round_trip_alone"][1]
    return found | {"share_of_round_trip": round(share, 3)}


def replays() -> dict[str, Any]:
    """Bytes of the State for a million transitions, and gradient steps per second from ``CAPACITY``."""
    found: dict[str, Any] = {}
    stacked = game(0, emulates=False)
    for name, env in (
        ("by_reference", stacked),
        ("plain_rows", stacked._replace(spec=stacked.spec._replace(stack=1))),
    ):
        config = independent.Config(
            agent=dqn.Config(), batch=32, capacity=CAPACITY, warmup=0, steps=1, updates=UPDATES
        )
        method = independent.build(env, config)
        whole = independent.build(env, independent.Config(agent=dqn.Config()))
        shapes = jax.eval_shape(whole.init, jax.random.key(0), whole.hyper)
        step = jax.jit(method.step, donate_argnums=0)
        state = step(jax.jit(method.init)(jax.random.key(0), method.hyper))
        best = 0.0
        for _ in range(ROUNDS):
            spent = time.process_time()
            state = jax.block_until_ready(step(state))
            best = max(best, UPDATES / (time.process_time() - spent))
        found[name] = {
            "state_bytes_for_1e6_transitions": memory.tree_bytes(shapes),
            "updates_per_processor_second": round(best, 2),
        }
    return found


def main() -> None:
    result = {"env_steps": {lanes: speeds(lanes) for lanes in LANES}, "replay": replays()}
    print(json.dumps(result, indent=1))
    record.write(RESULTS / f"atari-{jax.default_backend()}.json", game=GAME, **result)


if __name__ == "__main__":
    main()
