"""Compare popjax with other trainers on the same work, at every population size, in one run.

    python benchmarks/peers.py --python /tmp/peers/bin/python --out benchmarks/results/peers-cpu.json
    python benchmarks/peers.py --peers rejax brax --algorithms ppo --populations 1 4
    python benchmarks/peers.py --protocol fastpbrl --peers rejax qdax --populations 1 2 4

Each trainer has a process of its own and stays compiled; its chunks alternate with popjax's, so that a noisy
machine is noisy for both, and the ratio is the median over neighbouring pairs. On one core of a CPU, seconds
are processor time (``clock`` of a row). ``--python`` names an environment with the other trainers (``pip
install rejax sbx-rl qdax brax gymnax evosax``), ``--evorl`` a checkout of EvoRL, ``--purejaxrl`` one of
PureJaxRL, which also needs navix. If a trainer cannot do the work at some size, fails or exceeds ``--limit``,
its row says so. The same command continues where it was interrupted: rows that ``--out`` already has are not
measured again, unless the trainer was not installed. ``peers_report.py`` draws a file again.

``--protocol`` measures the work of a publication, with every trainer that can do it. fastpbrl's (Flajolet
et al., "Fast Population-Based Reinforcement Learning on a Single Machine", ICML 2022) is a call of 50 updates
on made-up batches with HalfCheetah's shapes; rows have the seconds of a call. rejax's (``hopper_1m.yaml`` of
its repository) is training in Brax's Hopper with positional physics; rows have the environment steps per
second, and the seconds that a million steps of each agent take at this pace, without rejax's evaluations.
"""

from __future__ import annotations

import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import clock, peers_report, trainers  # noqa: E402
from benchmarks.processes import Others, versions  # noqa: E402
from benchmarks.trainers import ABSENT, MADE_UP, PEERS, Cannot, Work  # noqa: E402

_UPDATES, _STEPS = "agent updates per second", "environment steps per second"
Algorithm = Literal["sac", "td3", "ppo", "es"]


@dataclass(frozen=True)
class Protocol:
    """Work, and the sizes at which it is measured unless the command line names others."""

    work: Mapping[Algorithm, Work]
    """Work of one agent."""
    units: Mapping[Algorithm, str]
    """Units of the rates in rows."""
    algorithms: tuple[Algorithm, ...]
    populations: tuple[int, ...]
    amount: int | None = None
    """Units of each agent for which rows also have the seconds."""
    per_call: str | None = None
    """Quantity in the figure, for a program with a fixed number of iterations that a chunk calls as often as
    fits into its seconds. If None, a chunk is one call with as many iterations as fit."""


_MADE_UP = Work(task=MADE_UP, iterations=50)
_HOPPER = Work(task="brax/hopper", hidden=(64, 64), discount=0.995)
PROTOCOLS: dict[str, Protocol] = {
    "default": Protocol(
        work={
            "sac": Work("sac"),
            "td3": Work("td3"),
            "ppo": Work("ppo", hidden=(64, 64), lanes=64),
            "es": Work("es", hidden=(32, 32)),
        },
        units={"sac": _UPDATES, "td3": _UPDATES, "ppo": _STEPS, "es": _STEPS},
        algorithms=("sac", "ppo"),
        populations=(1, 2, 4, 8, 16),
    ),
    "fastpbrl": Protocol(
        work={"sac": _MADE_UP, "td3": replace(_MADE_UP, algorithm="td3")},
        units={"sac": _UPDATES, "td3": _UPDATES},
        algorithms=("sac", "td3"),
        populations=(1, 5, 10, 20, 40),
        amount=50,
        per_call="seconds for a call of 50 updates",
    ),
    "rejax": Protocol(
        work={
            "sac": replace(_HOPPER, lanes=128, batch=128, capacity=1_000_000),
            "ppo": replace(_HOPPER, algorithm="ppo", lanes=32, steps=32, epochs=9, minibatches=2),
        },
        units={"sac": _STEPS, "ppo": _STEPS},
        algorithms=("sac", "ppo"),
        populations=(1, 3, 10, 30, 100, 300),
        amount=1_000_000,
    ),
}


@dataclass(frozen=True)
class Arguments(Others):
    """Choices of the comparison."""

    peers: tuple[str, ...] = PEERS
    """Trainers to compare with popjax."""
    protocol: Literal["default", "fastpbrl", "rejax"] = "default"
    """Publication whose work is measured, or our own choice of work."""
    algorithms: tuple[Algorithm, ...] | None = None
    """Algorithms; by default those of the protocol."""
    populations: tuple[int, ...] | None = None
    """Numbers of agents that train together; by default those of the protocol."""
    repeats: int = 5
    """Pairs of timed chunks."""
    seconds: float = 3.0
    """Approximate length of a timed chunk of popjax [seconds]; the other trainer does the same work."""


def work(name: str, amount: dict[str, Any]) -> None:
    """Compile a trainer in this process, then train for a chunk for every line on standard input."""
    with trainers.answering() as answer:
        asked = trainers.sent(amount)
        begun, now = time.process_time(), clock.chosen()
        call = trainers.build(name, asked).chunk
        call()
        compiled = time.process_time() - begun
        played = 0
        while asked.task != MADE_UP and played < 2 * asked.batch * asked.population:  # what fills a replay
            played += call()
        answer(first_chunk_processor_seconds=round(compiled, 2))
        for _ in sys.stdin:
            begun = now()
            done = sum(call() for _ in range(asked.calls))
            seconds = now() - begun
            answer(per_second=done / seconds, clock=clock.kind(), peak_bytes=peak_bytes())


def peak_bytes() -> int:
    """Return the peak memory [bytes] of this process on its accelerator or, on a CPU, in main memory."""
    import jax

    told = jax.devices()[0].memory_stats() or {}
    return told.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def products(size: int) -> None:
    """Print as JSON the floating-point operations per second of processor time in products of matrices
    [size, size], the best of several rounds."""
    import jax
    import jax.numpy as jnp

    count = max(1, round(1e10 / (2 * size**3)))
    program = jax.jit(lambda x: jax.lax.fori_loop(0, count, lambda _, x: x @ x / size, x))
    x = jax.block_until_ready(program(jnp.ones((size, size))))
    best = 0.0
    for _ in range(8):
        begun = time.process_time()
        jax.block_until_ready(program(x))
        best = max(best, count * 2 * size**3 / (time.process_time() - begun))
    print(json.dumps(best))


def limit() -> dict[str, Any] | None:
    """Return what bounds SAC: products of matrices as measured on the cores of a CPU that this process may
    use, or the peaks of an accelerator; None for an accelerator whose peaks are not known."""
    import jax

    from popjax.host import provenance
    from popjax.host.scaling.shard import cores

    work = PROTOCOLS["default"].work["sac"]
    if jax.default_backend() != "cpu":
        return peers_report.accelerator_limit(provenance.device_name())
    command = [sys.executable, __file__, "--products", str(work.hidden[0])]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {"flops_per_second": cores() * float(told), "flops_per_update": peers_report.update_flops(work)}


def sized(algorithm: str, population: int, arguments: Arguments) -> Work:
    """Return the work of a chunk that takes popjax about ``arguments.seconds``."""
    protocol = PROTOCOLS[arguments.protocol]
    whole = replace(protocol.work[algorithm], population=population)
    short = whole if protocol.per_call else replace(whole, iterations=2)
    with closing(arguments.start(__file__, "ours", asdict(short))) as trainer:
        trainer.answer()
        rate = statistics.median(trainer.chunk()["per_second"] for _ in range(3))
    if protocol.per_call:
        return replace(short, calls=max(1, round(arguments.seconds * rate / short.done)))
    each = short.done / short.iterations
    return replace(short, iterations=max(2, round(arguments.seconds * rate / each)))


def compare(peer: str, amount: Work, arguments: Arguments) -> dict[str, Any]:
    """Return one row."""
    row: dict[str, Any] = {"algorithm": amount.algorithm, "population": amount.population, "peer": peer}
    row |= {"iterations": amount.iterations, "calls": amount.calls}
    theirs, ours = (arguments.start(__file__, name, asdict(amount)) for name in (peer, "ours"))
    pairs = []
    try:
        row["first_chunk"] = {peer: theirs.answer(), "ours": ours.answer()}
        for turn in range(arguments.repeats):
            order = [ours, theirs] if turn % 2 == 0 else [theirs, ours]
            told = [trainer.chunk() for trainer in order]
            pairs.append(told if turn % 2 == 0 else told[::-1])
    except Cannot as error:
        return row | {"cannot": str(error)}
    finally:
        ours.close()
        theirs.close()
    ratios = [mine["per_second"] / other["per_second"] for mine, other in pairs]
    paces = {
        who: statistics.median(each["per_second"] for each in told)
        for who, told in zip(("ours", "peer"), zip(*pairs, strict=True), strict=True)
    }
    row |= {f"{who}_per_second": pace for who, pace in paces.items()}
    if told_of := PROTOCOLS[arguments.protocol].amount:
        row |= {f"{who}_seconds": told_of * amount.population / pace for who, pace in paces.items()}
    return row | {
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "clock": pairs[-1][0]["clock"],
        "peak_bytes": {"ours": pairs[-1][0]["peak_bytes"], peer: pairs[-1][1]["peak_bytes"]},
    }


def measure(algorithm: str, population: int, peers: list[str], arguments: Arguments) -> Iterator[Any]:
    """Yield the row of every peer as soon as it is measured."""
    try:
        amount = sized(algorithm, population, arguments)
    except Cannot as error:
        row = {"algorithm": algorithm, "population": population, "cannot": str(error)}
        yield from (row | {"peer": peer} for peer in peers)
        return
    for peer in peers:
        yield compare(peer, amount, arguments)


def main(arguments: Arguments) -> None:
    """Compare, print and write after every row, so that finished rows survive an interruption."""
    from benchmarks import record

    record.check_known(arguments.peers, PEERS)
    record.check_counts(populations=arguments.populations or (), repeats=[arguments.repeats])
    protocol = PROTOCOLS[arguments.protocol]
    algorithms = arguments.algorithms or protocol.algorithms
    for algorithm in algorithms:
        if algorithm not in protocol.work:
            has = ", ".join(protocol.work)
            raise SystemExit(f"error: protocol {arguments.protocol} has no {algorithm}; use one of {has}")
    rows, before = record.kept(arguments.out)
    rows = [row for row in rows if not row.get("cannot", "").startswith(ABSENT)]  # may be installed now
    if before and (other := before.get("protocol", "default")) != arguments.protocol:
        raise SystemExit(f"error: {arguments.out} holds rows of protocol {other}; name another file as --out")
    told = {"protocol": arguments.protocol, "peers": versions(arguments.python), "units": protocol.units}
    told["limit"] = limit() if arguments.protocol == "default" else None
    for algorithm, population in itertools.product(algorithms, arguments.populations or protocol.populations):
        had = [
            row["peer"] for row in rows if (row["algorithm"], row["population"]) == (algorithm, population)
        ]
        left = [peer for peer in dict.fromkeys(arguments.peers) if peer not in had]
        for row in measure(algorithm, population, left, arguments) if left else ():
            rows.append(row)
            print(json.dumps(row), flush=True)
            record.write(arguments.out, **told, rows=rows)
    if arguments.out and any("ratio" in row for row in rows):
        peers_report.report(arguments.out, protocol.per_call)


if __name__ == "__main__":
    if "--products" in sys.argv:
        products(int(sys.argv[-1]))
    elif "--worker" in sys.argv:
        work(sys.argv[-2], json.loads(sys.argv[-1]))
    else:
        import tyro

        main(tyro.cli(Arguments, description=__doc__))
