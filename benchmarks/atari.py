"""Atari's speed: games as pure functions beside ale-py's own vector environment, and frames by reference.

    python benchmarks/atari.py

plays Pong at random with 1, 8 and 32 lanes: in this process, with worker processes, without emulation (the
same callback answers at once: its round trip and all that the device does) and in ale-py's ``AtariVectorEnv``
with as many threads as cores. Environment steps per second, the best of several rounds, in which the ways
take turns; the emulator does four frames a step everywhere. Then DQN's replay with frames by reference and
with plain rows: bytes of the State, and gradient steps per second on batches of 32. Writes
``atari-BACKEND.json`` to ``benchmarks/results``.
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
from popjax.host import memory
from popjax.methods import independent

RESULTS = Path(__file__).parent / "results"
GAME, LANES, ROUNDS, STEPS = "pong", (1, 8, 32), 3, 100
CAPACITY, UPDATES = 5_000, 20


def game(workers: int, emulates: bool = True) -> Env:
    """Pong, played by so many workers, or with a callback that returns its state as it is."""
    os.environ[crew.VARIABLE] = str(workers)
    env = atari.make(GAME)
    if emulates:
        return env
    play = crew.Crew.play

    def idle(self: crew.Crew, ale: Any, codes: Any, count: Any) -> list[np.ndarray]:
        ale, lead = np.asarray(ale), np.shape(count)
        screens = np.zeros((*lead, *self.console.shape), np.uint8)
        none = np.zeros(lead, bool)
        return [ale, screens, np.zeros(lead, np.float32), none, none]

    crew.Crew.play = idle  # type: ignore[method-assign]
    try:
        return atari.make(GAME)
    finally:
        crew.Crew.play = play  # type: ignore[method-assign]


def ours(env: Env, lanes: int) -> Callable[[], float]:
    """Return what plays ``STEPS`` vector steps in one program and tells the environment steps per second."""
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

    def measure() -> float:
        begun = time.perf_counter()
        jax.block_until_ready(play(start, jax.random.key(2)))
        return STEPS * lanes / (time.perf_counter() - begun)

    return measure


def theirs(lanes: int) -> Callable[[], float]:
    """The same of ale-py's vector environment, which steps in C++."""
    from ale_py.vector_env import AtariVectorEnv

    env = AtariVectorEnv(GAME, num_envs=lanes, num_threads=os.cpu_count() or 1)
    env.reset()
    chance = np.random.default_rng(0)

    def measure() -> float:
        begun = time.perf_counter()
        for _ in range(STEPS):
            env.step(chance.integers(6, size=lanes))
        return STEPS * lanes / (time.perf_counter() - begun)

    return measure


def speeds(lanes: int) -> dict[str, float]:
    """Environment steps per second of every way, and the share of a step that is not emulation."""
    count = max(os.cpu_count() or 1, 2)
    ways = {
        "in_process": ours(game(0), lanes),
        f"workers_{count}": ours(game(count), lanes),
        "round_trip_alone": ours(game(0, emulates=False), lanes),
        "ale_vector": theirs(lanes),
    }
    best = dict.fromkeys(ways, 0.0)
    for _ in range(ROUNDS):
        for name, measure in ways.items():
            best[name] = max(best[name], measure())
    found = {name: round(value, 1) for name, value in best.items()}
    return found | {"share_of_round_trip": round(best["in_process"] / best["round_trip_alone"], 3)}


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
        rates = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            state = jax.block_until_ready(step(state))
            rates.append(UPDATES / (time.perf_counter() - begun))
        found[name] = {
            "state_bytes_for_1e6_transitions": memory.tree_bytes(shapes),
            "updates_per_second": round(max(rates), 2),
        }
    return found


def main() -> None:
    result = {"env_steps_per_second": {lanes: speeds(lanes) for lanes in LANES}, "replay": replays()}
    print(json.dumps(result, indent=1))
    record.write(RESULTS / f"atari-{jax.default_backend()}.json", game=GAME, **result)


if __name__ == "__main__":
    main()
