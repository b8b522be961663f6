"""Reproduce a table or figure of a paper: train its runs, and show our numbers beside the paper's.

    python benchmarks/reproduce.py pderl-table1 --tasks Swimmer
    python benchmarks/reproduce.py chdrl-table1 --tasks Hopper --fraction 0.1 --seeds 3
    python benchmarks/reproduce.py ce-table1 --minutes 30
    python benchmarks/reproduce.py ce-table1 --dry-run --calibrate 0.01

Runs lie in ``--runs``, one for each row and task; tables may share runs. Tasks are trained in the table's
order; of each, the most valuable rows come first. The same command continues where it was interrupted, and
trains only runs that have not spent their budget. At the end it prints *ours | the paper | fraction of the
budget* and updates, in ``--out``, NAME.json and NAME-TASK.png, return against environment steps and against
time; ``--report-only`` does only this, with the runs as far as they are trained.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import registry, reproduced  # noqa: E402
from benchmarks.registry import Cell  # noqa: E402
from popjax.cli import parse  # noqa: E402
from popjax.host import terminal  # noqa: E402
from popjax.host.runs import launchers  # noqa: E402

STOPPED = "stopped; the same command continues"


@dataclass(frozen=True)
class Arguments:
    """Choices of what is reproduced, and how much of it."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """Table or figure, such as pderl-table1; "list" shows all of them."""
    tasks: tuple[str, ...] = ()
    """Only these tasks; by default all of the table."""
    rows: tuple[str, ...] = ()
    """Only these rows; by default all of the table."""
    fraction: float = 1.0
    """Share of every budget."""
    seeds: int | None = None
    """Seeds of every row; by default as many as in the paper [count]."""
    seed: int = 0
    """As in run.py: the first seed. Results pool the seeds of a row, also of runs with other first seeds."""
    minutes: float | None = None
    """Stop after this time [minutes], with everything saved; the most valuable runs come first."""
    devices: str = "1"
    """As in run.py: number of devices over which to spread the seeds, or all."""
    launcher: Literal["local", "slurm", "ray"] = "local"
    """As in run.py: where the programs run."""
    launcher_option: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")
    ] = ()
    """As in run.py: setting of every job, such as timeout_min=600 (slurm); may be repeated."""
    runs: Path = Path("runs/reproduce")
    """Directory of the runs."""
    out: Path = Path(__file__).parent / "results" / "reproduce"
    """Directory of results."""
    dry_run: bool = False
    """Only print the commands, and how much of each run is left."""
    calibrate: float | None = None
    """Train this share of every budget once, apart from the runs, and print the time and memory that the
    whole runs would take; estimates are better for a share beyond the warm-up."""
    report_only: bool = False
    """Only show and write the results so far; train nothing."""


def main(arguments: Arguments) -> int:
    """Return the exit code: 0 if all is done or the minutes are over, 1 if a run failed, 2 for bad input, 128
    or more if a signal ended it."""
    if arguments.name == "list":
        for name, paper in registry.names().items():
            print(f"{name}: {paper.tables[name].where}; {paper.title}")
        return 0
    try:
        chosen = (arguments.name, arguments.tasks, arguments.rows, arguments.seeds, arguments.fraction)
        check(arguments)
        cells = registry.cells(*chosen, arguments.seed)
        reproduced.stored(arguments.out / f"{arguments.name}.json")
    except ValueError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    if arguments.calibrate and (code := calibrate(cells, arguments)):
        if code >= 128:
            say(STOPPED)
        return code
    if arguments.dry_run:
        for cell in cells:
            print(f"# {cell.row} on {cell.task}: {reproduced.left(cell, arguments.runs)}")
            if arguments.calibrate:
                print(f"# {reproduced.estimate(cell, *apart(cell, arguments))}")
            print(
                shlex.join(["python", "scripts/run.py", *cell.arguments(arguments.runs), *where(arguments)])
            )
        for study in reproduced.studies(arguments.name, cells, arguments.runs, arguments.out):
            print(shlex.join(["python", *study.command]))
        return 0
    code = 0 if arguments.report_only else do(cells, arguments)
    if code >= 128:
        say(STOPPED)
        return code
    return reproduced.report(arguments.name, cells, arguments.runs, arguments.out) or code


def check(arguments: Arguments) -> None:
    """Check the arguments.

    Raises:
        ValueError: one is out of range, two contradict each other, or the launcher is not available.
    """
    for name in ("fraction", "seeds", "minutes"):
        if (value := getattr(arguments, name)) is not None and not value > 0:
            raise ValueError(f"--{name} must be above 0, got {value:g}")
    if arguments.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {arguments.seed}")
    if arguments.calibrate is not None and not 0 < arguments.calibrate < 1:
        raise ValueError(f"--calibrate must be above 0 and below 1, got {arguments.calibrate:g}")
    if arguments.devices != "all" and not (arguments.devices.isdecimal() and int(arguments.devices)):
        raise ValueError(f"--devices must be all or a number above 0, got {arguments.devices!r}")
    if arguments.report_only and (arguments.dry_run or arguments.calibrate is not None):
        raise ValueError("--report-only trains nothing; leave out --dry-run and --calibrate")
    if arguments.launcher == "local" and arguments.launcher_option:
        raise ValueError("--launcher-option is for --launcher slurm or ray")
    if not arguments.report_only and (arguments.calibrate or not arguments.dry_run):
        launchers.require(
            arguments.launcher, parse.key_values(arguments.launcher_option, "--launcher-option")
        )


def do(cells: list[Cell], arguments: Arguments) -> int:
    """Train what is not finished and study what is, until the minutes are over; return an exit code."""
    deadline = time.perf_counter() + 60 * (math.inf if arguments.minutes is None else arguments.minutes)
    if (code := train(cells, arguments, deadline)) >= 128:
        return code
    done = [cell for cell in cells if reproduced.finished(cell, arguments.runs)]
    for study in reproduced.studies(arguments.name, done, arguments.runs, arguments.out):
        if study.made:
            continue
        if study.longer:
            say(f"{study.file} keeps the study of a longer run or of more seeds; remove it first")
            continue
        if time.perf_counter() > deadline:
            say(f"no time is left for {study.file.name}; the same command continues")
            break
        ended = execute([str(ROOT / study.command[0]), *study.command[1:]])
        if ended >= 128:
            return ended
        code = ended or code
    return code


def apart(cell: Cell, arguments: Arguments) -> tuple[Cell, Path]:
    """Return the run that calibrates a cell, and the folder of such runs."""
    assert arguments.calibrate is not None
    return replace(cell, fraction=arguments.calibrate), arguments.runs / "calibration"


def calibrate(cells: list[Cell], arguments: Arguments) -> int:
    """Train the beginning of every cell apart from the runs; return an exit code."""
    found = [apart(cell, arguments) for cell in cells]
    return train([cell for cell, _ in found], replace(arguments, runs=found[0][1]))


def train(cells: list[Cell], arguments: Arguments, deadline: float = math.inf) -> int:
    """Train what is not finished, in order, until ``deadline`` [seconds of ``perf_counter``]; return an exit
    code."""
    code = 0
    for cell in cells:
        if reproduced.finished(cell, arguments.runs):
            continue
        argv = [*cell.arguments(arguments.runs), *where(arguments)]
        if deadline < math.inf:
            if (rest := deadline - time.perf_counter()) <= 0:
                say(f"{arguments.minutes:g} minutes have passed; the same command continues")
                break
            argv += ["--max-minutes", f"{rest / 60:g}"]
        if missing := [one for one in cell.needs.values() if not reproduced.finished(one, arguments.runs)]:
            say(f"{cell.row} on {cell.task} waits for {missing[0].row} on {missing[0].task}")
            continue
        say(f"{cell.row} on {cell.task}: {reproduced.left(cell, arguments.runs)}")
        ended = execute([str(ROOT / "scripts" / "run.py"), *argv])
        if ended >= 128:
            return ended
        if ended:
            say(f"exit code {ended} of {shlex.join(['python', 'scripts/run.py', *argv])}")
        code = ended or code
    return code


def where(arguments: Arguments) -> list[str]:
    """Return the options of run.py that say where a run is computed."""
    devices = ["--devices", arguments.devices] if arguments.devices != "1" else []
    launcher = ["--launcher", arguments.launcher] if arguments.launcher != "local" else []
    options = [word for option in arguments.launcher_option for word in ("--launcher-option", option)]
    return [*devices, *launcher, *options]


def execute(argv: list[str]) -> int:
    """Run a script in a process of its own and pass on the signals that ask this one to end; return its exit
    code, 128 or more if a signal ended it."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, *argv], env={**os.environ, "PYTHONPATH": path}, start_new_session=True
    ) as process:
        asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {one: signal.getsignal(one) for one in asked}
        try:
            for one in asked:
                if before[one] is not signal.SIG_IGN:  # as under nohup
                    signal.signal(one, lambda number, _: process.send_signal(number))
            code = process.wait()
        finally:
            for one in asked:
                signal.signal(one, before[one])
    return code if code >= 0 else 128 - code


def say(line: str) -> None:
    """Print a remark to standard error."""
    print(f"reproduce: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        code = main(tyro.cli(Arguments, description=__doc__))
        sys.stdout.flush()
    except BrokenPipeError:  # the program that reads our output has closed the pipe, as head does
        terminal.give_up_broken()
        code = 1
    except KeyboardInterrupt:  # while no other script runs
        say(STOPPED)
        code = 130
    raise SystemExit(code)
