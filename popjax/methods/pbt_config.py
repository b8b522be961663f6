"""Config, hyperparameters, metrics and State of searches over hyperparameters during training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeAlias

import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import agents, tree
from popjax.agents import a2c, ddpg, dqn, drq, ppo, sac, sac2018, td3
from popjax.checks import check_least, check_types
from popjax.core import Number, PyTree, number, stacked
from popjax.evolution import priors, search
from popjax.population import drives, offpolicy, onpolicy, parts
from popjax.population.lineage import Lineage

RATE, DISCOUNT = "1e-5:1e-2:log", "hyper.discount=0.9:0.999:log"
EVOLVED: dict[type, tuple[str, ...]] = {
    **dict.fromkeys(
        (ddpg.Config, td3.Config, sac.Config, sac2018.Config, drq.Config),
        (f"hyper.actor_lr={RATE}", f"hyper.critic_lr={RATE}", DISCOUNT),
    ),
    dqn.Config: (f"hyper.lr={RATE}", DISCOUNT, "hyper.exploration=0.01:0.2:log"),
    ppo.Config: (f"hyper.policy_lr={RATE}", f"hyper.value_lr={RATE}", "hyper.entropy_weight=1e-4:0.1:log"),
    a2c.Config: (f"hyper.lr={RATE}", "hyper.entropy_weight=1e-4:0.1:log"),
}
"""The hyperparameters of each kind of agent that evolve by default."""


@dataclass(frozen=True)
class Search:
    """Choice of the hyperparameters that evolve, and when and how."""

    population: int = 16  # agents
    search: search.AnyConfig = field(default_factory=search.Pbt)  # pbt, random, halving or mf
    # hyperparameters that evolve, as hyper.NAME=LOW:HIGH[:log] or hyper.NAME=V1,V2, one --evolve for each;
    # (): the default ones of this kind of agent
    evolve: tuple[str, ...] = ()
    # environment steps of each agent between two ready points, rounded up to whole iterations; by default a
    # run has 50 intervals; with halving, as many as agents; with mf, twice the largest of its frequencies
    interval: int = 10_000
    explore: bool = True  # whether copies explore; else they keep the hyperparameters that they take over
    # latest training episodes whose mean return is an agent's fitness, equally many from each lane, rounded
    # up
    episodes: int = 10
    # greedy episodes of each agent, played at a ready point, that give its fitness instead; 0: none
    scoring: int = 0
    rounds: int = 1_000  # ready points that the State has room for; a run must have fewer

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, 2, "population")
        check_least(self, 1, "interval", "episodes", "rounds")
        check_least(self, 0, "scoring")
        super().__post_init__()  # type: ignore[misc]


@dataclass(frozen=True)
class OffPolicyConfig(Search, offpolicy.Config):
    """Config for agents with a replay; see also ``offpolicy.Config``."""

    copy_replay: bool = False  # whether a slot that takes over an agent also takes over its replay

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.copy_replay and self.shared_replay:
            raise ValueError("all agents use a shared replay: leave out copy_replay or shared_replay")


@dataclass(frozen=True)
class OnPolicyConfig(Search, onpolicy.Config):
    """Config for on-policy agents; see also ``onpolicy.Config``."""


Config: TypeAlias = OffPolicyConfig | OnPolicyConfig


def configured(agent: Any = sac.Config(), **choices: Any) -> Config:
    """Return the Config for this kind of agent with these choices."""
    kind = OnPolicyConfig if agents.on_policy(agent) else OffPolicyConfig
    return kind(agent=agent, **choices)


@struct.dataclass
class SearchHyper:
    """Hyperparameters of the search itself."""

    shrink: Number = number(0.8)  # factor by which exploring multiplies a value
    grow: Number = number(1.2)  # the other factor, equally likely
    resample: Number = number(0.25, high=1.0)  # probability that a value is drawn from its prior instead
    significance: Number = number(0.05, high=1.0)  # significance level of Welch's test


def default_hyper(config: Config) -> PyTree:
    """Return the hyperparameters of the agents, of a drive and, in the field ``search``, of the search."""
    return drives.extended(drives.hyper_of(config), search=SearchHyper())


def evolved(config: Config) -> tuple[priors.Prior, ...]:
    """Return the priors of the hyperparameters that evolve.

    Raises:
        ValueError: as ``priors.parse_all``; or none is named and this kind of agent has none by default.
    """
    texts = config.evolve or EVOLVED.get(type(config.agent), ())
    if not texts:
        raise ValueError("nothing evolves: name a hyperparameter, as in --evolve hyper.NAME=LOW:HIGH:log")
    nested = [value for value in vars(config).values() if is_dataclass(value)]
    shapes = [field.name for one in (config, *nested) for field in fields(one)]
    return priors.parse_all(texts, agents.default_hyper(config.agent), shapes)


def check_own_hyper(config: Config, evolving: Sequence[str], hyper: PyTree) -> None:
    """Check that hyperparameters with a value for each agent are among the ``evolving`` ones, unless the
    search hands no agent over: other values would stay with the slot and not be recorded in the schedule.

    Raises:
        ValueError: a hyperparameter with a value for each agent does not evolve.
    """
    if isinstance(config.search, search.Random):
        return
    for name, value in tree.named(hyper):
        if jnp.ndim(value) and name not in evolving:
            raise ValueError(
                f"hyper.{name} does not evolve, so an agent that is handed over would lose its own value;"
                f" give one value for all, or --evolve hyper.{name}"
            )


def default_budget(config: Config) -> int:
    """Return the environment steps of all agents until the last ready point of a usual search."""
    population, steps, learning_starts = config.population, config.steps, 0
    if isinstance(config, OnPolicyConfig):
        steps = steps or agents.default_rollout(config.agent)
    else:
        learning_starts = config.warmup * population
    iteration = config.lanes * steps * population
    span = -(-config.interval * population // iteration) * iteration
    return (_idle(span, learning_starts) + search.usual_length(config.search, population)) * span


def _idle(span: int, learning_starts: int) -> int:
    """Return the number of intervals of ``span`` environment steps without a ready point at their ends."""
    return max(-(-learning_starts // span), 1) - 1


def check_budget(
    config: Config, span: int, learning_starts: int, recorded: tuple[str, int] | None, env_steps: int
) -> None:
    """Check that a run which ends at ``env_steps`` has as many ready points as the search needs, and no more
    than the State has room for.

    span:            environment steps of all agents between two ready points.
    learning_starts: environment steps before the first one.
    recorded:        name and number of ready points of a run that is repeated.

    Raises:
        ValueError: the run has too few or too many ready points.
    """
    if env_steps < span:
        raise ValueError(
            f"an interval of {span // config.population} environment steps of each of {config.population}"
            f" agents takes {span} in all; shorten interval, or raise --env-steps to {span}"
        )
    if env_steps // span >= config.rounds:
        raise ValueError(
            f"that is {env_steps // span} intervals of {span} environment steps, and the State has room for"
            f" fewer than {config.rounds}; raise rounds or interval"
        )
    before = _idle(span, learning_starts)
    ready, (least, what) = env_steps // span - before, search.least_length(config.search, config.population)
    if ready < 1:
        raise ValueError(
            f"no ready point follows the warm-up of {learning_starts} environment steps of all agents; lower"
            f" warmup, or raise --env-steps to {(before + 1) * span}"
        )
    if recorded is not None and ready > recorded[1]:
        raise ValueError(
            f"{recorded[0]} has the selections of {recorded[1]} ready points, but this run has {ready};"
            f" lower --env-steps to {(before + recorded[1]) * span}"
        )
    if recorded is None and ready < least:
        raise ValueError(
            f"{what} at ready point {least}, but this run has {ready}; raise --env-steps to"
            f" {(before + least) * span}, or shorten interval"
        )


@struct.dataclass
class Metrics(parts.Metrics):
    """Metrics of an iteration; more in ``parts.Metrics``.

    fitness:   float32 [P]    mean return of the last episodes, in training or greedy as ``scoring`` asks.
    losses:    [P] each       losses of ``parts.Metrics``, 0 if they are not finite.
    numbers:   float32 [P] each, by name: the evolving hyperparameters with which the agents continue.
    ready:     int32 []       ready points so far.
    diverged:  int32 []       individuals with a loss that was not finite.
    parents:   int32 [P, 2]   slot from which each individual descends, -1 for a newcomer; its own between
               ready points.
    transfers: int32 [P, P]   1 where the row's individual took over from the column's in this iteration.
    """

    numbers: dict[str, Array]
    ready: Array
    diverged: Array
    parents: Array
    transfers: Array


@struct.dataclass
class Searching:
    """Fields of a State beside its agents."""

    lineage: Lineage
    intervene: Array  # int32 [2] slot and its parent at the next ready point; -1: as the search decides
    born: Array = stacked()  # int32 [P] ready point at which the line of each slot began
    line: Array = stacked()  # int32 [P] slot in which that line began


@struct.dataclass
class OffPolicyState(Searching, offpolicy.State):  # type: ignore[misc] # stacked() gives no default
    """State for agents with a replay; see also ``offpolicy.State``."""


@struct.dataclass
class OnPolicyState(Searching, onpolicy.State):  # type: ignore[misc]
    """State for on-policy agents; see also ``onpolicy.State``."""


State: TypeAlias = Any
"""One of these two, by the kind of agent."""
LAYERS: dict[type, tuple[Any, Any]] = {
    OffPolicyConfig: (offpolicy.build, OffPolicyState),
    OnPolicyConfig: (onpolicy.build, OnPolicyState),
}
