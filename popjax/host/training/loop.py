"""The training loop: compute a chunk, evaluate, call the sinks, save; and its interruptions."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from popjax import numerics
from popjax.host import signals
from popjax.host.checkpoints import checkpoint, io_errors
from popjax.host.checkpoints.writer import Writer
from popjax.host.errors import CallbackFailed, Interrupted, NonFiniteMetric, Refused
from popjax.host.runs import log
from popjax.host.runs.background_writer import Background
from popjax.host.runs.best_policies import Best
from popjax.host.runs.history import Evaluation, History, Seconds, empty, join, non_finite
from popjax.host.runs.recorded_scalars import recorded
from popjax.host.runs.run import Failure, Position, Result, Run, extra, wall_seconds
from popjax.host.runs.tensorboard import event_files
from popjax.host.scaling import processes
from popjax.host.training import stopping
from popjax.host.training.compiled_programs import Programs
from popjax.host.training.stopped_members import StoppedMembers
from popjax.host.training.summary import finish


class Trained(NamedTuple):
    """Facts that do not change during the loop.

    start:  the keys [S] and hypers [S, ...] of the members.
    shapes: shapes of the State [S, ...].
    writer: writes checkpoints; None for a run without a directory.
    best:   keeps the best policies; None for a run without a directory.
    """

    run: Run
    programs: Programs
    start: tuple[Any, Any]
    shapes: Any
    writer: Writer | None
    best: Best | None = None


def train_on(
    trained: Trained, state: Any, position: Position, sinks: Sequence[log.Sink], stack: ExitStack
) -> Result:
    """Train from ``state`` until all members have stopped or the run ends early."""
    run, writer = trained.run, trained.writer
    shown = any(map(log.sees_policy, sinks))
    sinks = [*_own_sinks(run, position, stack), *sinks]
    stop = stack.enter_context(signals.deferred(run.say)) if writer else signals.Stop()
    # A short run records at least its last generation.
    spacing = max(1, min(run.options.log_every, run.options.env_steps) // run.method.steps_bound)
    stopped = StoppedMembers(trained.shapes, run.files.root if run.files else None)
    stack.callback(stopped.close)
    rows, saved, parts = empty(trained.shapes), position, []
    for index in itertools.count():
        stopped.keep(state, stopping.ended(run, position) - stopped.places)
        if index:
            state, position, rows = _advance(trained, state, position, saved, stopped)
        else:
            rows = rows.freeze(position.generations, position.env_steps, stopping.stopped(run, position))
        due = bool(_crossed(saved.env_steps, position.env_steps, run.options.checkpoint_every).any())
        part, position, failure = _evaluate(trained, state, position, rows.every(spacing), stop)
        parts.append(part)
        if trained.best:  # omit untrained policies, which may score well by chance
            trained.best.see(state, [made for made in part.evaluations if made.generation])
        if shown:
            state = signals.ready(stopped.put_back(state))
        arrived = stop.arrived or 0  # read once: a signal that arrives later is for the next chunk
        out_of_time = stopping.out_of_time(run)
        written = bool(due or arrived or out_of_time or stopping.over(run, position))
        begun = time.perf_counter()
        told = index, part, trained.programs.policy(state) if shown else None
        enough, failure = _tell(run, sinks, told, written, failure)
        position = position.spent("record", begun)
        asked = processes.largest(_FAILED if failure else arrived or _ENOUGH * (enough or out_of_time))
        done = stopping.over(run, position) and not evaluations_due(run, position)
        stop.saving = ends = bool(done or asked)
        if ends or (writer and due):
            state = signals.ready(stopped.put_back(state))  # an abandoned evaluation may still be running
        if writer and (ends or due):
            saved = position = _save(trained, state, position, wait=ends)
        if asked == _FAILED:
            _end_failed(run, position, failure)
        if done or asked == _ENOUGH:
            early = None if done else "--max-minutes has passed" if out_of_time else "a sink returned True"
            return finish(run, state, position, join(parts), stopping.reasons(run, position, early))
        if asked:
            raise Interrupted(_resumable(run, position), asked, stop.left)
    raise AssertionError("unreachable")


_ENOUGH, _FAILED = 2**15, 2**16  # codes that processes exchange, larger than any signal number


def _tell(
    run: Run,
    sinks: Sequence[log.Sink],
    told: tuple[int, History, Any],
    written: bool,
    failure: BaseException | None,
) -> tuple[bool, BaseException | None]:
    """Call all sinks with a chunk's index, its History and the policy after it.

    Return whether a sink asked to end the run, and the first failure, which is ``failure`` if given: failures
    are raised later, since the State can still be saved. With ``written``, wait until the records are on
    disk, since a resumed run does not rewrite records from before its checkpoint.
    """
    enough, found = False, failure
    calls: list[Callable[[], Any]] = [
        partial(sink, *told) if log.sees_policy(sink) else partial(sink, *told[:2]) for sink in sinks
    ]
    if written or failure:
        calls += [sink.drain for sink in sinks if isinstance(sink, Background)]
    for call in calls:
        try:
            with numerics.users():
                answer = call()
            enough |= log.says_stop(answer)
        except (Exception, Interrupted) as error:
            found = found or error
    if found and run.files:
        run.say(f"{io_errors.first_line(found)}: saving before it ends the run")
    return enough, found


def _end_failed(run: Run, position: Position, failure: BaseException | None) -> NoReturn:
    """Raise this process's failure after the State is saved; on other processes, report that one failed."""
    if run.files:
        run.say(_resumable(run, position))
    if failure is None:
        raise Refused("another process has stopped; its own message says why")
    raise failure


def _save(trained: Trained, state: Any, position: Position, wait: bool) -> Position:
    """Save the best policies and a checkpoint, keeping the last good checkpoints of failed members.

    Return the position with the time that this took added. With ``wait``, wait until all is written.
    """
    begun = time.perf_counter()
    if trained.best:
        trained.best.save()
    assert trained.writer is not None
    kept = {failure.checkpoint for failure in position.failed.values() if failure.checkpoint is not None}
    trained.writer.save(position.generation, state, extra(trained.run, position), kept)
    if wait:
        trained.writer.wait()
    return position.spent("save", begun)


def _advance(
    trained: Trained, state: Any, position: Position, saved: Position, stopped: StoppedMembers
) -> tuple[Any, Position, History]:
    """Compute a chunk; return the State and position after it, and the records of active members.

    Raises:
        CallbackFailed: a part of the environment that runs on the host failed.
        NonFiniteMetric: a metric of the last active member is not finite.
    """
    try:
        state, rows, seconds = _run_chunk(trained, state, position)
    except jax.errors.JaxRuntimeError as error:
        if what := _of_callback(error):
            if trained.writer:
                trained.writer.wait()
            raise CallbackFailed(f"{what}; {_last_saved(trained.run, saved)}") from None
        raise
    ended = stopped.places | position.failed.keys()
    rows = rows.freeze(position.generations, position.env_steps, ended)
    if failures := non_finite(rows):
        position = _mark_failed(trained, failures, position, saved)
        rows = rows.freeze(position.generations, position.env_steps, failures)
    _require_progress(rows, position)
    position = replace(
        position,
        generation=position.generation + rows.generation.shape[1],
        generations=rows.generation[:, -1],
        env_steps=rows.env_steps[:, -1],
        chunk_seconds=position.chunk_seconds + seconds,
    )
    return state, position, rows


def _run_chunk(trained: Trained, state: Any, position: Position) -> tuple[Any, History, float]:
    begun, before = time.perf_counter(), wall_seconds(trained.run, position)
    state, rows = trained.programs.chunk(state)
    generation, env_steps, metrics = processes.fetch(signals.ready(rows))
    took, count = time.perf_counter() - begun, generation.shape[1]
    within = took * np.arange(1, count + 1) / count
    seconds = Seconds(position.chunk_seconds + within, before + within)
    return state, History(generation, env_steps, metrics, seconds), took


def _evaluate(
    trained: Trained, state: Any, position: Position, rows: History, stop: signals.Stop
) -> tuple[History, Position, BaseException | None]:
    """Evaluate the members that are due; return ``rows`` and the position with the results, and any failure.

    An evaluation that fails or is interrupted by a signal is repeated when the run is resumed.
    """
    begun, due = time.perf_counter(), evaluations_due(trained.run, position)
    heard = stop if jax.process_count() == 1 else None  # several processes must finish it together
    seconds = Seconds(position.chunk_seconds, wall_seconds(trained.run, position))
    if not due or (heard and heard.arrived):
        return rows, position, None
    try:
        answer = trained.programs.evaluate(state, trained.start[0], position.generations, due, heard)
    except signals.Left:
        stop.left = True
        return rows, position.spent("evaluation", begun), None
    except Exception as error:
        what = _of_callback(error)
        return rows, position.spent("evaluation", begun), CallbackFailed(what) if what else error
    position = position.spent("evaluation", begun)
    made = tuple(
        Evaluation(
            trained.run.members[place].seed,
            int(position.generations[place]),
            int(position.env_steps[place]),
            tuple(returns.tolist()),
            tuple(lengths.tolist()),
            trained.run.members[place].number,
            seconds,
        )
        for place, returns, lengths in zip(due, *answer, strict=True)
    )
    return replace(rows, evaluations=made), replace(position, evaluations=position.evaluations + made), None


def evaluations_due(run: Run, position: Position) -> list[int]:
    """Return the places of the members that are due for evaluation."""
    return [place for place in position.active if _evaluation_due(run, position, place)]


def _evaluation_due(run: Run, position: Position, place: int) -> bool:
    """Return whether a member is due: at the start, at multiples of the interval, and at the budget."""
    steps, budget, number = int(position.env_steps[place]), run.options.env_steps, run.members[place].number
    last = max((e.env_steps for e in position.evaluations if e.member == number), default=None)
    if last is None:
        return True
    every = run.options.eval_every
    return last < budget and (_crossed(last, steps, every) or steps >= budget)


def _crossed(before: Any, now: Any, every: int) -> Any:
    """Return whether a multiple of ``every`` lies in (before, now]; numbers or arrays."""
    return now // every > before // every


def _mark_failed(
    trained: Trained, failures: Mapping[int, tuple[int, str]], position: Position, saved: Position
) -> Position:
    """Return the position with the members whose metrics are not finite marked as failed.

    They are still computed with the others, but no longer recorded or evaluated.

    Raises:
        NonFiniteMetric: no active member is left.
    """
    run = trained.run
    if trained.writer:
        trained.writer.wait()
    if not set(position.active) - failures.keys():
        raise NonFiniteMetric(_all_failed(run, failures, saved))
    checkpoint = (saved.generation or None) if run.files else None
    failed = {
        place: Failure(f"metric {metric} became NaN or infinite in generation {generation}", checkpoint)
        for place, (generation, metric) in sorted(failures.items())
    }
    position = replace(position, failed={**position.failed, **failed})
    others = len(run.members) - len(stopping.stopped(run, position))
    for place, failure in failed.items():
        run.say(
            f"member {run.members[place].number} ({run.members[place].name}) has failed: {failure.reason};"
            f" {failure.remains}; {f'{others} others continue' if others else 'the others have finished'}"
        )
    return position


def _of_callback(error: BaseException) -> str | None:
    """Return the message of an exception from a host callback of a compiled program, or None for any other
    error."""
    told = str(error).strip()
    return told.splitlines()[-1].partition(": ")[2] if "error calling callback" in told else None


def _last_saved(run: Run, saved: Position) -> str:
    """Return the point from which a failed run can continue, in words."""
    if run.files is None:
        return "nothing was saved, as there is no run directory"
    if checkpoint.generations(run.files.checkpoints):
        return (
            f"the State of generation {saved.generation} is saved in {run.files.root}; --resume starts there"
        )
    return f"no checkpoint had been made yet; --resume in {run.files.root} starts from the beginning"


def _all_failed(run: Run, failures: Mapping[int, tuple[int, str]], saved: Position) -> str:
    where = _last_saved(run, saved)
    (generation, metric), place = min((failure, place) for place, failure in failures.items())
    seed = run.members[place].seed
    return f"metric {metric} of seed {seed} became NaN or infinite in generation {generation}; {where}"


def _require_progress(rows: History, position: Position) -> None:
    if not (rows.env_steps[:, -1] > position.env_steps)[rows.active].all():
        raise RuntimeError("a chunk of generations counted no environment steps: training would never end")


def _own_sinks(run: Run, position: Position, stack: ExitStack) -> list[log.Sink]:
    sinks: list[log.Sink] = []
    if not processes.first():
        return sinks
    if run.files:
        files, members = run.files, run.members
        curves = event_files(files.tensorboard, members, position.env_steps, recorded(files, members))
        sinks = [
            stack.enter_context(log.metrics_file(files.metrics, members)),
            stack.enter_context(log.evaluations_file(files.evaluations, members)),
            stack.enter_context(curves),
        ]
    if not run.quiet:
        done = position.env_steps, position.evaluations
        sinks.append(stack.enter_context(log.progress(run.title, run.options.env_steps, *done)))
    return sinks


def _resumable(run: Run, position: Position) -> str:
    assert run.files is not None
    return (
        f"stopped at {position.least:,} of {run.options.env_steps:,} environment steps;"
        f" the State is saved in {run.files.root}; --resume continues from there"
    )
