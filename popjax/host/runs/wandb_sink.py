"""A sink that sends a run's history to Weights & Biases."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from popjax.host.checkpoints import io_errors
from popjax.host.errors import NotTracked, Refused
from popjax.host.paths import file_name
from popjax.host.runs import run_group, rundir
from popjax.host.runs.history import History, Scalars
from popjax.host.runs.log import Sink
from popjax.host.runs.recorded_scalars import of_history, recorded
from popjax.host.scaling.sweep import Member


@contextmanager
def wandb_runs(project: str, root: Path, members: Sequence[Member]) -> Iterator[Sink]:
    """Send metrics and evaluations to W&B, one run per member in ``project``, named as in TensorBoard.

    The step is environment steps. The config is ``config.json`` with an entry ``member``: number, seed and
    swept hyperparameters. W&B identifies a run by the id in ``config.json``, so a resumed run continues in
    the same W&B runs, even if its directory was moved; a run new to W&B starts with all earlier records. All
    runs of a sweep form one group. Nothing is sent before training begins; with ``WANDB_MODE=offline``
    everything stays in ``root/wandb``. A run ends as failed if its member has failed, and all do if training
    has not come to its end.

    Raises:
        Refused: wandb is not installed.
        NotTracked: W&B failed.
    """
    try:
        import wandb
    except ImportError:
        raise Refused("--wandb needs the package wandb: pip install 'popjax[tracking]'") from None
    runs: dict[int, Any] = {}  # by the member's number
    failed: set[int] | None = None  # all of them

    def sink(_: int, history: History) -> None:
        try:
            if not runs:
                new = _unknown(root, members)
                runs.update({member.number: _begin(wandb, project, root, member) for member in members})
                if new:
                    earlier = recorded(rundir.RunDirectory(root), members)
                    _log(runs, (record for record in earlier if record.member in new))
            _log(runs, of_history(history, list(runs)))
        except Exception as error:
            raise NotTracked(f"Weights & Biases failed ({io_errors.first_line(error)})") from error

    try:
        yield sink
        failed = {row["member"] for row in rundir.failed(rundir.read_summary(root) or {})}
    finally:
        for number, run in runs.items():
            with suppress(Exception) if failed is None else nullcontext():
                run.finish(exit_code=int(failed is None or number in failed))


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
    """Return the outermost directory of runs that contains ``root``; ``root`` itself for a single run."""
    root = root.resolve()
    while run_group.holds(root.parent):
        root = root.parent
    return root


def _id(config: Mapping[str, Any], member: Member) -> str:
    return hashlib.sha256(f"{config['id']} {member.name}".encode()).hexdigest()[:16]


def _unknown(root: Path, members: Sequence[Member]) -> set[int]:
    """Return the numbers of the members not yet sent to W&B from this directory."""
    config = rundir.read_config(root)
    return {m.number for m in members if not any((root / "wandb").glob(f"*run-*-{_id(config, m)}"))}


def _log(runs: Mapping[int, Any], records: Iterable[Scalars]) -> None:
    for record in records:
        row = {"env_steps": record.env_steps, **record.values}
        runs[record.member].log(row, step=record.env_steps)
