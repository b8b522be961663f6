"""The loop of training: evaluate, tell the sinks, save, compute a chunk; and what may interrupt it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from popjax import tree
from popjax.host import checkpoint, interrupt, log, processes, sweep
from popjax.host.errors import Interrupted, NonFiniteMetric
from popjax.host.history import Evaluation, History, empty, join, non_finite
from popjax.host.programs import Programs
from popjax.host.run import Position, Result, Run, complain, extra, finish
from popjax.host.shard import Placement, spread


class Trained(NamedTuple):
    """All that does not change while the loop goes round.

    start:  the keys [S] and hypers [S, ...] of the members.
    shapes: of the State [S, ...].
    writer: of checkpoints; ``None`` for a run without a directory.
    """

    run: Run
    programs: Programs
    placement: Placement
    start: tuple[Any, Any]
    shapes: Any
    writer: checkpoint.Writer | None


def train_on(
    trained: Trained, state: Any, position: Position, sinks: Sequence[log.Sink], stack: ExitStack
) -> Result:
    """Trains from ``state`` on until the budget is spent."""
    run, programs, writer = trained.run, trained.programs, trained.writer
    options, spacing = run.options, max(1, run.options.log_every // run.method.steps_bound)
    sinks = [*_own_sinks(run, position, stack), *sinks]
    stopping = stack.enter_context(interrupt.deferred(run.say)) if writer else _never
    rows, saved, parts = empty(trained.shapes).freeze(position.env_steps, position.frozen), position, []
    still = {place: _lane(state, place) for place in position.frozen}
    put_lane = _put_lane(trained.placement.state(trained.shapes))
    for index in itertools.count():
        made = _evaluate(trained, state, position)
        position = replace(position, evaluations=position.evaluations + made)
        parts.append(replace(rows.every(spacing), evaluations=made))
        for sink in sinks:
            sink(index, parts[-1])
        done, signal_number = position.least >= options.env_steps, processes.largest(stopping() or 0)
        due = _crossed(saved.env_steps, position.env_steps, options.checkpoint_every).any()
        if writer and (done or signal_number or due):
            writer.save(position.generation, state, extra(run, position))
            saved = position
        if writer and (done or signal_number):
            writer.wait()
        if done:
            return finish(run, state, position, join(parts))
        if signal_number:
            raise Interrupted(_resumable(run, position), signal_number)
        state, rows, seconds = _run_chunk(programs, state)
        rows = rows.freeze(position.env_steps, position.frozen)
        if failures := non_finite(rows):
            position, frozen = _freeze(trained, failures, rows, position, saved)
            still |= frozen
            rows = rows.freeze(position.env_steps, position.frozen)
        for place, lane in still.items():
            state = put_lane(state, lane, place)
        _require_progress(rows, position)
        position = replace(
            position,
            generation=int(rows.generation[0, -1]),
            env_steps=rows.env_steps[:, -1],
            chunk_seconds=position.chunk_seconds + seconds,
        )
    raise AssertionError("unreachable")


def _run_chunk(programs: Programs, state: Any) -> tuple[Any, History, float]:
    begun, pause = time.perf_counter(), 1e-4
    state, rows = programs.chunk(state)
    # Waiting in Python and not inside the runtime lets a signal be answered while the chunk is computed.
    while not all(leaf.is_ready() for leaf in jax.tree.leaves(rows)):
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    generation, env_steps, metrics = processes.fetch(rows)
    return state, History(generation, env_steps, metrics), time.perf_counter() - begun


def _evaluate(trained: Trained, state: Any, position: Position) -> tuple[Evaluation, ...]:
    """Evaluates the members that are due."""
    run = trained.run
    due = [place for place in position.living if _evaluation_due(run, position, place)]
    if not due:
        return ()
    answer = trained.programs.evaluate(state, trained.start[0], position.generation, due)
    return tuple(
        Evaluation(
            run.members[place].seed,
            position.generation,
            int(position.env_steps[place]),
            tuple(returns.tolist()),
            tuple(lengths.tolist()),
            run.members[place].number,
        )
        for place, returns, lengths in zip(due, *answer, strict=True)
    )


def _evaluation_due(run: Run, position: Position, place: int) -> bool:
    """At the start, at every multiple of the interval, on reaching the budget, and never after."""
    steps, budget, number = int(position.env_steps[place]), run.options.env_steps, run.members[place].number
    last = max((e.env_steps for e in position.evaluations if e.member == number), default=None)
    if last is None:
        return True
    every = run.options.eval_every
    return last < budget and (_crossed(last, steps, every) or steps >= budget)


def _crossed(before: Any, now: Any, every: int) -> Any:
    """Whether a multiple of ``every`` lies in (before, now]; numbers or arrays."""
    return now // every > before // every


def _freeze(
    trained: Trained, failures: dict[int, tuple[int, str]], rows: History, position: Position, saved: Position
) -> tuple[Position, dict[int, Any]]:
    """Stops the members of which a metric is not finite at their last checkpoint, the others go on.

    Returns the position with them standing still, and the State [1, ...] of each by place.

    Raises:
        NonFiniteMetric: there are no others.
    """
    run = trained.run
    if trained.writer:
        trained.writer.wait()
    if len(failures) == len(rows.living):
        raise NonFiniteMetric(_all_failed(run, failures, saved))
    lanes, steps, reasons = {}, position.env_steps.copy(), dict(position.frozen)
    for place, (generation, metric) in sorted(failures.items()):
        lane = _last_good(trained, place)
        lanes[place] = spread(lane, trained.placement.everywhere())
        stands, steps[place] = (int(x[0]) for x in processes.fetch((lane.generation, lane.env_steps)))
        reasons[place] = f"metric {metric} became NaN or infinite in generation {generation}"
        member = run.members[place]
        run.say(
            f"member {member.number} ({member.name}) is frozen at generation {stands}: {reasons[place]};"
            f" {len(rows.living) - len(failures)} others go on"
        )
    return replace(position, env_steps=steps, frozen=reasons), lanes


def _last_good(trained: Trained, place: int) -> Any:
    """A member's State [1, ...] of the newest checkpoint, else of its beginning."""
    if trained.writer:
        directory = trained.writer.directory
        found = checkpoint.member_of_newest(directory, trained.shapes, complain, place)
        if found:
            return found[1]
    key = sweep.keys(trained.run.members[place : place + 1])
    hyper = jax.tree.map(lambda x: processes.fetch(x)[place : place + 1], trained.start[1])
    return jax.jit(sweep.lift(trained.run.method.init, 1))(key, hyper)


def _lane(state: Any, place: int) -> Any:
    """One member of a State as a State [1, ...] of its own."""
    return jax.tree.map(lambda x: x[place : place + 1], state)


def _put_lane(shardings: Any) -> Any:
    """``(state [S, ...], lane [1, ...], place) -> state`` with that member replaced, in place."""

    def put(state: Any, lane: Any, place: Any) -> Any:
        return tree.put(state, place, tree.take(lane, 0))

    return jax.jit(put, donate_argnums=0, out_shardings=shardings)


def _all_failed(run: Run, failures: dict[int, tuple[int, str]], saved: Position) -> str:
    if run.files is None:
        where = "nothing was saved, as there is no run directory"
    elif checkpoint.generations(run.files.checkpoints):
        where = (
            f"the State of generation {saved.generation} is saved in {run.files.root}; --resume starts there"
        )
    else:
        where = f"no checkpoint had been made yet; --resume in {run.files.root} starts from the beginning"
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
        sinks = [
            stack.enter_context(log.metrics_file(run.files.metrics, run.members)),
            stack.enter_context(log.evaluations_file(run.files.evaluations, run.members)),
            stack.enter_context(log.tensorboard(run.files.tensorboard, run.members, position.env_steps)),
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


def _never() -> int | None:
    return None
