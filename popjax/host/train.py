"""Training: one compiled chunk, called until the budget is spent.

Everything that is slow or impure happens between chunks: evaluation, logs, checkpoints, signals. All seeds
train until the slowest has reached the budget; what is reported of a seed is its evaluation at the end of the
first chunk in which it had reached it, so it does not depend on the seeds beside it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from popjax.core import Env, Method, as_arrays, check_numbers
from popjax.host import checkpoint, describe, interrupt, log, memory, rundir, sweep
from popjax.host.errors import Interrupted, NonFiniteMetric, Refused
from popjax.host.history import Evaluation, History, empty, first_non_finite, join
from popjax.host.options import Options, validate
from popjax.host.programs import Programs, compile_programs, init_function
from popjax.host.run import Position, Result, Run, finish, finished, restore, save


def train(
    method: Method,
    env: Env,
    *,
    env_steps: int,
    seeds: int = 1,
    seed: int = 0,
    eval_every: int = 10_000,
    eval_episodes: int = 5,
    checkpoint_every: int = 50_000,
    log_every: int = 1_000,
    hyper: Any = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    sinks: Sequence[log.Sink] = (),
    description: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Result:
    """Trains ``method`` in ``env`` until every seed has counted ``env_steps`` environment steps.

    Args:
        env_steps, seeds, seed, eval_every, eval_episodes, checkpoint_every, log_every: see ``Options``.
        hyper: numbers to use instead of ``method.hyper``.
        run_dir: where to write; without it nothing is written and Ctrl-C is Python's own.
        resume: continue the run in ``run_dir``; a larger ``env_steps`` prolongs it.
        sinks: called after every chunk with ``(chunk index, history)``.
        description: ``method``, ``agent``, ``env_options``, ``config`` and ``command`` for ``config.json``;
            what ``scripts/evaluate.py`` builds the method from.
        quiet: no progress and no remarks on standard error.

    Raises:
        Refused: a number is out of range, the run does not fit into memory, or ``run_dir`` holds another
            run; raised before anything is allocated.
        NonFiniteMetric: a metric became NaN or infinite.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    options = Options(env_steps, seeds, seed, eval_every, eval_episodes, checkpoint_every, log_every)
    validate(options, method.steps_bound)
    if resume and run_dir is None:
        raise Refused("--resume needs a --run-dir to continue from")
    numbers = method.hyper if hyper is None else hyper
    try:
        check_numbers(numbers)
    except ValueError as fault:
        raise Refused(str(fault)) from None
    config = describe.configuration(method, env, numbers, options, description or {})
    if run_dir is not None:
        rundir.check(Path(run_dir), config, resume)
    run = Run(method, env, options, config, sweep.keys(seed, seeds), time.perf_counter(), quiet)
    with ExitStack() as stack:
        directory = None if run_dir is None else rundir.opened(Path(run_dir), config, resume)
        return _start(run, as_arrays(numbers), directory, resume, sinks, stack)


def _start(
    run: Run, hyper: Any, directory: Any, resume: bool, sinks: Sequence[log.Sink], stack: ExitStack
) -> Result:
    """Checks memory, restores or initialises, trains. A new directory is made once it is known to fit."""
    device, options = jax.local_devices()[0], run.options
    shapes = jax.eval_shape(init_function(run.method, options.seeds), run.keys, hyper)
    available = memory.available_bytes(device)
    memory.check(memory.tree_bytes(shapes), available, shapes, device)
    restored = None
    if resume:
        run = replace(run, files=stack.enter_context(directory))
        restored = restore(run, shapes)
        if restored and restored[1].env_steps.min() >= options.env_steps:
            return finished(run, *restored)
    programs = compile_programs(run.method, run.env, run.keys, hyper, shapes, options, fresh=restored is None)
    memory.check(programs.total_bytes, available, shapes, device)
    _tell_memory(run, shapes, programs, available)
    if directory is not None and run.files is None:
        run = replace(run, files=stack.enter_context(directory))
    if restored is None:
        assert programs.init is not None
        state = programs.init(run.keys, hyper)
        restored = state, Position(int(np.asarray(state.generation)[0]), np.asarray(state.env_steps).copy())
    state, position = restored
    position = replace(position, compile_seconds=position.compile_seconds + programs.compile_seconds)
    del restored  # a second reference to the State would keep its donated arrays from being reused
    return _train(run, programs, state, position, sinks, stack)


def _train(
    run: Run, programs: Programs, state: Any, position: Position, sinks: Sequence[log.Sink], stack: ExitStack
) -> Result:
    """The loop: evaluate, tell the sinks, save, chunk."""
    options, spacing = run.options, max(1, run.options.log_every // run.method.steps_bound)
    sinks = [*_own_sinks(run, position, stack), *sinks]
    stopping = stack.enter_context(interrupt.deferred(run.say)) if run.files else _never
    rows, saved, parts = empty(state), position, []
    for index in itertools.count():
        made = _evaluate(run, programs, state, position)
        position = replace(position, evaluations=position.evaluations + made)
        parts.append(replace(rows.every(spacing), evaluations=made))
        for sink in sinks:
            sink(index, parts[-1])
        done, signal_number = bool(position.env_steps.min() >= options.env_steps), stopping()
        due = _crossed(saved.env_steps, position.env_steps, options.checkpoint_every).any()
        if run.files and (done or signal_number or due):
            save(run, state, position)
            saved = position
        if done:
            return finish(run, state, position, join(parts))
        if signal_number:
            raise Interrupted(_resumable(run, position), signal_number)
        state, rows, seconds = _run_chunk(programs, state)
        _require_finite(run, rows, saved)
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
    generation, env_steps, metrics = jax.tree.map(np.asarray, rows)
    return state, History(generation, env_steps, metrics), time.perf_counter() - begun


def _evaluate(run: Run, programs: Programs, state: Any, position: Position) -> tuple[Evaluation, ...]:
    """Evaluates the seeds that are due: together if all are, else one by one."""
    due = [place for place in range(run.options.seeds) if _evaluation_due(run, position, place)]
    if not due:
        return ()
    groups = [due] if len(due) == run.options.seeds else [[place] for place in due]
    made = []
    for group in groups:
        answer = programs.evaluate(
            state, run.keys, jnp.int32(position.generation), jnp.array(group, jnp.int32)
        )
        for place, returns, lengths in zip(group, *(np.asarray(x).tolist() for x in answer), strict=True):
            steps = int(position.env_steps[place])
            made.append(
                Evaluation(run.seeds[place], position.generation, steps, tuple(returns), tuple(lengths))
            )
    return tuple(made)


def _evaluation_due(run: Run, position: Position, place: int) -> bool:
    """At the start, at every multiple of the interval, on reaching the budget, and never after."""
    steps, budget = int(position.env_steps[place]), run.options.env_steps
    last = max((e.env_steps for e in position.evaluations if e.seed == run.seeds[place]), default=None)
    if last is None:
        return True
    every = run.options.eval_every
    return last < budget and (_crossed(last, steps, every) or steps >= budget)


def _crossed(before: Any, now: Any, every: int) -> Any:
    """Whether a multiple of ``every`` lies in (before, now]; numbers or arrays."""
    return now // every > before // every


def _require_finite(run: Run, rows: History, saved: Position) -> None:
    found = first_non_finite(rows)
    if found is None:
        return
    name, place, generation = found
    if run.files is None:
        where = "nothing was saved, as there is no run directory"
    elif checkpoint.generations(run.files.checkpoints):
        where = (
            f"the State of generation {saved.generation} is saved in {run.files.root}; --resume starts there"
        )
    else:
        where = f"no checkpoint had been made yet; --resume in {run.files.root} starts from the beginning"
    raise NonFiniteMetric(
        f"metric {name} of seed {run.seeds[place]} became NaN or infinite in generation {generation}; {where}"
    )


def _require_progress(rows: History, position: Position) -> None:
    if not (rows.env_steps[:, -1] > position.env_steps).all():
        raise RuntimeError("a chunk of generations counted no environment steps: training would never end")


def _own_sinks(run: Run, position: Position, stack: ExitStack) -> list[log.Sink]:
    options, sinks = run.options, []
    if run.files:
        sinks = [
            stack.enter_context(log.metrics_file(run.files.metrics, options.seed)),
            stack.enter_context(log.evaluations_file(run.files.evaluations)),
            stack.enter_context(
                log.tensorboard(run.files.tensorboard, options.seed, options.seeds, position.env_steps)
            ),
        ]
    if not run.quiet:
        sinks.append(stack.enter_context(log.progress(run.title, options.env_steps, position.env_steps)))
    return sinks


def _tell_memory(run: Run, shapes: Any, programs: Programs, available: int) -> None:
    name, size = memory.largest_field(shapes)
    run.say(
        f"memory: {memory.human(programs.total_bytes)} of {memory.human(available)} available;"
        f" the State takes {memory.human(memory.tree_bytes(shapes))}, {name!r} alone {memory.human(size)};"
        f" compiled in {programs.compile_seconds:.1f} s"
    )


def _resumable(run: Run, position: Position) -> str:
    assert run.files is not None
    return (
        f"stopped at {int(position.env_steps.min()):,} of {run.options.env_steps:,} environment steps;"
        f" the State is saved in {run.files.root}; --resume continues from there"
    )


def _never() -> int | None:
    return None
