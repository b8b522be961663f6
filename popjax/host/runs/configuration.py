"""Entries of ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from popjax.core import Env, Method
from popjax.host import provenance
from popjax.host.numbers import plain
from popjax.host.runs import origins
from popjax.host.runs.options import Options


def configuration(
    method: Method,
    env: Env,
    hyper: Any,
    options: Options,
    sweep: Mapping[str, Sequence[float]],
    members: tuple[int, int] | None,
    name: str | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Return everything needed to build and repeat a run, and where it ran.

    ``sweep`` has the swept hyperparameters, ``members`` is the part of the sweep, ``name`` the method's name
    or None to derive it, ``command`` the command that started the run.
    """
    return {
        **origins.describe(method, env, name),
        "hyper": plain(asdict(hyper)),
        "options": asdict(options),
        "sweep": {name: list(values) for name, values in sweep.items()},
        "members": None if members is None else list(members),
        "command": command,
        "versions": provenance.versions(),
        "jax": provenance.jax_settings(),
        "device": provenance.device_name(),
        "git_commit": provenance.git_commit(),
        "git_dirty": provenance.git_dirty(),
        "remarks": remarks(method, env, options),
    }


def remarks(method: Method, env: Env, options: Options) -> list[str]:
    """Return warnings for readers of a run's results, a line each."""
    found = []
    changed, commit = provenance.git_dirty(), provenance.git_commit()
    if changed is None:
        found.append(
            f"whether popjax has uncommitted changes to commit {commit or '(unknown)'} is not recorded, since"
            f" git is missing, fails or takes over {provenance.PATIENCE} s in {provenance.PACKAGE}: try git"
            " status there"
        )
    if changed:
        found.append(f"popjax has uncommitted changes: commit {commit} alone does not reproduce this run")
    if not env.reproducible:
        found.append(
            f"{env.spec.name} does not compute the same bits every time: equal seeds may differ, and so may a"
            " resumed run and one that was never stopped"
        )
    if method.learning_starts >= options.env_steps:
        found.append(
            f"learning begins after {method.learning_starts:,} environment steps, but --env-steps is"
            f" {options.env_steps:,}: nothing is learned; raise --env-steps, or let learning begin earlier"
        )
    return found
