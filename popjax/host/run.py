"""A run's records, and how they go to disk and come back."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from popjax.core import Env, Method
from popjax.host import checkpoint, log, memory, report, rundir
from popjax.host.history import Evaluation, History, empty
from popjax.host.options import Options


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    state:       the final State, every leaf [S, ...].
    returns:     float [S] mean return of each seed's evaluation on reaching the budget.
    evaluations: all of them, oldest first, those before a resume included.
    history:     recorded generations since the start or the resume.
    summary:     the content of ``summary.json``.
    """

    state: Any
    returns: np.ndarray
    evaluations: tuple[Evaluation, ...]
    history: History
    summary: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What does not change while a run goes on.

    config: the content of ``config.json``. keys: [S]. begun: ``time.perf_counter()`` at its beginning.
    files:  ``None`` for a run without a directory.
    """

    method: Method
    env: Env
    options: Options
    config: dict[str, Any]
    keys: jax.Array
    begun: float
    quiet: bool = False
    files: rundir.RunDirectory | None = None

    @property
    def seeds(self) -> range:
        """The seeds, as the user numbers them."""
        return range(self.options.seed, self.options.seed + self.options.seeds)

    @property
    def title(self) -> str:
        """Method, agents where the method leaves them open, and environment."""
        kinds = self.config["agents"].values()
        agents = f" ({', '.join(kinds)})" if kinds else ""
        return f"{self.config['method']}{agents} on {self.env.spec.name}"

    def say(self, line: str) -> None:
        """A remark on standard error, unless the run is quiet."""
        if not self.quiet:
            complain(line)


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    generation:      generations done.
    env_steps:       int [S] environment steps done.
    evaluations:     all so far.
    wall_seconds:    seconds spent by earlier processes of the same run.
    compile_seconds: seconds spent compiling, by all processes.
    chunk_seconds:   seconds spent in chunks, by all processes.
    """

    generation: int
    env_steps: np.ndarray
    evaluations: tuple[Evaluation, ...] = ()
    wall_seconds: float = 0.0
    compile_seconds: float = 0.0
    chunk_seconds: float = 0.0


def complain(line: str) -> None:
    """One line on standard error."""
    print(line, file=sys.stderr, flush=True)


def save(run: Run, state: Any, position: Position) -> None:
    """Makes a checkpoint, unless there is one of this generation already."""
    assert run.files is not None
    if position.generation in checkpoint.generations(run.files.checkpoints):
        return
    extra = {
        "env_steps": position.env_steps.tolist(),
        "wall_seconds": _wall_seconds(run, position),
        "compile_seconds": position.compile_seconds,
        "chunk_seconds": position.chunk_seconds,
    }
    checkpoint.save(run.files.checkpoints, position.generation, state, extra)


def restore(run: Run, shapes: Any) -> tuple[Any, Position] | None:
    """State and position of the newest whole checkpoint, ``None`` if the run must begin again.

    Records beyond it are removed, as those generations are about to be done again; checkpoints beyond it are
    set aside.
    """
    assert run.files is not None
    checkpoint.discard_partial(run.files.checkpoints)
    found = checkpoint.restore_newest(run.files.checkpoints, shapes, complain)
    generation = found[0] if found else -1
    checkpoint.set_aside_newer(run.files.checkpoints, generation)
    log.drop_after(run.files.metrics, generation)
    log.drop_after(run.files.evaluations, generation)
    if found is None:
        run.say(f"{run.files.root} has no checkpoint yet: starting from the beginning")
        return None
    _, state, extra = found
    position = Position(
        generation=generation,
        env_steps=np.array(extra["env_steps"]),
        evaluations=log.read_evaluations(run.files.evaluations),
        wall_seconds=extra["wall_seconds"],
        compile_seconds=extra["compile_seconds"],
        chunk_seconds=extra["chunk_seconds"],
    )
    run.say(f"resuming at generation {generation}, {int(position.env_steps.min()):,} environment steps")
    return state, position


def finish(run: Run, state: Any, position: Position, history: History) -> Result:
    """The result of a run that has spent its budget; writes curve and summary if it has a directory."""
    returns = _final_returns(run, position)
    steps = int(position.env_steps.astype(np.int64).sum())
    summary = {
        "method": run.config["method"],
        "agents": run.config["agents"],
        "runs": {
            option: [{**_without_config(run), "run": Path(run["run"]).name} for run in runs]
            for option, runs in run.config["runs"].items()
        },
        "env": run.env.spec.name,
        "seeds": list(run.seeds),
        "env_steps": int(position.env_steps.max()),
        "env_steps_per_seed": position.env_steps.tolist(),
        "generations": position.generation,
        "final_return": returns.tolist(),
        "wall_seconds": round(_wall_seconds(run, position), 3),
        "compile_seconds": round(position.compile_seconds, 3),
        "steps_per_second": round(steps / position.chunk_seconds, 1) if position.chunk_seconds else None,
        "peak_memory_bytes": memory.peak_bytes(jax.local_devices()[0]),
        "hardware": run.config["device"],
        "state_sha256": checkpoint.digest(state),
    }
    if run.files is not None:
        report.learning_curve(position.evaluations, run.files.curve, title=run.title)
        rundir.write_json(run.files.summary, summary)
    return Result(state, returns, position.evaluations, history, summary)


def _without_config(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in entry if name != "config"}


def finished(run: Run, state: Any, position: Position) -> Result:
    """The result of a run that had spent its budget before it was resumed; nothing is trained."""
    assert run.files is not None
    run.say(
        f"{run.files.root} has finished at {int(position.env_steps.min()):,} environment steps already;"
        " a larger --env-steps would continue it"
    )
    if not run.files.summary.exists():  # killed after the last checkpoint
        return finish(run, state, position, empty(state))
    summary = json.loads(run.files.summary.read_text())
    return Result(state, _final_returns(run, position), position.evaluations, empty(state), summary)


def _final_returns(run: Run, position: Position) -> np.ndarray:
    """[S] mean return of the last evaluation of each seed; NaN where the records of it were lost."""
    last = {evaluation.seed: evaluation.mean for evaluation in position.evaluations}
    return np.array([last.get(seed, np.nan) for seed in run.seeds])


def _wall_seconds(run: Run, position: Position) -> float:
    return position.wall_seconds + time.perf_counter() - run.begun
