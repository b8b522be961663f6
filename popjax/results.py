"""What becomes of runs: reports, policies of their own, and what is told to others meanwhile."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from popjax.cli import Loaded


def report(argv: list[str]) -> None:
    """``scripts/report.py``."""
    from popjax import parse

    arguments = parse.parse(parse.ReportArguments, argv, program="report.py")
    from popjax import show
    from popjax.host.report import report as write

    show.report(write(arguments.run_dirs, arguments.out, arguments.labels))


def export(argv: list[str]) -> None:
    """``scripts/export.py``."""
    from popjax import cli, parse

    arguments = parse.parse(parse.ExportArguments, argv, program="export.py")
    cli.prepare_jax()
    from popjax import show
    from popjax.host import sweep
    from popjax.host.export import export_policy

    run = alone(cli.load(arguments.run_dir, arguments.member), arguments.individual)
    origins = [
        {
            "method": run.saved["method"],
            "individual": arguments.individual,
            "git_commit": run.saved.get("git_commit"),
            "seed": member.seed,
            **member.numbers,
            "env_steps": int(steps),
        }
        for member, steps in zip(sweep.of_config(run.saved), run.env_steps, strict=True)
    ]
    reason = export_policy(run.method, run.env, run.state, arguments.out, 0, origins)
    show.exported(arguments.out, reason)


def alone(run: Loaded, individual: int | None) -> Loaded:
    """``--individual``: the run with the policy of one individual."""
    if individual is None:
        return run
    from popjax.host import individuals

    method = individuals.alone(run.method, run.state, individual)
    return run._replace(method=method, saved=run.saved | {"individual": individual})


def tracking(common: Any, root: Path, description: dict[str, Any], stack: ExitStack) -> list[Any]:
    """``--wandb``: the sink that sends to a project."""
    if common.wandb is None:
        return []
    from popjax import grid
    from popjax.host import processes
    from popjax.host.tracking import wandb_runs

    if not processes.first():
        return []
    config = {**description, "env": common.env}
    return [stack.enter_context(wandb_runs(common.wandb, root, config, grid.chosen(common)))]
