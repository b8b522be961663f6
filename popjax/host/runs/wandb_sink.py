"""A sink that sends a run's history to Weights & Biases."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from popjax.host.checkpoints import io_errors
from popjax.host.errors import NotTracked, Refused
from popjax.host.paths import file_name
from popjax.host.runs import run_group, rundir
from popjax.host.runs.history import History, named
from popjax.host.runs.log import Sink, scalars
from popjax.host.runs.recorded_scalars import recorded
from popjax.host.scaling.sweep import Member


@contextmanager
def wandb_runs(project: str, root: Path, members: Sequence[Member]) -> Iterator[Sink]:
    """One W&B run per member in ``project``: metrics and evaluations, named as in TensorBoard, with the
    environment steps as the step. Its config is all of the directory's ``config.json`` and ``member``, the
    member's number, seed and swept numbers.

    A run is known there by the id in ``config.json``, wherever the directory lies, so that a resumed run goes
    on in the same W&B runs; one that is new there begins with all that was recorded. All runs of a sweep are
    in one group. Nothing is sent before training begins; with ``WANDB_MODE=offline`` all stays in
    ``root/wandb``.

    Raises:
        Refused: wandb is not installed.
        NotTracked: it failed.
    """
    try:
        import wandb
    except ImportError:
        raise Refused("--wandb needs the package wandb: pip install 'popjax[tracking]'") from None
    runs: list[Any] = []
    failed = True

    def sink(_: int, history: History) -> None:
        try:
            if not runs:
                new = _unknown(root, members)
                runs.extend(_begin(wandb, project, root, member) for member in members)
                _replay(root, members, runs, new)
            for place in history.living:
                for row in rows(history, place, members[place].number):
                    runs[place].log(row, step=row["env_steps"])
        except Exception as error:
            raise NotTracked(f"Weights & Biases failed ({io_errors.first_line(error)})") from error

    try:
        yield sink
        failed = False
    finally:
        for run in runs:
            with suppress(Exception) if failed else nullcontext():
                run.finish(exit_code=int(failed))


def _begin(wandb: Any, project: str, root: Path, member: Member) -> Any:
    config, top = rundir.read_config(root), _sweep_of(root)
    described = rundir.RunDirectory(top)
    group = rundir.identity(described.index if run_group.holds(top) else described.config)
    own = {"number": member.number, "seed": member.seed, "numbers": dict(member.numbers)}
    run = wandb.init(
        project=project,
        group=file_name(f"{top.name} {group[:8]}"),
        name=file_name(f"{root.resolve().relative_to(top.parent)} {member.name}"),
        id=_id(config, member),
        resume="allow",
        config={**config, "member": own},
        allow_val_change=True,  # a resumed run may have a larger budget
        dir=str(root),
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.define_metric("env_steps")
    run.define_metric("*", step_metric="env_steps")
    return run


def _sweep_of(root: Path) -> Path:
    """The directory of runs that ``root`` belongs to, the outermost; ``root`` itself of a run alone."""
    root = root.resolve()
    while run_group.holds(root.parent):
        root = root.parent
    return root


def _id(config: Mapping[str, Any], member: Member) -> str:
    return hashlib.sha256(f"{config['id']} {member.name}".encode()).hexdigest()[:16]


def _unknown(root: Path, members: Sequence[Member]) -> set[int]:
    """The numbers of the members that no process has sent to W&B from this directory."""
    config = rundir.read_config(root)
    return {m.number for m in members if not any((root / "wandb").glob(f"*run-*-{_id(config, m)}"))}


def _replay(root: Path, members: Sequence[Member], runs: Sequence[Any], numbers: set[int]) -> None:
    """Send what was recorded before of the members of these numbers."""
    by_number = {member.number: run for member, run in zip(members, runs, strict=True)}
    for record in recorded(rundir.RunDirectory(root), members) if numbers else ():
        if record.member in numbers:
            by_number[record.member].log(
                {"env_steps": record.env_steps, **record.values}, step=record.env_steps
            )


def rows(history: History, place: int, member: int) -> Iterator[dict[str, Any]]:
    """Return the rows to log of the member of this number, at ``place``: each generation, then each
    evaluation."""
    metrics = named(history.metrics)
    for row in range(history.generation.shape[1]):
        found: dict[str, Any] = {"env_steps": int(history.env_steps[place, row])}
        for name, values in metrics.items():
            for suffix, value in scalars(values[place, row]):
                found[f"metrics/{name}{suffix}"] = value
        yield found
    for evaluation in history.evaluations:
        if evaluation.member == member:
            yield {
                "env_steps": evaluation.env_steps,
                "eval/return": evaluation.mean,
                "eval/length": float(np.mean(evaluation.lengths)),
            }
