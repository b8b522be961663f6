"""The loop of training: evaluate, tell the sinks, save, compute a chunk; and what may interrupt it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
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
from popjax.host.errors import CallbackFailed, Interrupted, NonFiniteMetric, NotRead, Refused
from popjax.host.runs import log
from popjax.host.runs.background_writer import Background
from popjax.host.runs.history import Evaluation, History, Seconds, empty, join, non_finite
from popjax.host.runs.recorded_scalars import recorded
from popjax.host.runs.run import Position, Result, Run, extra, finish, wall_seconds
from popjax.host.scaling import processes, sweep
from popjax.host.terminal import complain
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
    late, position = bool(position.unsettled), _settle(trained, position, standing)
    _require_settled(trained, position, "nothing was changed")
    rows, saved, parts = empty(trained.shapes), position, []
    for index in itertools.count():
        standing.keep(state, stopping.standing(run, position) - standing.places)
        if index:
            state, position, rows = _advance(trained, state, position, saved, standing)
        else:
            rows = rows.freeze(position.generations, position.env_steps, standing.places)
        due = bool(_crossed(saved.env_steps, position.env_steps, run.options.checkpoint_every).any())
        part, position, failure = _evaluate(trained, state, position, rows.every(spacing), stop)
        parts.append(part)
        if trained.best and index:
            trained.best.see(state, part.evaluations)
        if watched:
            state = signals.ready(standing.put_back(state))
        arrived = stop.arrived or 0  # once: one that comes while sinks are told is for the next chunk
        out_of_time = stopping.out_of_time(run)
        written = due or arrived or out_of_time or position.unsettled or stopping.over(run, position)
        policy = trained.programs.policy(state) if watched else None
        enough, failure = _tell(run, sinks, (index, part, policy), bool(written), failure)
        asked = processes.largest(_FAILED if failure else arrived or _ENOUGH * (enough or out_of_time))
        done = stopping.over(run, position) and not evaluations_due(run, position)
        ends = bool(done or asked or position.unsettled)
        if ends or (writer and due):
            state = signals.ready(standing.put_back(state))  # an evaluation that was left may be before it
        stop.saving = ends
        if writer and (ends or due):
            saved = position = _save(trained, state, position, due, again=late and index == 0)
        if writer and ends:
            writer.wait()
        _require_settled(trained, position, f"all is saved as generation {position.generation}")
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


def _save(trained: Trained, state: Any, position: Position, due: bool, again: bool) -> Position:
    """Saves, ``again`` over the checkpoint that was resumed from, which has unsettled members.
    Returns the position with a checkpoint that was ``due`` as its newest regular one."""
    if due and not position.unsettled:
        position = replace(position, regular=position.generation)
    if trained.best:
        trained.best.save()
    assert trained.writer is not None
    trained.writer.save(position.generation, state, extra(trained.run, position), position.regular, again)
    return position


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
    rows = rows.freeze(position.generations, position.env_steps, standing.places)
    if failures := non_finite(rows):
        position = _freeze(trained, failures, position, saved, standing)
        still = standing.places | position.unsettled.keys()
        rows = rows.freeze(position.generations, position.env_steps, still)
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


def _freeze(
    trained: Trained,
    failures: dict[int, tuple[int, str]],
    position: Position,
    saved: Position,
    standing: Standing,
) -> Position:
    """Stops the members of which a metric is not finite at their last regular checkpoint; where they stand
    does not depend on when the run was interrupted. Returns the position with them standing still.

    Raises:
        NonFiniteMetric: all others are frozen too.
    """
    if trained.writer:
        trained.writer.wait()
    if not set(position.living) - failures.keys():
        raise NonFiniteMetric(_all_failed(trained.run, failures, saved))
    reasons = {
        place: f"metric {metric} became NaN or infinite in generation {generation}"
        for place, (generation, metric) in sorted(failures.items())
    }
    position = replace(position, frozen={**position.frozen, **reasons}, unsettled=dict.fromkeys(reasons, ""))
    return _settle(trained, position, standing)


def _settle(trained: Trained, position: Position, standing: Standing) -> Position:
    """Puts frozen members that are unsettled where they are to stand still. Those for whom it cannot be read
    stay unsettled: the others can be saved first."""
    run, unsettled = trained.run, {}
    generations, steps = position.generations.copy(), position.env_steps.copy()
    others = len(steps) - len(stopping.standing(run, position))
    for place in sorted(position.unsettled):
        try:
            lane = _last_good(trained, place, position.regular)
        except NotRead as error:
            unsettled[place] = error.what
            continue
        standing.keep_lane(lane, place)
        generations[place], steps[place] = (x[0] for x in processes.fetch((lane.generation, lane.env_steps)))
        run.say(
            f"member {run.members[place].number} ({run.members[place].name}) is frozen at generation"
            f" {generations[place]}: {position.frozen[place]};"
            f" {f'{others} others go on' if others else 'the others have finished'}"
        )
    return replace(position, generations=generations, env_steps=steps, unsettled=unsettled)


def _require_settled(trained: Trained, position: Position, done: str) -> None:
    """Raises NotRead where a frozen member is unsettled, with what was ``done``."""
    for place, what in position.unsettled.items():
        raise NotRead(
            what,
            f"member {trained.run.members[place].number} is to be frozen there, as {position.frozen[place]};"
            f" {done}: mend that and --resume, or remove that directory first to have it frozen at the"
            " checkpoint before it, or at its beginning",
        )


def _last_good(trained: Trained, place: int, regular: int | None) -> Any:
    """A member's State [1, ...] of the newest regular checkpoint, else of its beginning."""
    if trained.writer and regular is not None:
        directory = trained.writer.directory
        found = checkpoint.member_of_newest(directory, trained.shapes, complain, place, until=regular)
        if found:
            return found[1]
    key = sweep.keys(trained.run.members[place : place + 1])
    hyper = jax.tree.map(lambda x: processes.fetch(x)[place : place + 1], trained.start[1])
    return jax.jit(sweep.lift(trained.run.method.init, 1))(key, hyper)


def _last_saved(run: Run, saved: Position) -> str:
    """Return where a run that failed can go on."""
    if run.files is None:
        return "nothing was saved, as there is no run directory"
    if checkpoint.generations(run.files.checkpoints):
        return (
            f"the State of generation {saved.generation} is saved in {run.files.root}; --resume starts there"
        )
    return f"no checkpoint had been made yet; --resume in {run.files.root} starts from the beginning"


def _all_failed(run: Run, failures: dict[int, tuple[int, str]], saved: Position) -> str:
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
