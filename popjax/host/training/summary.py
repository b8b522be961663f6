"""The result of a run, and what it leaves behind: ``summary.json``, curves and schedules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from popjax import tree
from popjax.host.checkpoints import state_arrays
from popjax.host.numbers import plain
from popjax.host.report import learning_curve
from popjax.host.runs import rundir
from popjax.host.runs.history import History, empty
from popjax.host.runs.run import TIMED, Position, Result, Run, wall_seconds
from popjax.host.scaling import memory, processes, sweep
from popjax.host.terminal import complain
from popjax.host.training import stopping


def finish(
    run: Run, state: Any, position: Position, history: History, early: Mapping[int, str] | None = None
) -> Result:
    """Return the result of a finished run; write curves and summary if it has a directory.

    ``early`` is the reason why members stopped before their budget, by place.
    """
    returns = _final_returns(run, position)
    steps = int(position.env_steps.astype(np.int64).sum())
    finals = [None if np.isnan(value) else value for value in returns.tolist()]
    summary = {
        "method": run.config["method"],
        "agents": run.config["agents"],
        "runs": {
            option: [{**_briefly(run), "run": Path(run["run"]).name} for run in runs]
            for option, runs in run.config["runs"].items()
        },
        "env": run.config["env"],
        "seeds": [member.seed for member in run.members],
        "env_steps": int(position.env_steps.max()),
        "env_steps_per_seed": position.env_steps.tolist(),
        "generations": int(position.generations.max()),
        "final_return": finals,
        "wall_seconds": round(wall_seconds(run, position), 3),
        "compile_seconds": round(position.compile_seconds, 3),
        "time_shares": _time_shares(run, position),
        "steps_per_second": round(steps / position.chunk_seconds, 1) if position.chunk_seconds else None,
        "peak_memory_bytes": memory.peak_bytes(jax.tree.leaves(state)[0].addressable_shards[0].device),
        "hardware": run.config["device"],
        "state_sha256": state_arrays.digest(state),
        "members": [
            _member(run, state, position, place, finals[place], (early or {}).get(place))
            for place in range(len(finals))
        ],
    }
    if run.files is not None:
        files, schedules = run.files, _schedules(run, state)
        processes.together(lambda: _write_results(run, files, position, summary, schedules))
    return Result(state, returns, position.evaluations, history, summary, run.members)


def _member(
    run: Run, state: Any, position: Position, place: int, final: float | None, early: str | None
) -> dict[str, Any]:
    """Return a member's entry in the summary; its digest equals that of a run with this member alone."""
    member, failure = run.members[place], position.failed.get(place)
    facts = {
        "member": member.number,
        "seed": member.seed,
        "numbers": dict(member.numbers),
        "status": "failed" if failure else "stopped" if early else "finished",
        "reason": failure.reason if failure else early,
        "env_steps": int(position.env_steps[place]),
        "final_return": final,
    }
    if failure:
        return facts | {"state_sha256": None, "last_good_checkpoint": failure.checkpoint}
    alone = state if len(run.members) == 1 else jax.tree.map(lambda x: x[place : place + 1], state)
    metrics = tree.named(processes.fetch(alone.metrics))
    return facts | {
        "state_sha256": state_arrays.digest(alone),
        "metrics": {name: plain(values[0]) for name, values in metrics},
    }


def _schedules(run: Run, state: Any) -> list[dict[str, Any]]:
    """Return the schedule of every member, or nothing for a method without schedules."""
    told = run.method.schedule
    if told is None:
        return []
    arrays = processes.fetch(jax.jit(sweep.lift(told.read, len(run.members)))(state))
    return [
        {"member": member.number, "seed": member.seed, **member.numbers}
        | dict(told.tell(jax.tree.map(lambda x: x[place], arrays)))
        for place, member in enumerate(run.members)
    ]


def _write_results(
    run: Run,
    files: rundir.RunDirectory,
    position: Position,
    summary: dict[str, Any],
    schedules: list[dict[str, Any]],
) -> None:
    try:
        _draw_curves(run, files, position)
    except Exception as error:  # no picture is worth the result
        complain(f"no learning curve was drawn: {type(error).__name__}: {' '.join(str(error).split())}")
    if schedules:
        rundir.write_json(files.schedule, {"members": schedules})
    rundir.write_json(files.summary, summary)  # last, since a run that has it is complete for ``finished``


def _draw_curves(run: Run, files: rundir.RunDirectory, position: Position) -> None:
    """Draw the learning curve of every setting of a sweep."""
    settings = {
        member.setting: [m for m in run.members if m.setting == member.setting] for member in run.members
    }
    failed, goal = {run.members[place].number for place in position.failed}, run.options.stop_at_return
    for setting, members in settings.items():
        numbers = {member.number for member in members}
        numbers = numbers - failed or numbers  # the mean ends where the first seed fails
        evaluations = [e for e in position.evaluations if e.member in numbers]
        title = f"{run.title}, {setting}" if setting else run.title
        files.curve(setting).parent.mkdir(exist_ok=True)
        learning_curve(evaluations, files.curve(setting), title=title, stop_at_return=goal)


def _briefly(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the short fields of a run that the method builds on; config.json has all of them."""
    return {name: value for name, value in entry.items() if not isinstance(value, Mapping)}


def finished(run: Run, state: Any, position: Position) -> Result:
    """Return the result of a run that had already finished when it was resumed; nothing is trained."""
    assert run.files is not None
    short = run.options.stop_at_return is not None and position.least < run.options.env_steps
    on = "leave out --stop-at-return or raise it" if short else "raise --env-steps"
    run.say(
        f"{run.files.root} has already finished at {position.least:,} environment steps; {on} to continue it"
    )
    summary = _told(run, position)
    if summary is None:  # killed after the last checkpoint, or resumed with members in another order
        early = stopping.reasons(run, position, None)
        return finish(run, state, position, empty(state), early)
    returns = _final_returns(run, position)
    return Result(state, returns, position.evaluations, empty(state), summary, run.members)


def _told(run: Run, position: Position) -> dict[str, Any] | None:
    """Return the content of ``summary.json`` if it is about these members at this position."""
    assert run.files is not None
    try:
        summary = rundir.read_summary(run.files.root) or {}
        there = [(row["member"], sweep.of_row(row).identity) for row in summary["members"]]
        same = summary["env_steps_per_seed"] == position.env_steps.tolist()
    except (ValueError, KeyError):
        return None
    return summary if same and there == [(m.number, m.identity) for m in run.members] else None


def _time_shares(run: Run, position: Position) -> dict[str, float]:
    """Return the share of the run's wall time that each activity took, over all processes; "other" is the
    rest, such as starting and restoring."""
    wall = wall_seconds(run, position)
    shares = {told: round(getattr(position, f"{name}_seconds") / wall, 4) for name, told in TIMED.items()}
    return {**shares, "other": round(max(0.0, 1 - sum(shares.values())), 4)}


def _final_returns(run: Run, position: Position) -> np.ndarray:
    """Return the mean return [S] of each member's last evaluation; NaN if it failed or has no records."""
    last = {evaluation.member: evaluation.mean for evaluation in position.evaluations}
    return np.array(
        [
            np.nan if place in position.failed else last.get(member.number, np.nan)
            for place, member in enumerate(run.members)
        ]
    )
