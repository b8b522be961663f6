"""Compare Atari's speed with ale-py's and EnvPool's vector environments, and two ways to store frames.

    python benchmarks/atari.py --python /tmp/envpool/bin/python --out benchmarks/results/atari-cpu.json

plays Pong at random in 1, 8 and 32 lanes: in this process; with worker processes; without emulation (the
callback answers at once, which leaves its round trip and the work of the device); and in ale-py's
``AtariVectorEnv`` and EnvPool, each in a process of its own with as many threads as there are cores
(``atari_peers.py``). It reports environment steps per second, and per second of processor time over all
threads and processes, which other programs disturb less: the best of several rounds, in which the ways take
turns. The emulator plays four frames a step everywhere. Then it compares DQN's replay with frames by
reference and with plain rows: bytes of the State, and gradient steps per second of processor time on batches
of 32.

``--python`` names an environment with EnvPool (``pip install envpool``); without it, EnvPool's row says "not
installed". The other libraries return NumPy arrays; popjax leaves its observations on the device, and its
State can be copied and resumed. EnvPool can also return whichever lanes are done first and be called within a
JAX program; neither is measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import record
from benchmarks.processes import Others, Worker
from benchmarks.trainers import Cannot
from popjax import rollout
from popjax.agents import dqn
from popjax.core import Env
from popjax.envs import atari
from popjax.envs.atari import crew
from popjax.host.scaling import memory
from popjax.host.scaling.shard import cores
from popjax.methods import independent

PEERS = Path(__file__).with_name("atari_peers.py")
GAME, CAPACITY, UPDATES = "pong", 2_000, 5
Rates = tuple[float, float]
"""Rates per second, and per second of processor time."""


@dataclass(frozen=True)
class Arguments:
    """Choices of the comparison."""

    python: str = sys.executable
    """Interpreter of an environment with EnvPool."""
    lanes: tuple[int, ...] = (1, 8, 32)
    """Games that are played at once."""
    env_steps: int = 3_200
    """Environment steps in a round, summed over lanes."""
    rounds: int = 5
    """Timed rounds, of which the best counts."""
    out: Path | None = None
    """JSON file for the results."""


def rates(count: int, work: Callable[[], Any]) -> Rates:
    """Return the rates at which ``work`` does its ``count`` units; processes of other ways are idle."""
    children = psutil.Process().children()

    def spent() -> float:
        return time.process_time() + sum(sum(child.cpu_times()[:2]) for child in children)

    begun, before = time.perf_counter(), spent()
    work()
    return count / (time.perf_counter() - begun), count / (spent() - before)


def game(workers: int, emulates: bool = True) -> Env:
    """Return Pong, played by ``workers`` processes or, unless ``emulates``, by an idle callback."""
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


def ours(env: Env, lanes: int, steps: int) -> Callable[[], Any]:
    """Return the function that plays ``steps`` steps in every lane with one compiled program."""
    env = rollout.autoreset(env)

    def act(carry: Any, obs: jax.Array, key: jax.Array) -> Any:
        return carry, jax.random.randint(key, (), 0, env.spec.action_dim)

    @jax.jit
    def play(states: Any, key: jax.Array) -> Any:
        def one(lane: Any, key: jax.Array) -> Any:
            return rollout.collect(env, act, lane, key, steps, record=lambda obs, a, t: t.reward)

        return jax.vmap(one)(states, jax.random.split(key, lanes))

    keys = jax.random.split(jax.random.key(0), lanes)
    start = jax.jit(jax.vmap(partial(rollout.start, env, ())))(keys)
    jax.block_until_ready(play(start, jax.random.key(1)))
    return lambda: jax.block_until_ready(play(start, jax.random.key(2)))


def speeds(lanes: int, arguments: Arguments) -> dict[str, Any]:
    """Return the rates of environment steps of every way, and the share of a step that is not emulation."""
    steps, workers = arguments.env_steps // lanes, max(cores(), 2)
    found: dict[str, Any] = {}
    peers: dict[str, Worker] = {}
    versions: dict[str, str] = {}
    for name, python in (("ale-py", sys.executable), ("envpool", arguments.python)):
        peer = Others(python=python).start(str(PEERS), name, lanes, cores(), steps)
        try:
            versions[name] = peer.answer()["version"]
        except Cannot as error:
            found[name] = {"cannot": str(error)}
        else:
            peers[name] = peer
    ways: dict[str, Callable[[], Any]] = {
        "in_process": ours(game(0), lanes, steps),
        "round_trip_alone": ours(game(0, emulates=False), lanes, steps),
        **{name: peer.chunk for name, peer in peers.items()},
    }
    if lanes > 1:  # a single lane is never given to a worker
        ways[f"workers_{workers}"] = ours(game(workers), lanes, steps)
    best: dict[str, Rates] = dict.fromkeys(ways, (0.0, 0.0))
    for _ in range(arguments.rounds):
        for name, play in ways.items():
            wall, processor = rates(steps * lanes, play)
            best[name] = max(best[name][0], wall), max(best[name][1], processor)
    for name, (wall, processor) in best.items():
        found[name] = {"per_second": round(wall, 1), "per_processor_second": round(processor, 1)}
    for name, peer in peers.items():
        found[name]["version"] = versions[name]
        peer.close()
    share = best["in_process"][1] / best["round_trip_alone"][1]
    return found | {"share_of_round_trip": round(share, 3)}


def replays(rounds: int) -> dict[str, Any]:
    """Return the State's bytes for a million transitions, and the gradient steps per second from
    ``CAPACITY``."""
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
        for _ in range(rounds):
            spent = time.process_time()
            state = jax.block_until_ready(step(state))
            best = max(best, UPDATES / (time.process_time() - spent))
        found[name] = {
            "state_bytes_for_1e6_transitions": memory.tree_bytes(shapes),
            "updates_per_processor_second": round(best, 2),
        }
    return found


def main(arguments: Arguments) -> None:
    """Compare, print and write."""
    found = {
        "env_steps": {lanes: speeds(lanes, arguments) for lanes in arguments.lanes},
        "replay": replays(arguments.rounds),
    }
    print(json.dumps(found, indent=1))
    record.write(arguments.out, game=GAME, cores=cores(), **found)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Arguments, description=__doc__))
