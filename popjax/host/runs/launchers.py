"""Launchers of the programs of a sweep: this process, Ray or SLURM.

A job is a command line and its run directory. The directory records the progress whatever happens to the
process, so a job that died is simply run again with ``--resume``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from popjax.host import signals
from popjax.host.errors import Interrupted, Refused
from popjax.host.runs import run_group
from popjax.host.scaling import processes
from popjax.host.terminal import complain

Execute = Callable[[Sequence[str]], int]
"""Run a command line and return its exit code; other machines import the function by name."""
PREEMPTED = frozenset(128 + number for number in signals.SIGNALS)
"""Exit codes of a run that saved its State and ended on a signal."""
_DIED = -1  # the process is gone and left no exit code


class Ended(NamedTuple):
    """Exit code of a job and, if it failed, its last message."""

    code: int
    reason: str = ""


class Job(NamedTuple):
    """Arguments of a run, except --run-dir and --resume, and its directory."""

    argv: tuple[str, ...]
    directory: Path


def arguments(job: Job) -> list[str]:
    """Return the command line that starts the job or continues it from its last checkpoint."""
    resume = ["--resume"] if run_group.started(job.directory) else []
    return [*job.argv, "--run-dir", str(job.directory), *resume]


def local(jobs: Sequence[Job], execute: Execute, say: Callable[[str], None]) -> list[int]:
    """Run jobs one after another in this process; return their exit codes.

    Raises:
        Interrupted: a signal arrived during a job, after which no other is run; ``--resume`` continues.
    """
    codes: list[int] = []
    with signals.remembered() as stop:
        for number, job in enumerate(jobs, 1):
            if arrived := processes.largest(stop.arrived or 0):
                left = sum(map(bool, codes)) + len(jobs) - len(codes)
                raise Interrupted(f"stopped; {left} of {len(jobs)} runs have not finished", arrived)
            say(f"run {number} of {len(jobs)}: {job.directory}")
            codes.append(execute(arguments(job)))
    return codes


def ray(
    jobs: Sequence[Job],
    execute: Execute,
    say: Callable[[str], None],
    options: Mapping[str, Any],
    retries: int,
) -> list[int]:
    """Run jobs on the Ray cluster at RAY_ADDRESS, or on one started here; return exit codes.

    ``options`` are those of a Ray task, such as ``num_gpus``; by default a job takes one GPU if there are
    any. A job whose worker dies or is preempted continues from its checkpoint, at most ``retries`` times.
    """
    cluster = _imported("ray")
    # A small object store suffices: runs write to their own directories.
    ours = {} if os.environ.get("RAY_ADDRESS") else {"object_store_memory": 10**8, "include_dashboard": False}
    cluster.init(ignore_reinit_error=True, log_to_driver=False, configure_logging=False, **ours)
    resources = {"num_gpus": 1 if cluster.cluster_resources().get("GPU") else 0} | dict(options)
    # A new process for every job, since JAX frees its memory only when a process ends.
    remote = cluster.remote(max_retries=0, max_calls=1, **resources)(_run)

    def submit(job: Job) -> Any:
        return remote.remote(execute, _anywhere(job), Path.cwd())

    def result(task: Any) -> Ended:
        try:
            return cluster.get(task)
        except cluster.exceptions.RayTaskError as failure:  # an error in the program: retrying would not help
            return Ended(1, _last_line(str(failure)))
        except cluster.exceptions.RayError as failure:  # the worker or its node died, or ran out of memory
            return Ended(_DIED, type(failure).__name__)

    def wait(tasks: Sequence[Any]) -> Any:
        return next(iter(cluster.wait(list(tasks), num_returns=1, timeout=_POLL)[0]), None)

    return _supervise(jobs, submit, wait, result, cluster.cancel, say, retries)


def slurm(
    jobs: Sequence[Job],
    execute: Execute,
    say: Callable[[str], None],
    options: Mapping[str, Any],
    retries: int,
) -> list[int]:
    """Submit jobs to SLURM through submitit and wait for them; return their exit codes.

    ``options`` are submitit's, such as ``slurm_partition``, ``gpus_per_node`` and ``timeout_min``;
    ``cluster="local"`` runs jobs on this machine. submitit's files go to ``slurm`` beside the runs. A job
    that dies or is preempted continues from its checkpoint, at most ``retries`` times.
    """
    submitit = _imported("submitit")
    given = dict(options)
    folder, cluster = jobs[0].directory.parent / "slurm", given.pop("cluster", None)
    if cluster == "local":
        given.setdefault("timeout_min", _ENDLESS)  # submitit's default ends the jobs after two minutes
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**given)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise Refused(f"--launcher slurm: {' '.join(str(error).split())}") from None

    def submit(job: Job) -> Any:
        return executor.submit(_run, execute, _anywhere(job), Path.cwd())

    def wait(tasks: Sequence[Any]) -> Any:
        ended = next((task for task in tasks if task.done()), None)
        if ended is None:
            time.sleep(_POLL)
        return ended

    def result(task: Any) -> Ended:
        try:
            return task.result()
        except submitit.core.utils.FailedJobError as failure:
            return Ended(1, _last_line(str(failure)))
        except submitit.core.utils.UncompletedJobError:
            return Ended(_DIED, f"see {task.paths.stderr}")

    def cancel(task: Any) -> None:
        process = getattr(task, "_process", None)  # cluster "local": cancel would kill it after 1 s
        if process is None:
            task.cancel()
        else:
            process.send_signal(signal.SIGTERM)

    return _supervise(jobs, submit, wait, result, cancel, say, retries)


_POLL = 1.0  # seconds between looks at the queue
_ENDLESS = 60 * 24 * 365  # minutes


def _supervise(
    jobs: Sequence[Job],
    submit: Callable[[Job], Any],
    wait: Callable[[Sequence[Any]], Any],
    result: Callable[[Any], Ended],
    cancel: Callable[[Any], object],
    say: Callable[[str], None],
    retries: int,
) -> list[int]:
    """Submit all jobs, resubmit those that died, and return exit codes.

    On a signal to this process, cancel the running jobs, which lets them save, and wait for them. ``wait``
    returns a task that has ended, or None after a while.

    Raises:
        Interrupted: a signal arrived; ``--resume`` continues.
        KeyboardInterrupt: Ctrl-C was pressed again, and jobs may still be running.
    """
    codes, tries, stopped = [_DIED] * len(jobs), [0] * len(jobs), False
    with signals.deferred(say, "asking the jobs to save and to end") as stop:
        running = {submit(job): place for place, job in enumerate(jobs)}
        say(f"{len(jobs)} jobs submitted")
        while running:
            if stop.arrived and not stopped:
                stopped = True
                for task in running:
                    cancel(task)
            task = wait(list(running))
            if task is None:
                continue
            place = running.pop(task)
            code, why = result(task)
            codes[place] = code
            tries[place] += 1
            name = jobs[place].directory
            if code == 0:
                say(f"{name} has finished; {len(running)} jobs left")
            elif stop.arrived:
                say(f"{name} has ended; {len(running)} jobs left")
            elif (code == _DIED or code in PREEMPTED) and tries[place] <= retries:
                how = "died" if code == _DIED else "was preempted"
                say(f"{name} {how}; continuing it, {tries[place]} of {retries} retries")
                running[submit(jobs[place])] = place
            else:
                how = "no exit code" if code == _DIED else f"exit code {code}"
                say(f"{name} ended with {how}{f': {why}' if why else ''}")
    if stop.arrived and any(codes):
        unfinished = sum(code != 0 for code in codes)
        raise Interrupted(f"stopped; {unfinished} of {len(jobs)} jobs have not finished", stop.arrived)
    return codes


def _anywhere(job: Job) -> Job:
    """Return the job with a directory that does not depend on the working directory."""
    return job._replace(directory=job.directory.absolute())


def _run(execute: Execute, job: Job, submitted_from: Path) -> Ended:
    """Run a job in a worker, keeping the last line of its standard error."""
    # Ray's workers begin elsewhere, and arguments may name modules and runs relative to this directory.
    try:
        os.chdir(submitted_from)
    except OSError:  # matters only to such arguments
        complain(f"{submitted_from} is not on this machine: relative paths in the command are not found")
    told = _Kept(sys.stderr)
    with contextlib.redirect_stderr(told):
        code = execute(arguments(job))
    return Ended(code, _last_line(told.end) if code else "")


class _Kept:
    """A stream that also keeps the end of its text."""

    def __init__(self, stream: Any):
        self._stream, self.end = stream, ""

    def write(self, text: str) -> int:
        """Write and keep ``text``."""
        self.end = (self.end + text)[-4_000:]
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _last_line(text: str) -> str:
    """Return the last line of a job's output; for a traceback, it names the error."""
    return (text.strip().splitlines() or [""])[-1].removeprefix("error: ")


def require(launcher: str, options: Mapping[str, Any]) -> None:
    """Check that ``launcher`` can run jobs; raise Refused if not."""
    if launcher == "ray":
        _imported("ray")
    elif launcher == "slurm":
        _imported("submitit")
        if "cluster" not in options and shutil.which("srun") is None:
            raise Refused(
                "--launcher slurm: srun is not found: load the module of SLURM, or leave out --launcher to"
                " run here"
            )
        minutes = [options[name] for name in ("timeout_min", "slurm_timeout_min") if name in options]
        timed = bool(minutes) or "slurm_time" in options or options.get("cluster") in ("local", "debug")
        if not timed or not all(type(limit) is int for limit in minutes):
            raise Refused(
                "--launcher slurm needs the time limit of a job in whole minutes: add --launcher-option"
                " timeout_min=600, or as many as your partition allows"
            )


def _imported(library: str) -> Any:
    import importlib

    extra = {"ray": "ray", "submitit": "slurm"}[library]
    try:
        return importlib.import_module(library)
    except ImportError:
        raise Refused(f"--launcher {extra} needs {library}: pip install 'popjax[{extra}]'") from None
