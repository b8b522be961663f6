"""Compare how long popjax and other trainers take to start: SAC and PPO in Brax's Hopper with positional
physics.

    python benchmarks/compile_peers.py --python /tmp/peers/bin/python --out compile-peers-cpu.json

A start lasts from the beginning of a process until one agent has trained for a first chunk, less the time of
a second chunk: importing, tracing and compiling all that training and its initial state need. It is *cold*
with nothing in JAX's cache on disk, and *warm* with what the cold start left there, both in seconds and
processor seconds. See ``peers.py`` for ``--python``, ``--evorl`` and ``--purejaxrl``.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

BEGUN = time.perf_counter()
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import trainers  # noqa: E402
from benchmarks.peers import PROTOCOLS, Algorithm  # noqa: E402
from benchmarks.processes import Others, versions  # noqa: E402


@dataclass(frozen=True)
class Arguments(Others):
    """Choices of the comparison."""

    trainers: tuple[str, ...] = ("ours", "rejax", "qdax", "brax", "evorl", "purejaxrl")
    """Which trainers."""
    algorithms: tuple[Algorithm, ...] = ("sac", "ppo")
    """Which algorithms."""
    task: str = "brax/hopper"
    """Task of ``trainers.Work``."""


def work(name: str, amount: dict[str, Any]) -> None:
    """Train for two chunks in this process; print what the start took."""
    with trainers.answering() as answer:
        chunk = trainers.build(name, trainers.sent(amount)).chunk
        chunk()
        clocks = {"seconds": time.perf_counter, "processor_seconds": time.process_time}
        first = {name: clock() for name, clock in clocks.items()}
        chunk()
        begun = {"seconds": BEGUN, "processor_seconds": 0.0}
        answer(**{name: round(2 * first[name] - clock() - begun[name], 1) for name, clock in clocks.items()})


def start(algorithm: Algorithm, name: str, cache: str, arguments: Arguments) -> dict[str, Any]:
    """Return what a start with this cache takes, or why there is none."""
    asked = replace(PROTOCOLS["default"].work[algorithm], task=arguments.task, iterations=2)
    kept = {"JAX_ENABLE_COMPILATION_CACHE": "1", "JAX_COMPILATION_CACHE_DIR": cache}
    return arguments.ask(__file__, name, asdict(asked), environment=kept)


def main(arguments: Arguments) -> None:
    """Start every trainer twice; print and write after each."""
    from benchmarks import record

    record.check_known(arguments.trainers, ("ours", *trainers.PEERS))
    rows = []
    for algorithm, name in itertools.product(arguments.algorithms, arguments.trainers):
        row: dict[str, Any] = {"algorithm": algorithm, "trainer": name}
        with tempfile.TemporaryDirectory() as cache:
            for which in ("cold", "warm"):
                told = start(algorithm, name, cache, arguments)
                row |= told if "cannot" in told else {which: told}
                if "cannot" in told:
                    break
        rows.append(row)
        print(json.dumps(row), flush=True)
        record.write(arguments.out, task=arguments.task, peers=versions(arguments.python), rows=rows)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        work(sys.argv[-2], json.loads(sys.argv[-1]))
    else:
        import tyro

        main(tyro.cli(Arguments, description=__doc__))
