"""Cost of CDRL's two update modes: a gradient step for each lane in turn, or one for all lanes.

    python benchmarks/update_modes.py --out benchmarks/results/update-modes-cpu.json

A student of the target task, with the paper's networks, trains with an online alignment to a teacher of the
source task and with both losses from the first step on; the teacher is untrained, which costs the same.
Chunks of both modes alternate in one process, so that a noisy machine is noisy for both; the ratio is the
median of ratios of neighbouring chunks.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import popjax
from benchmarks import record
from benchmarks.distillation import PAIRS, untrained
from benchmarks.program import Program, in_turn
from popjax.core import as_arrays
from popjax.methods import cdrl

MODES = ("sequential", "batched")


@dataclass(frozen=True)
class Arguments:
    """Choices of the measurement."""

    pairs: tuple[str, ...] = ("cartpole", "rooms", "minatar")
    """Pairs of tasks, as in distillation.py."""
    iterations: int = 4
    """Rollouts and updates in a timed chunk."""
    repeats: int = 5
    """Rounds of timed chunks."""
    out: Path | None = None
    """JSON file for the results."""


def main(arguments: Arguments) -> None:
    """Measure and print; write ``arguments.out``."""
    record.check_known(arguments.pairs, PAIRS)
    rows = [measure(pair, arguments) for pair in arguments.pairs]
    print(json.dumps(rows, indent=1))
    record.write(arguments.out, rows=rows)


def measure(pair: str, arguments: Arguments) -> dict[str, Any]:
    """Return a row: the student's environment steps per second in each mode, and the ratio of the times."""
    programs = {mode: program(pair, mode, arguments.iterations) for mode in MODES}
    seconds = in_turn(programs, arguments.repeats)
    ratios = [a / b for a, b in zip(seconds["sequential"], seconds["batched"], strict=True)]
    source, target = PAIRS[pair]
    return {
        "source": source,
        "target": target,
        "env_steps_per_second": {mode: round(1 / statistics.median(s)) for mode, s in seconds.items()},
        "sequential_over_batched": round(statistics.median(ratios), 2),
        "compile_seconds": {mode: round(one.compile_seconds, 1) for mode, one in programs.items()},
    }


def program(pair: str, mode: str, iterations: int) -> Program:
    """Return a compiled chunk of the student's training, after a first one."""
    source, target = map(popjax.make, PAIRS[pair])
    config = cdrl.Config(update_mode=mode, align="online", pad_observations=True)
    teacher = untrained(source, replace(config, align="none"))
    method = cdrl.build(target, config, teachers=[teacher])
    hyper = replace(cdrl.Hyper(), align_from=0.0, distil_from=0.0, distil_until=cdrl.NEVER)
    made = Program(lambda key: method.init(key, as_arrays(hyper)), method.step, iterations)
    made()
    return made


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
