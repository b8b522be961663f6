"""The facts, progress and results of a run, and saving and restoring them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from popjax.core import Env, Method
from popjax.host.checkpoints import checkpoint
from popjax.host.errors import Refused
from popjax.host.runs import log, rundir
from popjax.host.runs.history import Evaluation, History
from popjax.host.runs.options import Options
from popjax.host.scaling import processes
from popjax.host.scaling.sweep import Member
from popjax.host.terminal import complain


@dataclass(frozen=True)
class Result:
    """Result of a run.

    state:       the final State, every leaf [S, ...]; meaningless for a failed member.
    returns:     float [S] mean return of each member's last evaluation, which may be up to ``eval_every``
                 environment steps older than ``state`` if the run ended before its budget; NaN for a failed
                 member.
    evaluations: all evaluations, oldest first, including those before a resume.
    history:     recorded generations since the start or the resume.
    summary:     the content of ``summary.json``.
    members:     the members along the axis S.
    """

    state: Any
    returns: np.ndarray
    evaluations: tuple[Evaluation, ...]
    history: History
    summary: dict[str, Any]
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Run:
    """Facts that do not change during a run.

    config:  the content of ``config.json``.
    members: the members trained by this run.
    begun:   ``time.perf_counter()`` at the start of this process's part.
    files:   None for a run without a directory.
    """

    method: Method
    env: Env
    options: Options
    config: dict[str, Any]
    members: tuple[Member, ...]
    begun: float
    quiet: bool = False
    files: rundir.RunDirectory | None = None

    @property
    def title(self) -> str:
        """Method, its agents if the method has a choice, and environment."""
        kinds = self.config["agents"].values()
        agents = f" ({', '.join(kinds)})" if kinds else ""
        return f"{self.config['method']}{agents} on {self.config['env']}"

    def say(self, line: str) -> None:
        """Print a remark to standard error from the first process, unless the run is quiet."""
        if not self.quiet and processes.first():
            complain(line)


TIMED = {
    "compile": "compiling",
    "chunk": "training",
    "evaluation": "evaluating",
    "record": "recording",
    "save": "saving",
}
"""Activities of a run, by the prefix of their seconds in ``Position``."""


class Failure(NamedTuple):
    """Failure of a member: one of its metrics became NaN or infinite.

    reason:     metric and generation.
    checkpoint: generation of the last checkpoint before the failure, or None.
    """

    reason: str
    checkpoint: int | None

    @property
    def remains(self) -> str:
        """Describe the member's last good checkpoint."""
        if self.checkpoint is None:
            return "there is no checkpoint before the failure"
        return f"its last good checkpoint is that of generation {self.checkpoint}"


@dataclass(frozen=True)
class Position:
    """Progress of a run.

    generation:      generations done by the active members; checkpoints are named after it.
    generations:     int [S] generations done by each member; fewer for a stopped one.
    env_steps:       int [S] environment steps done.
    evaluations:     all evaluations so far.
    wall_seconds:    seconds spent by earlier processes of the same run.
    compile_seconds: seconds spent compiling, by all processes.
    chunk_seconds:   seconds spent in chunks, by all processes.
    evaluation_seconds, record_seconds, save_seconds: seconds that training has waited for evaluations,
                     records and checkpoints, by all processes.
    failed:          failed members by place [S].
    """

    generation: int
    generations: np.ndarray
    env_steps: np.ndarray
    evaluations: tuple[Evaluation, ...] = ()
    wall_seconds: float = 0.0
    compile_seconds: float = 0.0
    chunk_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    record_seconds: float = 0.0
    save_seconds: float = 0.0
    failed: Mapping[int, Failure] = field(default_factory=dict)

    def spent(self, name: str, begun: float) -> Position:
        """Return this position with the time since ``begun`` added to the seconds of activity ``name``."""
        seconds = f"{name}_seconds"
        return replace(self, **{seconds: getattr(self, seconds) + time.perf_counter() - begun})

    @property
    def active(self) -> list[int]:
        """Places of the members that have not failed."""
        return [place for place in range(len(self.env_steps)) if place not in self.failed]

    @property
    def least(self) -> int:
        """Environment steps of the slowest member that has not failed."""
        return int(self.env_steps[self.active].min())


def extra(run: Run, position: Position) -> dict[str, Any]:
    """Return the facts that a checkpoint stores beside the State."""
    return {
        "members": [member.identity for member in run.members],
        "env_steps": position.env_steps.tolist(),
        "wall_seconds": wall_seconds(run, position),
        **{f"{name}_seconds": getattr(position, f"{name}_seconds") for name in TIMED},
        "generations": position.generations.tolist(),
        "failed": {str(place): failure._asdict() for place, failure in position.failed.items()},
    }


def restore(run: Run, shapes: Any, shardings: Any) -> tuple[Any, Position] | None:
    """Return State and position of the newest intact checkpoint, or None if there is no checkpoint yet.

    Records after it are removed, since those generations are about to be repeated; newer checkpoints are set
    aside.

    Raises:
        Refused: there are checkpoints, but all are damaged; nothing is removed.
        NotRead: a checkpoint may be intact but cannot be read now.
    """
    files = run.files
    assert files is not None
    processes.together(lambda: checkpoint.discard_partial(files.checkpoints))
    found = checkpoint.restore_newest(files.checkpoints, shapes, complain, shardings)
    if found is None and checkpoint.generations(files.checkpoints):
        raise Refused(
            f"{files.checkpoints} has no intact checkpoint to continue from, and nothing was changed: remove"
            " that directory and rerun with --resume to start over, or name another --run-dir"
        )
    if found is None:
        processes.together(lambda: _forget_beyond(files, -1, run.members, {}))
        run.say(f"{files.root} has no checkpoint yet: starting from the beginning")
        return None
    generation, state, extra = found
    if extra.get("frozen"):
        raise Refused(
            f"{files.root} has members that an earlier popjax stopped; check out commit"
            f" {rundir.read_config(files.root).get('git_commit')} to resume it"
        )
    generations = np.array(extra.get("generations", processes.fetch(state.generation)))
    failed = {int(place): Failure(**facts) for place, facts in extra.get("failed", {}).items()}
    going = {m.number: int(generations[i]) for i, m in enumerate(run.members) if i not in failed}
    processes.together(lambda: _forget_beyond(files, generation, run.members, going))
    position = Position(
        generation=generation,
        generations=generations,
        env_steps=np.array(extra["env_steps"]),
        evaluations=log.read_evaluations(files.evaluations),
        wall_seconds=extra["wall_seconds"],
        **{f"{name}_seconds": extra.get(f"{name}_seconds", 0.0) for name in TIMED},
        failed=failed,
    )
    run.say(f"resuming at generation {generation}, {position.least:,} environment steps")
    return state, position


def _forget_beyond(
    files: rundir.RunDirectory, generation: int, members: Sequence[Member], limits: Mapping[int, int]
) -> None:
    """Set aside checkpoints after ``generation`` and remove records after it; ``limits`` has the members'
    own limits for records by number."""
    checkpoint.set_aside_newer(files.checkpoints, generation)
    log.drop_after(files.metrics, generation, members, limits)
    log.drop_after(files.evaluations, generation, members, limits)


def wall_seconds(run: Run, position: Position) -> float:
    """Return the seconds spent on the run so far by all its processes, including this one."""
    return position.wall_seconds + time.perf_counter() - run.begun
