"""Schedules of finished searches, used by other runs: an agent follows the winner's hyperparameters
over time, or a population repeats all selections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax import agents
from popjax.core import Env, Ingredient, Key, Method, Pretrained, PyTree, chain
from popjax.population import clocks, drives, parts


class Scheduled(NamedTuple):
    """A finished run and its schedule, as ``lineage.schedule`` gives it."""

    policy: Pretrained
    schedule: Mapping[str, Any]


def take(env: Env, policies: Sequence[Pretrained]) -> list[Scheduled]:
    """Return finished runs, at most one, with their schedules.

    Raises:
        ValueError: there is more than one run, or a run has no schedule.
    """
    if len(policies) > 1:
        raise ValueError(f"one schedule is followed at a time, got {len(policies)} runs; name one")
    for policy in policies:
        if policy.schedule is None:
            raise ValueError(f"{policy.name} has no schedule; name a run of pbt")
    return [Scheduled(policy, policy.schedule) for policy in policies if policy.schedule is not None]


def ingredient(keyword: str, text: str) -> Ingredient:
    """Return the Ingredient that passes a finished search as this ``keyword`` of ``build``; ``text`` is the
    option's help."""
    return Ingredient(keyword, take, Scheduled, text)


FOLLOWED = ingredient(
    "schedule", "A finished run of pbt, RUN_DIR or RUN_DIR:SEED, whose winner's hyperparameters are followed."
)

REPEATED = ingredient(
    "replay", "A finished run of pbt, RUN_DIR or RUN_DIR:SEED, whose selections are repeated."
)


def remarks(
    env: Env,
    config: Any,
    hyper: Any,
    env_steps: int,
    schedule: Sequence[Scheduled] = (),
    replay: Sequence[Scheduled] = (),
    driven: Sequence[str] = (),
) -> list[str]:
    """Return a line for each hyperparameter that did not evolve in the finished run and differs here, and the
    remarks of ``clocks``; ``driven`` are hyperparameters that evolve here."""
    set_by = [name for run in (*schedule, *replay) for name in run.schedule.get("names", ())]
    found = clocks.of_agents(config, hyper, env_steps, (*driven, *set_by))
    for run in (*schedule, *replay):
        for name, value in run.schedule.get("fixed", {}).items():
            own = np.asarray(getattr(hyper, name), np.float32)
            if (own != np.float32(value)).any():
                here = ",".join(f"{x:g}" for x in own.ravel())
                option = f"--hyper.{name.replace('_', '-')} {float(value):g}"
                found.append(
                    f"{run.policy.name} had {option}, but here it is {here}; give the same value to"
                    " repeat the run"
                )
    return found


def check_unset(hyper: Any, names: Sequence[str]) -> None:
    """Check that no hyperparameter of ``names``, which a finished run sets, has a value for each agent.

    Raises:
        ValueError: one of them has.
    """
    for name in names:
        if jnp.ndim(getattr(hyper, name)):
            raise ValueError(f"hyper.{name} would not be used: the finished run sets it; leave it out")


def follow(method: Method, schedule: Sequence[Scheduled], kind: str, steps: int) -> Method:
    """Return ``method`` with hyperparameters that follow ``schedule``; unchanged without one.

    kind:  kind of the agents, as the command line names it.
    steps: environment steps of an agent in an iteration.

    Raises:
        ValueError: the schedule is of another kind of agent; or, by ``init``, a hyperparameter that
            it sets has a value for each agent.
    """
    if not schedule:
        return method
    told, run = schedule[0].schedule, schedule[0].policy.name
    if told["agent"] != kind:
        raise ValueError(
            f"the schedule of {run} is for {told['agent']}, but the agent here is {kind}; use the same kind"
        )
    line = told["line"]
    starts = jnp.array([-(-row["env_steps"] // steps) for row in line], jnp.int32)  # iterations
    values = {name: jnp.array([row["numbers"][name] for row in line], jnp.float32) for name in told["names"]}

    def at(hyper: Any, row: Array | int) -> Any:
        return replace(hyper, **{name: column[row] for name, column in values.items()})

    def set_hyper(s: Any) -> Any:
        """Set the schedule's hyperparameters for this iteration."""
        row = jnp.searchsorted(starts, s.generation, side="right") - 1
        return replace(s, hyper=at(s.hyper, row))

    def init(key: Key, hyper: Any) -> Any:
        check_unset(hyper, list(values))
        return method.init(key, at(hyper, 0))

    return method._replace(
        init=init,
        step=chain(set_hyper, method.step),
        driven=tuple(values),
    )


def plain(layer: Any, env: Env, config: Any, schedule: Sequence[Scheduled]) -> Method:
    """Return the Method of a ``layer``, ``offpolicy`` or ``onpolicy``, with only the layer's own phases;
    hyperparameters follow ``schedule``.

    Raises:
        ValueError: the schedule is of another kind of agent.
    """
    base = layer.build(env, config)

    def init(key: Key, hyper: PyTree) -> Any:
        return layer.State(**base.fields(key, hyper))

    method = parts.whole(base, drives.hyper_of(config), init, chain(base.collect, base.learn))
    return follow(method, schedule, agents.kind(config.agent), base.steps // config.population)


class Selections(NamedTuple):
    """Decisions of a search at each ready point: ``source`` int32 [R, P] and ``numbers`` float32 [R, P, F] as
    in ``lineage.Lineage``."""

    source: Array
    numbers: Array


def selections(
    replay: Sequence[Scheduled],
    task: str,
    kind: str,
    search: Any,
    explore: bool,
    names: Sequence[str],
    population: int,
    interval: int,
) -> Selections | None:
    """Return the selections to repeat; None if there are none.

    ``search`` is the Config of the search, ``interval`` the number of environment steps of an agent between
    ready points.

    Raises:
        ValueError: the selections are of another task, kind of agent, search or form of population.
    """
    if not replay:
        return None
    policy = replay[0].policy
    run = policy.name
    told = {"task": policy.spec.name, **vars(policy.config), **replay[0].schedule}
    own = {"task": task, "agent": kind, "search": search, "explore": explore, "names": list(names)}
    own |= {"population": population, "interval": interval}
    for what, value in own.items():
        if told[what] != value:
            raise ValueError(
                f"the selections of {run} are of another {what}: {told[what]}, here {value}; use the same"
            )
    recorded = told["selections"]
    return Selections(jnp.array(recorded["source"], jnp.int32), jnp.array(recorded["numbers"], jnp.float32))
