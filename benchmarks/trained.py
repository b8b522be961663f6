"""Runs that a study reads; if it cannot use them, it ends with one line, as the other scripts do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from popjax.cli import building
from popjax.host import paths
from popjax.host.checkpoints import checkpoint
from popjax.host.errors import FAILURES, Refused
from popjax.host.runs import log, run_group, rundir


@contextmanager
def in_one_line() -> Iterator[None]:
    """End the process with one line in place of a traceback if a run cannot be used, or on Ctrl-C."""
    try:
        yield
    except (Refused, checkpoint.Damaged, *FAILURES) as failure:
        raise SystemExit(f"error: {failure}") from None
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        raise SystemExit(130) from None


def config(run: Path, *methods: str) -> dict[str, Any]:
    """Return the content of ``config.json``.

    Raises:
        Refused: there is no run, or ``methods`` are given and it is not a run of one of them.
    """
    found = rundir.read_config(run_group.run_of(paths.path(run), None))
    if methods and (method := found.get("method")) not in methods:
        raise Refused(f"{run} is a run of {method}; name a run of {' or '.join(methods)}")
    return found


def load(run: Path, *methods: str, picked: str | None = None) -> building.Loaded:
    """Return a run to build on; as ``building.load``.

    Raises:
        Refused: it cannot be read, or it is not a run of one of ``methods``.
    """
    config(run, *methods)
    return building.load(run, picked=picked)


def origin(run: Path) -> dict[str, Any]:
    """Return facts that identify a run and how far it is trained: what a study was made from.

    Raises:
        Refused: there is no run.
        Damaged: its newest checkpoint cannot be read.
    """
    saved, files = config(run), rundir.RunDirectory(paths.path(run))
    newest = checkpoint.generations(files.checkpoints)[:1]
    reached = [checkpoint.facts(files.checkpoints / str(generation))["env_steps"] for generation in newest]
    facts = {name: saved.get(name) for name in ("id", "env", "git_commit", "device")}
    return {"name": run.name, **facts, "env_steps": reached[0] if reached else None}


def checkpoints(run: Path) -> Iterator[tuple[int, building.Loaded]]:
    """Yield the environment steps of every checkpoint, the oldest first, and the run as it was then.

    Raises:
        Refused: there is no run, or no checkpoint of it.
    """
    config(run)
    folder = rundir.RunDirectory(paths.path(run)).checkpoints
    found = reversed(checkpoint.generations(folder))
    steps = [max(checkpoint.facts(folder / str(generation))["env_steps"]) for generation in found]
    if not steps:
        raise Refused(f"{run} has no checkpoint yet; train it first")
    for each in steps:
        yield each, load(run, picked=str(each))


def individuals(run: building.Loaded) -> Callable[[Any], Any]:
    """Return the function from a State to the parameters of all individuals.

    Raises:
        Refused: individuals of the method do not act alone.
    """
    if run.method.individuals is None:
        raise Refused(f"a run of {run.saved['method']} has no individuals that act alone; name another run")
    return run.method.individuals


def metrics(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of ``metrics.jsonl``.

    Raises:
        Refused: there is none, or it cannot be read.
    """
    lines = log.each_line(rundir.RunDirectory(paths.path(run)).metrics)
    if (first := next(lines, None)) is None:
        config(run)  # refuses what is no run at all
        raise Refused(f"{run} has recorded nothing yet; train it first")
    yield first
    yield from lines
