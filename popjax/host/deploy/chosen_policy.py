"""Choice of policies of a run: an older checkpoint, the best ones, or one individual of a population.

A failed member is represented by its last good checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp

from popjax import tree
from popjax.core import Method
from popjax.host.checkpoints import checkpoint
from popjax.host.errors import Refused
from popjax.host.runs import best_policies
from popjax.host.runs.run import Failure
from popjax.host.runs.rundir import RunDirectory
from popjax.host.scaling import sweep
from popjax.host.scaling.sweep import Member
from popjax.host.terminal import complain

BEST = "best"


def generation(files: RunDirectory, wanted: str, every: int) -> int:
    """Return the generation of the first checkpoint at or after ``wanted`` environment steps, at most
    ``every`` steps later.

    Raises:
        Refused: ``wanted`` is not a number, or there is no such checkpoint.
    """
    try:
        steps = int(float(wanted))
    except (ValueError, OverflowError):
        raise Refused(f"--checkpoint must be best or a number of environment steps, got {wanted!r}") from None
    known: dict[int, int] = {}
    for number in reversed(checkpoint.generations(files.checkpoints)):
        with suppress(checkpoint.Damaged):
            known[number] = max(checkpoint.facts(files.checkpoints / str(number))["env_steps"])
    found = next((number for number, reached in known.items() if reached >= steps), None)
    if found is None or known[found] >= steps + every:
        there = ", ".join(f"{reached:,}" for reached in known.values()) or "none"
        raise Refused(
            f"{files.root} has no checkpoint of {steps:,} environment steps; it has {there}"
            " (--keep-checkpoints N keeps more)"
        )
    return found


def with_last_good(
    files: RunDirectory,
    shapes: Any,
    found: tuple[Any, dict[str, Any]],
    members: Mapping[int, Member],
    beginning: Callable[[int], Any],
    tell: Callable[[str], None] = complain,
) -> tuple[Any, list[int]]:
    """Return the State of ``members``, given by place in the run, and the environment steps of each.

    Failed members have the State of their last good checkpoint or, without one, their initial State.

    Args:
        found: the State [len(members), ...] of a checkpoint and its extra facts.
        beginning: place of a member -> its initial State [1, ...].
        tell: called with a line for each failed member.

    Raises:
        Refused: the last good checkpoint of a failed member is damaged.
    """
    state, extra = found
    steps = [int(extra["env_steps"][place]) for place in members]
    for row, (place, member) in enumerate(members.items()):
        if str(place) not in extra.get("failed", {}):
            continue
        failure = Failure(**extra["failed"][str(place)])
        used = "which is used" if failure.checkpoint is not None else "so its initial State is used"
        tell(f"member {member.number} has failed: {failure.reason}; {failure.remains}, {used}")
        lane, steps[row] = beginning(place), 0
        if failure.checkpoint is not None:
            good = checkpoint.member_of_newest(files.checkpoints, shapes, complain, place, failure.checkpoint)
            if good is None:
                raise Refused(f"{files.root} has no intact checkpoint before the failure of a member")
            lane, steps[row] = good[1], int(good[2]["env_steps"][place])
        state = tree.put(state, row, tree.take(lane, 0))
    return state, steps


def with_best(
    method: Method, found: tuple[Any, list[int]], files: RunDirectory, numbers: list[int]
) -> tuple[Method, Any, list[int]]:
    """Return ``method`` and a State [S, ...] with the best policies of the members ``numbers``, and the
    environment steps that each had trained for.

    ``found`` is the members' State [S, ...] and its environment steps. This State gives the exploration of
    all policies, and the policy of a member that was never evaluated, such as one that failed early.

    Raises:
        Refused: no policies were kept.
    """
    state, at = found
    first = jax.eval_shape(lambda s: jax.tree.map(lambda x: x[0], s), state)
    policies, kept_at = best_policies.load(files.best, jax.eval_shape(method.policy, first), numbers)
    steps = [now if kept is None else kept for now, kept in zip(at, kept_at, strict=True)]
    if None in kept_at:
        present = sweep.lift(method.policy, len(numbers))(state)
        for place in (place for place, kept in enumerate(kept_at) if kept is None):
            complain(
                f"member {numbers[place]} was never evaluated after training began, so it has no best policy;"
                f" its policy after {steps[place]:,} environment steps is used"
            )
            policies = tree.put(policies, place, tree.take(present, place))
    scale = sweep.mapped(lambda s: jnp.asarray(method.exploration(s), jnp.float32), len(numbers))(state)
    chosen = method._replace(policy=lambda pair: pair[0], exploration=lambda pair: pair[1], individuals=None)
    return chosen, (policies, scale), steps


def individual(method: Method, state: Any, index: int) -> Method:
    """Return ``method`` with the policy of individual ``index`` of the population; ``state`` is [S, ...].

    Raises:
        Refused: there is no such individual, or the individuals of the method do not act alone.
    """
    if method.individuals is None:
        raise Refused(
            "--individual: this method offers no policies of individuals: they act together, share one policy"
            " or play different tasks"
        )
    policies_of = method.individuals
    first = jax.eval_shape(lambda s: policies_of(tree.take(s, 0)), state)
    size = jax.tree.leaves(first)[0].shape[0]
    if not 0 <= index < size:
        raise Refused(f"--individual must be in 0 to {size - 1} for a population of {size}, got {index}")
    return method._replace(policy=lambda s: tree.take(policies_of(s), index))
