"""Addition of seeds or swept values to a run that has begun: the missing members start from scratch.

Checkpoints and best policies are put in the order of the present sweep, as if it had been requested from the
start, except that the old members are already trained. Members are recognised by their identities, so it does
not matter which command was interrupted here before. ``restore`` does the same for records.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import jax
import numpy as np

from popjax.host.checkpoints import checkpoint, state_arrays
from popjax.host.errors import NotRead, Refused
from popjax.host.runs import best_policies, rundir
from popjax.host.runs.run import Run
from popjax.host.scaling import processes, sweep


def grow(run: Run, start: tuple[Any, Any]) -> None:
    """Give every checkpoint of ``run`` its members in their order, adding those that are missing; ``start``
    has keys [S] and hypers [S, ...].

    May be interrupted anywhere and repeated, also for other members, until ``config.json`` is written.
    Damaged checkpoints stay as they are.

    Raises:
        Refused: several processes train together, so none of them has all members.
    """
    assert run.files is not None
    names, directory = [member.identity for member in run.members], run.files.checkpoints
    before = sweep.of_config(rundir.read_config(run.files.root))
    recorded, lacking = [member.identity for member in before], []
    for generation in reversed(checkpoint.generations(directory)):
        with suppress(checkpoint.Damaged, NotRead):
            there = checkpoint.facts(directory / str(generation)).get("members", recorded)
            if there != names:
                lacking.append((generation, there))
    if lacking and jax.process_count() > 1:
        raise Refused(
            f"{run.files.root} has other members or another order: resume it with a single process first"
        )
    if added := [name for name in names if name not in recorded]:
        run.say(f"{len(added)} members are added: {', '.join(added)}")
    for generation, there in lacking:
        _grow_checkpoint(run, start, generation, there)
    best = run.files.best
    processes.together(lambda: best_policies.arrange(best, before, run.members))


def _grow_checkpoint(run: Run, start: tuple[Any, Any], generation: int, there: list[str]) -> None:
    assert run.files is not None
    names = [member.identity for member in run.members]
    missing = [place for place, name in enumerate(names) if name not in there]
    try:
        arrays, extra = checkpoint.rows(run.files.checkpoints / str(generation))
    except checkpoint.Damaged:
        return  # restoring reports it
    if missing:
        fresh = state_arrays.to_arrays(_beginning(run, start, missing))
        shapes, ours = ({name: a.shape[1:] for name, a in found.items()} for found in (arrays, fresh))
        if shapes != ours:
            return  # written by another version of popjax; restoring reports it
        arrays = {name: np.concatenate([array, fresh[name]]) for name, array in arrays.items()}
    known = {name: place for place, name in enumerate([*there, *(names[place] for place in missing)])}
    order = [known[name] for name in names]
    grown = {name: array[order] for name, array in arrays.items()}
    steps = [*extra["env_steps"], *[0] * len(missing)]
    done = [*extra.get("generations", arrays["generation"].tolist()[: len(there)]), *[0] * len(missing)]
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
