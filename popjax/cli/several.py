"""Execution of the programs of a command: one here, or several, here or by a launcher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from popjax.cli import grid, show, training
from popjax.cli.program import understand
from popjax.host.errors import FAILURES, Refused, TooLarge
from popjax.host.runs import launchers, run_group, rundir
from popjax.host.runs.run_group import Entry
from popjax.host.scaling import processes
from popjax.host.terminal import complain


class Tools(NamedTuple):
    """Parts of the command line that a sweep of several programs uses.

    method: name of the method, the first argument of every program.
    common: the arguments shared by all methods, from the first program.
    within: runs a whole command line in this process, except that Ctrl-C ends the caller too.
    run:    runs a whole command line in a process of its own.
    """

    method: str
    common: Any
    within: launchers.Execute
    run: launchers.Execute


def run_one(tools: Tools, argv: Sequence[str], root: Path, control: grid.Control) -> None:
    """Train one program here; split a sweep that is too large for memory."""
    if control.resume and run_group.holds(root):
        entries = grid.slices_again(argv, tools.common, root, grid.device_count(tools.common, "local"))
        grid.open_index(root, entries, tools.common, resume=True)
        run_all(tools, entries, root, control)
        return
    try:
        result = _train(tools, argv, root, control.resume)
        if processes.first():
            show.result(result.summary, root)
    except TooLarge as fault:
        if not 0 < fault.fitting < len(grid.chosen(tools.common)):
            raise
        _run_in_slices(tools, argv, root, control, fault)


def _train(tools: Tools, argv: Sequence[str], root: Path, resume: bool) -> Any:
    """Train one program in this process and return its ``Result``."""
    return training.train_program(understand(tools.method, list(argv)), root, resume)


def submit_one(tools: Tools, argv: Sequence[str], root: Path, control: grid.Control) -> None:
    """Train one program as a job whose run directory is ``root`` itself.

    Raises:
        Refused: ``root`` holds a run, and ``--resume`` was not given.
    """
    if not control.resume and rundir.RunDirectory(root).holds_a_run():
        raise Refused(f"{root} already holds a run: add --resume to continue it, or name another --run-dir")
    # Submit even if the run has finished: the job refuses one that was made with other options.
    (code,) = _launch([launchers.Job((tools.method, *argv), root)], tools, control)
    if code:
        raise SystemExit(1)
    if run_group.holds(root):  # the job found it too large for memory, and trained it in slices
        show.results(list(run_group.results(root)), root)
    else:
        summary = rundir.read_summary(root)
        if summary is None:
            raise Refused(f"the job left no summary.json in {root}: --resume continues the run")
        show.result(summary, root)


def run_all(tools: Tools, entries: Sequence[Entry], root: Path, control: grid.Control) -> None:
    """Run the programs of a directory of runs and summarize their results."""
    jobs = [launchers.Job((tools.method, *entry.argv), root / entry.directory) for entry in entries]
    due = [
        job
        for job, entry in zip(jobs, entries, strict=True)
        if not run_group.finished(
            job.directory, grid.budget(entry.argv), grid.identities(tools.common, entry.argv)
        )
    ]
    codes = _launch(due, tools, control) if due else []
    processes.together(lambda: run_group.summarize(root))
    if processes.first():
        show.results(list(run_group.results(root)), root)
    failed = [job.directory.name for job, code in zip(due, codes, strict=True) if code]
    if failed:
        complain(
            f"error: {len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}; --resume tries again"
        )
        raise SystemExit(1)


def _launch(jobs: Sequence[launchers.Job], tools: Tools, control: grid.Control) -> list[int]:
    """Run jobs by the launcher that was asked for; return their exit codes."""
    if control.launcher == "local":
        return launchers.local(jobs, tools.within, complain)
    start = launchers.ray if control.launcher == "ray" else launchers.slurm
    return start(jobs, tools.run, complain, control.launcher_option, control.retries)


def _run_in_slices(
    tools: Tools, argv: Sequence[str], root: Path, control: grid.Control, fault: TooLarge
) -> None:
    """Train a sweep in the largest slices that fit into memory; ``fault`` names the memory that the whole
    needs."""
    members = len(grid.chosen(tools.common))
    while True:
        size = grid.largest_slice(tools.common, fault)
        entries = grid.slices(argv, tools.common, size, grid.device_count(tools.common, "local"))
        complain(f"{fault}; training {size} of {members} members at a time instead")
        grid.open_index(root, entries, tools.common, resume=control.resume)
        control = control._replace(resume=True)
        try:
            # The State's memory is known at once, that of the programs only when they are compiled.
            _train(tools, entries[0].argv, root / entries[0].directory, False)
            break
        except TooLarge as smaller:
            if smaller.fitting < 1:
                raise
            fault = smaller
        except FAILURES:
            break  # its failure is reported with the others'
    run_all(tools, entries, root, control)
