"""Members of a sweep copied into a new run, which continues without the others.

This works without building the method: a checkpoint is named arrays whose first axis is the members.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from popjax.host.checkpoints import checkpoint
from popjax.host.errors import Refused
from popjax.host.runs import best_policies, log, run_group, rundir
from popjax.host.runs.run import Failure
from popjax.host.scaling import processes
from popjax.host.scaling.sweep import of_config
from popjax.host.terminal import complain

_PARTIAL = "partial"


@contextmanager
def detached(
    source: Path,
    destination: Path,
    bounds: tuple[int, int] | None,
    generation: int | None = None,
    edits: Mapping[str, Sequence[int]] = MappingProxyType({}),
    begun: Mapping[str, str | None] = MappingProxyType({}),
    env_steps: float = math.inf,
) -> Iterator[None]:
    """Copy members of the run in ``source`` into a new run in ``destination``.

    Failed members continue from their last good checkpoints; with the same hyperparameters they fail again.
    If the new run is refused before it has trained, the copy is removed at the end of the context, since it
    would block other commands.

    Args:
        bounds: first and last-plus-one number of the members; None for all.
        generation: generation of the checkpoint to copy; None for the newest.
        edits: new values of leaves of the State by name, one value for all members.
        begun: how the run began, for ``config.json``.
        env_steps: budget of the new run, which a State with ``edits`` must not have spent.

    Raises:
        Refused: ``source`` has no such members, intact checkpoint or leaf, or nothing is left of the budget;
            or ``destination`` holds a run.
    """
    files = rundir.RunDirectory(destination)
    processes.together(lambda: _detach(source, destination, bounds, generation, edits, begun, env_steps))
    copied = checkpoint.generations(files.checkpoints)
    try:
        yield
    except Refused:
        if processes.first() and checkpoint.generations(files.checkpoints) == copied:
            files.clear()
        raise


def _detach(
    source: Path,
    destination: Path,
    bounds: tuple[int, int] | None,
    generation: int | None,
    edits: Mapping[str, Sequence[int]],
    begun: Mapping[str, str | None],
    env_steps: float,
) -> None:
    source = run_group.run_of(source, bounds[0] if bounds else None)
    config = rundir.read_config(source)
    config.pop("id", None)  # the new run gets its own
    old, whole = rundir.RunDirectory(source), rundir.RunDirectory(destination)
    if whole.holds_a_run():
        raise Refused(f"{destination} already holds a run: name another --run-dir")
    members = of_config(config)
    numbers = [member.number for member in members]
    places = _places(numbers, bounds)
    arrays, extra = _taken(old, numbers, places, generation)
    if edits and (least := min(extra["env_steps"])) >= env_steps:
        raise Refused(
            f"{source} has already trained for {least} environment steps there, so a change would have no"
            " effect: raise --env-steps, or name an earlier checkpoint"
        )
    for name, value in edits.items():
        if name not in arrays:
            raise Refused(f"the State of {source} has no {name}: its method does not support this change")
        arrays[name] = np.broadcast_to(np.asarray(value, arrays[name].dtype), arrays[name].shape).copy()
    # Build it aside: a process killed meanwhile leaves nothing that looks like a run.
    new = rundir.RunDirectory(destination / _PARTIAL)
    shutil.rmtree(new.root, ignore_errors=True)
    chosen = {numbers[place] for place in places}
    for file in ("metrics", "evaluations"):
        log.rewrite(
            getattr(old, file),
            getattr(new, file),
            lambda row: row["member"] in chosen and row,
        )
    checkpoint.write_arrays(new.checkpoints, int(arrays["generation"].max()), arrays, extra)
    if generation in (None, *checkpoint.generations(old.checkpoints)[:1]):
        best_policies.copy(old.best, new.best, [numbers[place] for place in places])
    part = config.get("members") if bounds is None else [*bounds]
    rundir.write_json(new.config, config | {"members": part, "begun": dict(begun)})
    for copied, wanted in zip(new.contents, whole.contents, strict=True):
        if copied.exists():
            copied.rename(wanted)
    new.root.rmdir()


def _places(numbers: list[int], bounds: tuple[int, int] | None) -> list[int]:
    """Return the places in ``numbers`` of the members within ``bounds``."""
    first, last = bounds or (numbers[0], numbers[-1] + 1)
    if first not in numbers or last - 1 not in numbers or first >= last:
        raise Refused(f"--members {first}:{last} must lie in the members {numbers[0]}:{numbers[-1] + 1}")
    return [numbers.index(number) for number in range(first, last)]


def _taken(
    files: rundir.RunDirectory, numbers: list[int], places: list[int], generation: int | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the rows ``places`` of every leaf of a checkpoint, and its extra facts reduced to these
    members."""
    there = checkpoint.generations(files.checkpoints)
    if generation is not None and generation not in there:
        has = ", ".join(map(str, sorted(there))) or "none"
        raise Refused(
            f"{files.root} has no checkpoint of generation {generation}; it has {has} (--keep-checkpoints N"
            " keeps more, --checkpoint-every N makes more)"
        )
    found = checkpoint.slice_of_newest(files.checkpoints, places, complain, generation)
    if found is None:
        raise Refused(f"{files.root} has no intact checkpoint")
    arrays, extra = found
    steps = [extra["env_steps"][place] for place in places]
    for row, place in enumerate(places):
        if facts := extra.get("failed", {}).get(str(place)):
            good, then = _last_good(files, numbers[place], place, Failure(**facts))
            for name, array in arrays.items():
                array[row] = good[name][0]
            steps[row] = then["env_steps"][place]
    # The copies have not failed, and the loop finds the stopped ones itself.
    kept = {key: value for key, value in extra.items() if key not in ("frozen", "failed", "generations")}
    if "members" in extra:
        kept["members"] = [extra["members"][place] for place in places]
    return arrays, kept | {"env_steps": steps}


def _last_good(
    files: rundir.RunDirectory, number: int, place: int, failure: Failure
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the rows [1, ...] of the last checkpoint before a member failed, and its extra facts."""
    found = None
    if failure.checkpoint is not None:
        found = checkpoint.slice_of_newest(files.checkpoints, [place], complain, failure.checkpoint)
    if found is None:
        raise Refused(f"member {number} has failed: {failure.reason}, and has no checkpoint: leave it out")
    return found
