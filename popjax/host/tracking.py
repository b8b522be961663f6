"""A sink that sends a run's history to Weights & Biases."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from popjax.host import rundir
from popjax.host.errors import Refused
from popjax.host.history import History, named
from popjax.host.log import Sink, scalars
from popjax.host.paths import file_name
from popjax.host.sweep import Member


@contextmanager
def wandb_runs(project: str, root: Path, members: Sequence[Member]) -> Iterator[Sink]:
    """One W&B run per member in ``project``, all in a group named after the run directory ``root``: metrics
    and evaluations over environment steps, named as in TensorBoard. Its config is all of the directory's
    ``config.json`` and ``member``, the member's number, seed and swept numbers.

    A resumed run goes on in the same W&B runs. Nothing is sent before training begins;
    with ``WANDB_MODE=offline`` all stays in ``root/wandb``.

    Raises:
        Refused: wandb is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise Refused("--wandb needs the package wandb: pip install 'popjax[tracking]'") from None
    runs: list[Any] = []

    def begin(member: Member) -> Any:
        own = {"number": member.number, "seed": member.seed, "numbers": dict(member.numbers)}
        run = wandb.init(
            project=project,
            group=file_name(root.name),
            name=file_name(f"{root.name} {member.name}"),
            id=hashlib.sha256(f"{root.resolve()} {member.name}".encode()).hexdigest()[:16],
            resume="allow",
            config={**rundir.read_config(root), "member": own},
            allow_val_change=True,  # a resumed run may have a larger budget
            dir=str(root),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        run.define_metric("env_steps")
        run.define_metric("*", step_metric="env_steps")
        return run

    def sink(_: int, history: History) -> None:
        if not runs:
            runs.extend(map(begin, members))
        for place in history.living:
            for row in rows(history, place, members[place].number):
                runs[place].log(row)

    failed = True
    try:
        yield sink
        failed = False
    finally:
        for run in runs:
            run.finish(exit_code=int(failed))


def rows(history: History, place: int, member: int) -> Iterator[dict[str, Any]]:
    """What is logged of the member of this number, at ``place``: each generation, then each evaluation."""
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
