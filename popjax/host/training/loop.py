"""The loop of training: evaluate, tell the sinks, save, compute a chunk; and what may interrupt it."""

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

from popjax.host import signals
from popjax.host.checkpoints import checkpoint, io_errors
from popjax.host.checkpoints.best_policies import Best
from popjax.host.checkpoints.writer import Writer
from popjax.host.errors import CallbackFailed, Interrupted, NonFiniteMetric, Refused
from popjax.host.runs import log
from popjax.host.runs.background_writer import Background
from popjax.host.runs.history import Evaluation, History, Seconds, empty, join, non_finite
from popjax.host.runs.recorded_scalars import recorded
from popjax.host.runs.run import Failure, Position, Result, Run, extra, finish, wall_seconds
from popjax.host.scaling import processes
from popjax.host.training import stopping
from popjax.host.training.compiled_programs import Programs
from popjax.host.training.stopped_members import Standing


class Trained(NamedTuple):
    """All that does not change while the loop goes round.

    start:  the keys [S] and hypers [S, ...] of the members.
    shapes: of the State [S, ...].
    writer: of checkpoints; ``None`` for a run without a directory.
    best:   keeps the best policies; likewise.
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
    """Trains from ``state`` on until nobody goes on, or it is to end early."""
    run, writer = trained.run, trained.writer
    watched = any(map(stopping.sees_policy, sinks))
    sinks = [*_own_sinks(run, position, stack), *sinks]
    stop = stack.enter_context(signals.deferred(run.say)) if writer else signals.Stop()
    # A short run records at least its last generation.
    spacing = max(1, min(run.options.log_every, run.options.env_steps) // run.method.steps_bound)
    standing = Standing(trained.shapes, run.files.root if run.files else None)
    stack.callback(standing.close)
    rows, saved, parts = empty(trained.shapes), position, []
    for index in itertools.count():
        standing.keep(state, stopping.ended(run, position) - standing.places)
        if index:
            state, position, rows = _advance(trained, state, position, saved, standing)
        else:
            rows = rows.freeze(position.generations, position.env_steps, stopping.standing(run, position))
        due = bool(_crossed(saved.env_steps, position.env_steps, run.options.checkpoint_every).any())
        begun = time.perf_counter()
        part, position, failure = _evaluate(trained, state, position, rows.every(spacing), stop)
        position = position.spent("evaluation", begun)
        parts.append(part)
        if trained.best and index:
            trained.best.see(state, part.evaluations)
        if watched:
            state = signals.ready(standing.put_back(state))
        arrived = stop.arrived or 0  # once: one that comes while sinks are told is for the next chunk
        out_of_time = stopping.out_of_time(run)
        written = due or arrived or out_of_time or stopping.over(run, position)
        begun = time.perf_counter()
        policy = trained.programs.policy(state) if watched else None
        enough, failure = _tell(run, sinks, (index, part, policy), bool(written), failure)
        position = position.spent("record", begun)
        asked = processes.largest(_FAILED if failure else arrived or _ENOUGH * (enough or out_of_time))
        done = stopping.over(run, position) and not evaluations_due(run, position)
        ends = bool(done or asked)
        if ends or (writer and due):
            state = signals.ready(standing.put_back(state))  # an evaluation that was left may be before it
        stop.saving = ends
        if writer and (ends or due):
            begun = time.perf_counter()
            _save(trained, state, position)
            if ends:
                writer.wait()
            saved = position = position.spent("save", begun)
        if asked == _FAILED:
            _end_failed(run, position, failure)
        if done or asked == _ENOUGH:
            early = None if done else "--max-minutes is over" if out_of_time else "a sink asked for it"
            return finish(run, state, position, join(parts), stopping.reasons(run, position, early))
        if asked:
            raise Interrupted(_resumable(run, position), asked, stop.left)
    raise AssertionError("unreachable")


_ENOUGH, _FAILED = 2**15, 2**16  # what a process says of itself where others tell a signal


def _tell(
    run: Run,
    sinks: Sequence[log.Sink],
    told: tuple[int, History, Any],
    written: bool,
    failure: BaseException | None,
) -> tuple[bool, BaseException | None]:
    """Tell all sinks of a chunk, its History and the policy after it. Return whether one has answered that
    this is enough, and the first failure, ``failure`` if there was one before.

    A failure is kept for later, because the State can still be saved. With ``written``, wait for the records:
    a resumed run does not write again what is about to be saved.
    """
    enough, found = False, failure
    calls: list[Callable[[], Any]] = [
        partial(sink, *told) if stopping.sees_policy(sink) else partial(sink, *told[:2]) for sink in sinks
    ]
    if written or failure:
        calls += [sink.drain for sink in sinks if isinstance(sink, Background)]
    for call in calls:
        try:
            enough |= stopping.says_stop(call())
        except (Exception, Interrupted) as error:
            found = found or error
    if found and run.files:
        run.say(f"{io_errors.first_line(found)}: saving before it ends the run")
    return enough, found


def _end_failed(run: Run, position: Position, failure: BaseException | None) -> NoReturn:
    """Raise what failed on this process once the State is saved; on the others, say so."""
    if run.files:
        run.say(_resumable(run, position))
    if failure is None:
        raise Refused("another process has stopped; its own message says why")
    raise failure


def _save(trained: Trained, state: Any, position: Position) -> None:
    """Save the best policies and a checkpoint; the last good ones of failed members stay."""
    if trained.best:
        trained.best.save()
    assert trained.writer is not None
    kept = {failure.checkpoint for failure in position.failed.values() if failure.checkpoint is not None}
    trained.writer.save(position.generation, state, extra(trained.run, position), kept)


def _advance(
    trained: Trained, state: Any, position: Position, saved: Position, standing: Standing
) -> tuple[Any, Position, History]:
    """One chunk: the State and position after it, and what it recorded of the members that went on.

    Raises:
        CallbackFailed: what the environment computes on the host failed.
        NonFiniteMetric: a metric of the last member that went on is not finite.
    """
    try:
        state, rows, seconds = _run_chunk(trained, state, position)
    except jax.errors.JaxRuntimeError as error:
        if what := io_errors.callback(error):
            if trained.writer:
                trained.writer.wait()
            raise CallbackFailed(f"{what}; {_last_saved(trained.run, saved)}") from None
        raise
    still = standing.places | position.failed.keys()
    rows = rows.freeze(position.generations, position.env_steps, still)
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
    """Evaluate the members that are due; return ``rows`` and the position with what was made, and a failure.

    An evaluation that fails or that a signal interrupts is made when the run is resumed.
    """
    due = evaluations_due(trained.run, position)
    heard = stop if jax.process_count() == 1 else None  # several processes compute it together
    seconds = Seconds(position.chunk_seconds, wall_seconds(trained.run, position))
    if not due or (heard and heard.arrived):
        return rows, position, None
    try:
        answer = trained.programs.evaluate(state, trained.start[0], position.generations, due, heard)
    except signals.Left:
        stop.left = True
        return rows, position, None
    except Exception as error:
        what = io_errors.callback(error)
        return rows, position, CallbackFailed(what) if what else error
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
    """Return the places of the members that are to be evaluated where they are now."""
    return [place for place in position.living if _evaluation_due(run, position, place)]


def _evaluation_due(run: Run, position: Position, place: int) -> bool:
    """At the start, at every multiple of the interval, on reaching the budget, and never after."""
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
    """Return the position with the members failed of which a metric is not finite.

    Their States go on being computed with the others', of which nothing is recorded or evaluated any more.

    Raises:
        NonFiniteMetric: all others have failed too.
    """
    run = trained.run
    if trained.writer:
        trained.writer.wait()
    if not set(position.living) - failures.keys():
        raise NonFiniteMetric(_all_failed(run, failures, saved))
    checkpoint = (saved.generation or None) if run.files else None
    failed = {
        place: Failure(f"metric {metric} became NaN or infinite in generation {generation}", checkpoint)
        for place, (generation, metric) in sorted(failures.items())
    }
    position = replace(position, failed={**position.failed, **failed})
    others = len(run.members) - len(stopping.standing(run, position))
    for place, failure in failed.items():
        run.say(
            f"member {run.members[place].number} ({run.members[place].name}) has failed: {failure.reason};"
            f" {failure.remains}; {f'{others} others go on' if others else 'the others have finished'}"
        )
    return position


def _last_saved(run: Run, saved: Position) -> str:
    """Return where a run that failed can go on."""
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
    if not (rows.env_steps[:, -1] > position.env_steps)[rows.living].all():
        raise RuntimeError("a chunk of generations counted no environment steps: training would never end")


def _own_sinks(run: Run, position: Position, stack: ExitStack) -> list[log.Sink]:
    sinks: list[log.Sink] = []
    if not processes.first():
        return sinks
    if run.files:
        files, members = run.files, run.members
        curves = log.tensorboard(files.tensorboard, members, position.env_steps, recorded(files, members))
        sinks = [
            stack.enter_context(log.metrics_file(files.metrics, members)),
            stack.enter_context(log.evaluations_file(files.evaluations, members)),
            stack.enter_context(curves),
        ]
    if not run.quiet:
        sinks.append(stack.enter_context(log.progress(run.title, run.options.env_steps, position.env_steps)))
    return sinks


def _resumable(run: Run, position: Position) -> str:
    assert run.files is not None
    return (
        f"stopped at {position.least:,} of {run.options.env_steps:,} environment steps;"
        f" the State is saved in {run.files.root}; --resume continues from there"
    )
