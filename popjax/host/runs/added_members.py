"""Addition of seeds or swept values to a run that has begun: the missing members start from scratch.

Checkpoints, best policies and records are put in the order of the larger sweep, as if it had been requested
from the start, except that the old members are already trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from popjax.host.checkpoints import checkpoint, state_arrays
from popjax.host.errors import NotRead, Refused
from popjax.host.runs import best_policies, log
from popjax.host.runs.run import Run
from popjax.host.scaling import processes, sweep
from popjax.host.scaling.sweep import Member


def grow(run: Run, start: tuple[Any, Any]) -> None:
    """Add missing members to every checkpoint of ``run``; ``start`` has keys [S] and hypers [S, ...].

    May be interrupted anywhere and repeated. Damaged checkpoints stay as they are.

    Raises:
        Refused: several processes train together, so none of them has all members.
    """
    assert run.files is not None
    names, directory = [member.identity for member in run.members], run.files.checkpoints
    lacking = []
    for generation in reversed(checkpoint.generations(directory)):
        with suppress(checkpoint.Damaged, NotRead):
            there = checkpoint.facts(directory / str(generation)).get("members", names)
            if there != names:
                lacking.append((generation, there))
    if not lacking:
        return
    if jax.process_count() > 1:
        raise Refused(f"{run.files.root} needs more members: resume it with a single process first")
    added = [name for name in names if name not in lacking[-1][1]]
    run.say(f"{len(added)} members are added: {', '.join(added)}")
    for path in (run.files.metrics, run.files.evaluations):
        _renumber(path, run.members)
    best_policies.grow(run.files.best, lacking[-1][1], run.members)
    for generation, there in lacking:
        _grow_checkpoint(run, start, generation, there)


def _grow_checkpoint(run: Run, start: tuple[Any, Any], generation: int, there: list[str]) -> None:
    assert run.files is not None
    names = [member.identity for member in run.members]
    missing = [place for place, name in enumerate(names) if name not in there]
    try:
        arrays, extra = checkpoint.rows(run.files.checkpoints / str(generation))
    except checkpoint.Damaged:
        return  # restoring reports it
    fresh = state_arrays.to_arrays(_beginning(run, start, missing))
    shapes, ours = ({name: a.shape[1:] for name, a in found.items()} for found in (arrays, fresh))
    if shapes != ours:
        return  # written by another version of popjax; restoring reports it
    known = {name: place for place, name in enumerate([*there, *(names[place] for place in missing)])}
    order = [known[name] for name in names]
    grown = {name: np.concatenate([array, fresh[name]])[order] for name, array in arrays.items()}
    steps = [*extra["env_steps"], *[0] * len(missing)]
    done = [*extra.get("generations", arrays["generation"].tolist()), *[0] * len(missing)]
    told = extra | {
        "members": names,
        "env_steps": [steps[place] for place in order],
        "generations": [done[place] for place in order],
        "failed": {str(names.index(there[int(place)])): f for place, f in extra.get("failed", {}).items()},
    }
    every = len(checkpoint.generations(run.files.checkpoints))
    checkpoint.write_arrays(run.files.checkpoints, generation, grown, told, kept=every)


def _beginning(run: Run, start: tuple[Any, Any], places: Sequence[int]) -> Any:
    """Return the initial States [n, ...] of the members at ``places``."""
    keys = sweep.keys([run.members[place] for place in places])
    hypers = jax.tree.map(lambda x: processes.fetch(x)[list(places)], start[1])
    return jax.jit(sweep.lift(run.method.init, len(places)))(keys, hypers)


def _renumber(path: Path, members: Sequence[Member]) -> None:
    """Update the member numbers in a file of records."""
    numbers = {member.identity: member.number for member in members}
    swept = list(members[0].numbers)

    def renumbered(row: dict[str, Any]) -> dict[str, Any]:
        own = Member(0, row["seed"], {name: float(row[name]) for name in swept})
        return row | {"member": numbers[own.identity]}

    log.rewrite(path, path, renumbered)
