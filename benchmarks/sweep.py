"""Cost of sweeps and checkpoints: several seeds side by side against a single one, and saving while training.

    taskset -c 1 python benchmarks/sweep.py --out benchmarks/results/sweep-cpu.json
    python benchmarks/sweep.py --seeds 8 --devices 1 2 --state-bytes 0 --out runs/devices.json

Chunks of one seed and of all alternate in one process, so that a noisy machine is noisy for both; a figure is
the median of ``--repeats``. The cost of a checkpoint, of a State with a replay of random numbers, is its
processor time, including the background thread, against that of training for the default interval.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import popjax
from benchmarks import record
from popjax.agents import sac
from popjax.host.checkpoints import checkpoint, state_arrays
from popjax.host.checkpoints.writer import Writer
from popjax.host.runs.options import Options
from popjax.host.scaling import memory, shard, sweep
from popjax.host.training.compiled_programs import Programs, compile_programs
from popjax.methods import independent


@dataclass(frozen=True)
class Arguments:
    """Choices of the measurement."""

    env: str = "gymnax/Pendulum-v1"
    """Environment as SUITE/TASK."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of SAC."""
    seeds: int = 5
    """Members that train side by side [count]."""
    steps: int = 200
    """Environment steps, each with one update, of a timed chunk."""
    repeats: int = 7
    """Timed chunks."""
    devices: tuple[int, ...] = ()
    """Also spread the members over each of these numbers of devices; a CPU is divided into as many."""
    state_bytes: int = 1_000_000_000
    """Size of the State that is saved; 0 leaves checkpoints out."""
    saved_steps: int = 1_000
    """Environment steps of the chunks that are trained between saves."""
    saves: int = 6
    """Number of saves [count]."""
    out: Path | None = None
    """JSON file for the results."""


def prepared(
    arguments: Arguments, seeds: int, steps: int, capacity: int, devices: int = 1
) -> tuple[Programs, Any, Any]:
    """Return programs, State after the first chunk, and its shapes for SAC with ``seeds`` seeds on
    ``devices`` devices."""
    env = popjax.make(arguments.env)
    config = independent.Config(
        agent=sac.Config(hidden=arguments.hidden), population=1, capacity=capacity, warmup=0
    )
    method = independent.build(env, config)
    members = sweep.grid(0, seeds, {})
    start = sweep.keys(members), sweep.hypers(method.hyper, members)
    shapes = jax.eval_shape(sweep.lift(method.init, seeds), *start)
    options = Options(steps, seeds, eval_every=steps, checkpoint_every=steps, log_every=steps)
    placement = shard.place(shapes, devices)
    start = shard.spread(start, placement.members())
    programs = compile_programs(method, env, start, shapes, options, placement, fresh=True)
    assert programs.init is not None
    return programs, timed(programs, programs.init(*start))[0], shapes


def timed(programs: Programs, state: Any) -> tuple[Any, float]:
    """Run a chunk; return the State and the seconds."""
    begun = time.perf_counter()
    state, _ = jax.block_until_ready(programs.chunk(state))
    return state, time.perf_counter() - begun


def beside_each_other(arguments: Arguments) -> dict[str, Any]:
    """Return run time and compile time of all seeds and of one."""
    one, one_state, _ = prepared(arguments, 1, arguments.steps, 10_000)
    all_, all_state, _ = prepared(arguments, arguments.seeds, arguments.steps, 10_000)
    seconds: list[tuple[float, float]] = []
    for _ in range(arguments.repeats):
        one_state, alone = timed(one, one_state)
        all_state, together = timed(all_, all_state)
        seconds.append((alone, together))
    return {
        "seeds": arguments.seeds,
        "seconds_one": statistics.median(alone for alone, _ in seconds),
        "seconds_all": statistics.median(together for _, together in seconds),
        "ratio": statistics.median(together / alone for alone, together in seconds),
        "compile_seconds_one": one.compile_seconds,
        "compile_seconds_all": all_.compile_seconds,
    }


def on_devices(arguments: Arguments) -> dict[str, Any]:
    """Return the run time of all seeds by number of devices, and relative to the first of these numbers."""
    runs = {n: prepared(arguments, arguments.seeds, arguments.steps, 10_000, n) for n in arguments.devices}
    states = {n: state for n, (_, state, _) in runs.items()}
    seconds: dict[int, list[float]] = {n: [] for n in runs}
    for _ in range(arguments.repeats):
        for n, (programs, _, _) in runs.items():
            states[n], taken = timed(programs, states[n])
            seconds[n].append(taken)
    first = seconds[arguments.devices[0]]
    return {
        "seeds": arguments.seeds,
        "seconds": {n: statistics.median(taken) for n, taken in seconds.items()},
        "times_as_fast_as_the_first": {
            n: statistics.median(a / b for a, b in zip(first, taken, strict=True))
            for n, taken in seconds.items()
        },
    }


def saving(arguments: Arguments) -> dict[str, Any]:
    """Measure what a checkpoint after every chunk adds to training."""
    _, _, small = prepared(arguments, 1, arguments.saved_steps, 1_000)
    row = memory.tree_bytes(small.replay) / 1_000
    programs, state, shapes = prepared(arguments, 1, arguments.saved_steps, int(arguments.state_bytes / row))
    random = np.random.default_rng(0)

    def filled(leaf: Any) -> Any:  # with random numbers, which do not compress
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.asarray(random.standard_normal(leaf.shape, np.float32), leaf.dtype)

    state = state.replace(replay=jax.tree.map(filled, state.replay))
    training, blocked, whole = [], [], []
    with tempfile.TemporaryDirectory(dir=".") as directory:
        made_of = parts(state, Path(directory))
        state, after_every_chunk = beside_training(
            programs, state, Path(directory) / "beside", arguments.saves
        )
        writer = Writer(Path(directory), background=True)
        for number in range(arguments.saves):
            begun = time.process_time()
            state, _ = timed(programs, state)
            training.append((time.process_time() - begun) / arguments.saved_steps)
            begun = time.process_time()
            writer.save(number, state, {})
            blocked.append(time.process_time() - begun)
            writer.wait()
            whole.append(time.process_time() - begun)
    step, save = statistics.median(training), statistics.median(whole)
    interval = Options(1).checkpoint_every
    return {
        "state_bytes": memory.tree_bytes(shapes),
        "interval_steps": interval,
        "step_cpu_seconds": step,
        "save_cpu_seconds": save,
        "save_cpu_seconds_in_which_training_waits": statistics.median(blocked),
        "percent_of_training": 100 * save / (step * interval),
        "steps_between_saves_for_five_percent": round(save / step / 0.05),
        "made_of": made_of,
        "after_every_chunk": after_every_chunk,
    }


def parts(state: Any, directory: Path) -> dict[str, dict[str, float]]:
    """Return the wall-clock and processor seconds of each part of one save, and those of writing the same
    bytes to a file, a lower bound for any design."""
    arrays = {name: np.empty_like(array) for name, array in state_arrays.to_arrays(state).items()}

    def copy() -> None:
        for name, array in state_arrays.to_arrays(state).items():
            np.copyto(arrays[name], array)

    def checksum() -> None:
        for array in arrays.values():
            zlib.crc32(array.reshape(-1).view(np.uint8).data)

    plain = directory / "plain"

    def write() -> None:
        with plain.open("wb", buffering=0) as file:
            for array in arrays.values():
                file.write(array.reshape(-1).view(np.uint8).data)

    def sync() -> None:
        with plain.open("rb") as file:
            os.fsync(file.fileno())

    found = {}
    for name, action in (
        ("copy", copy),
        ("checksum", checksum),
        ("orbax_write", lambda: checkpoint._write_arrays(directory, directory / "partial-0", arrays)),
        ("plain_write", write),
        ("plain_fsync", sync),
    ):
        clock, processor = time.perf_counter(), time.process_time()
        action()
        found[name] = {
            "seconds": time.perf_counter() - clock,
            "cpu_seconds": time.process_time() - processor,
        }
    return found


def beside_training(
    programs: Programs, state: Any, directory: Path, chunks: int
) -> tuple[Any, dict[str, float]]:
    """Return the State, and the wall-clock seconds of chunks without saves and with one after each.

    A save is written during the next chunk and waits until the one before is written; the last is waited for.
    """
    begun = time.perf_counter()
    for _ in range(chunks):
        state, _ = timed(programs, state)
    without = (time.perf_counter() - begun) / chunks
    writer, waited = Writer(directory, background=True), 0.0
    begun = time.perf_counter()
    for number in range(chunks):
        state, _ = timed(programs, state)
        asked = time.perf_counter()
        writer.save(number, state, {})
        waited += time.perf_counter() - asked
    writer.wait()
    with_saves = (time.perf_counter() - begun) / chunks
    return state, {
        "chunk_seconds": without,
        "chunk_seconds_with_a_save": with_saves,
        "seconds_in_which_training_waits": waited / chunks,
        "percent": 100 * (with_saves / without - 1),
    }


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    shard.divide_cpu(str(max(arguments.devices, default=1)), shard.SWEEP)
    for devices in arguments.devices:
        shard.number(devices)  # refuses more than there are before anything is measured
    results: dict[str, Any] = {"beside_each_other": beside_each_other(arguments)}
    if arguments.devices:
        results["on_devices"] = on_devices(arguments)
    if arguments.state_bytes:
        results["saving"] = saving(arguments)
    results["arguments"] = asdict(arguments) | {"out": None}
    print(json.dumps(results, indent=1))
    record.write(arguments.out, **results)


if __name__ == "__main__":
    main()
