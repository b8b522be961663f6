"""The options of a run: those that belong to the host and not to a method."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from popjax import counting
from popjax.core import Method
from popjax.host.errors import Refused
from popjax.recipe import BUDGET

_LARGEST_SEED = 2**31 - 1
_INTERVALS = ("eval_every", "checkpoint_every", "log_every")


@dataclass(frozen=True)
class Options:
    """Budget, intervals and seeds of a run.

    Intervals are in environment steps of one seed and take effect at the end of the chunk that reaches them.
    """

    # Training budget per seed [environment steps, summed over agents]; by default that of the method's
    # preset for the task or, if it has none, the method's own for this --config.
    env_steps: int = BUDGET
    # Independent runs trained side by side on one vmapped axis: one number is their count, several
    # numbers are the seeds themselves.
    seeds: int | tuple[int, ...] = 1
    # First seed if --seeds is a count; the others are the next numbers.
    seed: int = 0
    # Interval between evaluations [environment steps].
    eval_every: int = 10_000
    # Episodes per evaluation and seed [count]; they do not count towards the budget.
    eval_episodes: int = 5
    # Interval between checkpoints [environment steps].
    checkpoint_every: int = 50_000
    # Interval between recorded metrics [environment steps]; if a generation is longer, every one is recorded.
    log_every: int = 1_000
    # Number of checkpoints to keep, the newest ones [count].
    keep_checkpoints: int = 2
    # Stop a member once an evaluation has at least this mean return, even before the end of its budget.
    stop_at_return: float | None = None
    # Save and stop the run once it has run for this long in this process [minutes]; --resume continues it.
    max_minutes: float | None = None


def validate(options: Options, method: Method) -> None:
    """Check that ``method`` can run with ``options``.

    Raises:
        Refused: a number is out of range, or the budget is below one generation or unsuitable for the method.
    """
    steps_bound = method.steps_bound
    for field in fields(options):
        value, least = getattr(options, field.name), 0 if field.name == "seed" else 1
        if field.type in (int, "int") and value < least:
            raise Refused(f"{option_name(field.name)} must be at least {least}, got {value}")
    if options.max_minutes is not None and not options.max_minutes > 0:
        raise Refused(f"--max-minutes must be above 0, got {options.max_minutes}")
    if options.stop_at_return is not None and math.isnan(options.stop_at_return):
        raise Refused("--stop-at-return must be a number, got nan")
    if options.env_steps < steps_bound:
        raise Refused(
            f"--env-steps {options.env_steps} is less than one generation, which may take {steps_bound}"
            " environment steps"
        )
    end = _end(options, steps_bound)
    try:
        method.accepts(end)
    except ValueError as refusal:
        every = option_name(min(_INTERVALS, key=lambda name: getattr(options, name)))
        chunks = f", {end} in whole chunks of {every}" if end > options.env_steps else ""
        raise Refused(f"--env-steps {options.env_steps}{chunks}: {refusal}") from None
    _check_seeds(options)


def _check_seeds(options: Options) -> None:
    seed, seeds = options.seed, options.seeds
    if isinstance(seeds, int):
        if seeds < 1:
            raise Refused(f"--seeds must be at least 1, got {seeds}")
        if seed + seeds > _LARGEST_SEED:
            raise Refused(f"--seed {seed} + --seeds {seeds} exceeds {_LARGEST_SEED}")
        return
    spelt = " ".join(map(str, seeds))
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= own < _LARGEST_SEED for own in seeds):
        raise Refused(f"--seeds {spelt}: list different seeds from 0 to {_LARGEST_SEED - 1}")
    if seed:
        raise Refused(f"--seeds {spelt} are the seeds themselves: leave out --seed {seed}")


def check_counter(options: Options, steps_bound: int, counter: Any) -> None:
    """Check that the State's ``counter`` of environment steps can hold the budget.

    Raises:
        Refused: the last chunk could exceed the counter.
    """
    limit = counting.largest(counter) - chunk_length(options, steps_bound) * steps_bound
    if options.env_steps > limit:
        raise Refused(
            f"--env-steps {options.env_steps} exceeds {limit}, the largest budget that the State can count:"
            " let the method count in a popjax.counting.Count"
        )


def chunk_length(options: Options, steps_bound: int) -> int:
    """Return the generations per compiled chunk: as many as fit in the shortest interval, at least one.

    The length never depends on timing: runs stop at the end of a chunk, and equal commands must stop at the
    same generation.
    """
    shortest = min(options.env_steps, *(getattr(options, name) for name in _INTERVALS))
    return max(1, shortest // steps_bound)


def _end(options: Options, steps_bound: int) -> int:
    """Return the environment steps at which a run ends if every generation counts ``steps_bound``."""
    chunk = chunk_length(options, steps_bound) * steps_bound
    return -(-options.env_steps // chunk) * chunk


def option_name(field: str) -> str:
    """Return the option of a field; a final underscore, as in ``from_``, is dropped."""
    return "--" + field.rstrip("_").replace("_", "-")
