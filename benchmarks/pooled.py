"""Put the seeds of a row together that were trained in several runs, at other times or on other machines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

OF_A_RUN = (
    "run-dir",
    "resume",
    "seed",
    "seeds",
    "devices",
    "launcher",
    "max-minutes",
    "checkpoint-every",
    "log-every",
)
"""Options that do not change what a seed learns."""


def together(run: Mapping[str, Any], old: Mapping[str, Any] | None, env_steps: int) -> list[dict[str, Any]]:
    """Return the runs of a row: ``run``, and those of the row that was stored.

    A stored run counts if the row has as many environment steps and its command the same settings; of a seed
    that both have, ``run`` counts. A remark on a stored run stays with it.

    run:       seeds, their scores, command, commit and whatever else is known of the run.
    old:       the stored row; None if there is none.
    env_steps: those of ``run``.
    """
    runs = old["runs"] if old else []
    same = ("seeds", "scores", "git_commit")
    remarks = [one["remark"] for one in runs if "remark" in one and all(one[key] == run[key] for key in same)]
    found = [{**run, **({"remark": remarks[0]} if remarks else {})}]
    if old and old["env_steps"] == env_steps and all(_settings(one) == _settings(run) for one in runs):
        for one in runs:
            left = [
                pair for pair in zip(one["seeds"], one["scores"], strict=True) if pair[0] not in run["seeds"]
            ]
            if left:
                seeds, scores = map(list, zip(*left, strict=True))
                found.append({**one, "seeds": seeds, "scores": scores})
    return sorted(found, key=lambda one: one["seeds"])


def named(row: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name of each run of a row: the row's own, with the seeds where there are several runs."""
    if len(runs) == 1:
        return [row]
    return [
        f"{row} (seed{'s' * (len(run['seeds']) > 1)} {', '.join(map(str, run['seeds']))})" for run in runs
    ]


def _settings(run: Mapping[str, Any]) -> object:
    """Return the options of a run's command that change what a seed learns; itself, like no other run, if its
    command is not known."""
    if run["command"] is None:
        return run
    groups: list[list[str]] = [["method"]]
    for word in shlex.split(run["command"])[2:]:
        if word.startswith("--"):
            groups.append(word.split("=", 1))
        else:
            groups[-1].append(word)
    return sorted(group for group in groups if group[0].removeprefix("--") not in OF_A_RUN)
