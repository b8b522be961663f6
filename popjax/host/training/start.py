"""Training: one compiled chunk, called until the budget is spent.

Everything slow or impure happens between chunks: evaluation, logs, checkpoints, signals. A member stops at
the end of the first chunk in which it has reached the budget, so its result does not depend on other members.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from popjax import numerics
from popjax.arguments import checked, typed
from popjax.core import Env, Method
from popjax.host import garbage
from popjax.host.checkpoints.writer import Writer
from popjax.host.errors import Refused
from popjax.host.numbers import real
from popjax.host.paths import path
from popjax.host.runs import added_members, configuration, log, rundir
from popjax.host.runs.best_policies import Best
from popjax.host.runs.options import Options, check_counter, validate
from popjax.host.runs.run import Position, Result, Run, restore
from popjax.host.scaling import memory, processes, shard, sweep
from popjax.host.signals import ready
from popjax.host.training import compile_cache, program_store, stopping
from popjax.host.training.compiled_programs import Programs, compile_programs
from popjax.host.training.loop import Trained, evaluations_due, train_on
from popjax.host.training.summary import finished


@typed(Refused)
@numerics.standardized
def train(
    method: Method,
    env: Env,
    *,
    env_steps: int,
    seeds: int | Sequence[int] = 1,
    seed: int = 0,
    eval_every: int = 10_000,
    eval_episodes: int = 5,
    checkpoint_every: int = 50_000,
    log_every: int = 1_000,
    keep_checkpoints: int = 2,
    stop_at_return: float | None = None,
    max_minutes: float | None = None,
    hyper: Any = None,
    swept: Mapping[str, float | Sequence[float | Sequence[float]]] | None = None,
    members: tuple[int, int] | None = None,
    devices: int | str = 1,
    run_dir: str | Path | None = None,
    resume: bool = False,
    sinks: Sequence[log.Sink] = (),
    name: str | None = None,
    command: str | None = None,
    quiet: bool = False,
) -> Result:
    """Train ``method`` in ``env`` until every member has counted ``env_steps`` environment steps.

    Args:
        env_steps, seeds, seed, eval_every, eval_episodes, checkpoint_every, log_every, keep_checkpoints,
            stop_at_return, max_minutes: see ``Options``.
        hyper: hyperparameters to use instead of ``method.hyper``.
        swept: values of hyperparameters by name, such as ``{"hyper.actor_lr": [1e-4, 1e-3]}``. Every
            combination is trained with every seed, on one vmapped axis. Hyperparameters that vary together
            share a name such as "hyper.actor_lr,hyper.polyak" and have tuples as values.
        members: (first, end): train only this part of the sweep.
        devices: number of devices, or "all", over which to spread the members or, if there is only one, its
            population. A single one is that of ``jax.default_device``, if it is set.
        run_dir: directory to write to; without it nothing is written and Ctrl-C acts as usual in Python.
        resume: continue the run in ``run_dir``, or start it if there is none. A larger ``env_steps`` prolongs
            it, more seeds or swept values are added, and intervals may change.
        sinks: called after every chunk with ``(chunk index, history)`` or, if they take three arguments,
            ``(chunk index, history, policy)``; ``policy`` has the parameters [S, ...] of all members'
            policies for ``method.act``. If a sink returns True, the run is saved and summarised, and ends.
            Sinks run under the caller's settings of JAX, such as 64 bits.
        name: name of the method in config.json, an import path or a built-in name; by default found from its
            module.
        command: command that started the run, for config.json.
        quiet: print neither progress nor remarks.

    Raises:
        Refused: an argument has the wrong type, a number is out of range, the run does not fit into memory
            (``TooLarge``), or ``run_dir`` holds another run; raised before anything is allocated.
        NonFiniteMetric: a metric of the last active member became NaN or infinite.
        NotSaved: a checkpoint could not be written.
        NotRead: a checkpoint could not be read, because memory or permission is missing.
        Interrupted: Ctrl-C or another signal to end arrived; the State is saved.
        Exception: a sink or an evaluation raised it; the State is saved first.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        raise Refused(_NO_JIT)
    options = Options(
        env_steps=env_steps,
        seeds=seeds,  # type: ignore[arg-type]
        seed=seed,
        eval_every=eval_every,
        eval_episodes=eval_episodes,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
        keep_checkpoints=keep_checkpoints,
        stop_at_return=stop_at_return,
        max_minutes=max_minutes,
    )
    validate(options, method)
    compile_cache.keep_compiled()
    if resume and run_dir is None:
        raise Refused("--resume needs a --run-dir to continue from")
    hyper = method.hyper if hyper is None else checked("hyper", hyper, type(method.hyper), Refused)
    varied = {name: _reals(values) for name, values in (swept or {}).items()}
    root = None if run_dir is None else path(run_dir)
    if root is not None and resume:
        varied = rundir.in_recorded_order(root, varied)
    sweep.check(hyper, varied)
    sweep.check_driven(method.driven, hyper, method.hyper, varied)
    sweep.check_own(method, hyper)
    chosen = sweep.part(sweep.grid(options.seed, options.seeds, varied), members)
    config = configuration.configuration(method, env, hyper, options, varied, members, name, command)
    run = Run(method, env, options, config, chosen, time.perf_counter(), quiet)
    if root is not None:
        resume = _continues(run, root, resume)
        if config["not_rebuilt"]:
            run.say(f"this run can be evaluated only from Python: {config['not_rebuilt']}")
    try:
        with ExitStack() as stack:
            directory = None if root is None else rundir.opened(root, config, resume)
            return _start(run, hyper, devices, directory, resume, sinks, stack)
    except BaseException as error:
        garbage.empty_frames(error)
        raise


def _continues(run: Run, root: Path, resume: bool) -> bool:
    """Check that the run may be written to ``root``; return whether it continues a run there."""
    begun = resume and rundir.begun(root)
    rundir.check(root, run.config, begun)
    if resume and not begun:
        run.say(f"{root} holds no run yet: starting from the beginning")
    if begun and (changed := rundir.changed(root, run.config)):
        run.say(f"continuing with {'; '.join(changed)}")
    return begun


def _reals(values: Any) -> list[Any]:
    """Return the values of a sweep, given as one number, a sequence or an array, as a list."""
    rows = values if isinstance(values, list | tuple) else np.ravel(values)
    return [tuple(map(real, row)) if isinstance(row, list | tuple) else real(row) for row in rows]


_NO_JIT = (
    "JAX_DISABLE_JIT is set, and a run is one compiled program: unset it; to step through a generation, call"
    " method.init and method.step from Python, or print from compiled code with jax.debug.print"
)


def _start(
    run: Run,
    hyper: Any,
    devices: int | str,
    directory: Any,
    resume: bool,
    sinks: Sequence[log.Sink],
    stack: ExitStack,
) -> Result:
    """Check memory, restore or initialise, and train. Make a new directory only once the run fits."""
    start, count = (sweep.keys(run.members), sweep.hypers(hyper, run.members)), len(run.members)
    store = program_store.of(run.method, run.env, start, run.options, shard.chosen(devices))
    with garbage.paused():
        shapes = store.shapes() or jax.eval_shape(sweep.lift(run.method.init, count), *start)
    check_counter(run.options, run.method.steps_bound, shapes.env_steps)
    placement = shard.place(shapes, devices)
    device = placement.first
    available = processes.smallest_size(memory.available_bytes(device))
    memory.check(_least_bytes(shapes, placement), available, shapes, device, count)
    _remark(run)
    start = shard.spread(start, placement.members())
    restored = None
    if resume:
        run = replace(run, files=stack.enter_context(directory))
        restored = _restored(run, start, shapes, placement)
        if restored and _done(run, restored[1]):
            return finished(run, *restored)
    programs = compile_programs(
        run.method, run.env, start, shapes, run.options, placement, store, fresh=restored is None
    )
    memory.check(programs.total_bytes, available, shapes, device, count)
    _tell_memory(run, shapes, programs, available)
    background = directory is not None and _saves_in_background(run, shapes, programs, available, device)
    if directory is not None and run.files is None:
        run = replace(run, files=stack.enter_context(directory))
    state, position = restored or _initial(programs, start)
    position = replace(position, compile_seconds=position.compile_seconds + programs.compile_seconds)
    del restored  # a second reference to the State would keep its donated arrays from being reused
    writer = best = None
    if run.files:
        writer = Writer(run.files.checkpoints, background, run.options.keep_checkpoints)
        stack.callback(writer.settle)  # before another process may use the directory
        best = Best(run.files.best, run.members, programs.policy)
    return train_on(Trained(run, programs, start, shapes, writer, best), state, position, sinks, stack)


def _remark(run: Run) -> None:
    """Print the remarks of ``config.json`` and one about the random generator."""
    for line in run.config["remarks"]:
        run.say(line)
    if len(run.members) > 1 and not sweep.vmappable():
        generator = jax.config.jax_default_prng_impl  # type: ignore[attr-defined]
        run.say(f"the generator {generator} draws differently under vmap: members are computed one by one")


def _restored(run: Run, start: Any, shapes: Any, placement: shard.Placement) -> tuple[Any, Position] | None:
    """Return State and position of the run's newest checkpoint, with members added, or None without one."""
    files = run.files
    assert files is not None
    added_members.grow(run, start)
    restored = restore(run, shapes, placement.state(shapes))
    processes.together(lambda: rundir.write_config(files, run.config))
    return restored


def _initial(programs: Programs, start: tuple[Any, Any]) -> tuple[Any, Position]:
    """Return the initial State and position."""
    assert programs.init is not None
    state = ready(programs.init(*start))
    generation, env_steps = processes.fetch((state.generation, state.env_steps))
    return state, Position(int(generation.max()), generation.copy(), env_steps.copy())


def _done(run: Run, position: Position) -> bool:
    """Return whether nothing remains to be trained or evaluated."""
    return stopping.over(run, position) and not evaluations_due(run, position)


def _least_bytes(shapes: Any, placement: shard.Placement) -> int:
    """Return the bytes that the State and one stopped member, when put back, take on a device or, since CPU
    devices share memory, on all CPU devices together."""
    whole, lane = memory.tree_bytes(shapes), memory.lane_bytes(shapes)
    if placement.axis != shard.SWEEP:
        return whole + lane if placement.axis is None else 0  # for a population, known only by compiling
    copies = placement.local if placement.devices[0].platform == "cpu" else 1
    return copies * (whole // len(placement.devices) + lane)


def _tell_memory(run: Run, shapes: Any, programs: Programs, available: int) -> None:
    name, size = memory.largest_field(shapes)
    run.say(
        f"memory: {memory.human(programs.total_bytes)} of {memory.human(available)} available;"
        f" the State takes {memory.human(memory.tree_bytes(shapes))}, {name!r} alone {memory.human(size)};"
        f" compiled in {programs.compile_seconds:.1f} s"
    )


def _saves_in_background(
    run: Run, shapes: Any, programs: Programs, available: int, device: jax.Device
) -> bool:
    """Return whether training can go on while a checkpoint is written; print a remark if it cannot."""
    size = memory.tree_bytes(shapes)
    background = memory.saves_in_background(size, programs.total_bytes, available, device, len(run.members))
    if not background:
        run.say("memory: no room for a copy of the State, so training waits while a checkpoint is written")
    return background
