"""Config and hyperparameters of a cooperating team, see ``cspc``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from functools import partial
from math import gcd
from types import ModuleType
from typing import Any, Literal

from flax import struct

from popjax import agents
from popjax.agents import AnyConfig, AnyOnPolicyConfig, ppo, sac2018
from popjax.checks import check_least, check_types, check_widths, nearest_divisor
from popjax.core import Number, Spec, number
from popjax.evolution import cem
from popjax.intrinsic import contrastive, rnd
from popjax.population import drives

DRIVES: dict[str, drives.NoveltyConfig | None] = {
    "none": None,
    "collab": contrastive.Config(horizon=1),
    "rnd": rnd.Config(modules="one"),
}
"""The drives of a team by their names on the command line."""
_NO_RESET = "set reset_at_batch to False (--config.no-reset-at-batch)"


@dataclass(frozen=True)
class Evolution:
    """The gradient-free agent: a search over the parameters of one deterministic policy."""

    hidden: tuple[int, ...] = (400, 300)  # units of the policy's hidden layers
    activation: Literal["relu", "tanh"] = "relu"  # activation of the hidden layers
    cem: cem.Config = field(default_factory=cem.Config)  # sizes of the search
    score: Literal["best", "mean"] = "best"  # test the best individual of the last generation, or the mean

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)


def of_team(kind: ModuleType) -> Any:
    """Return the default Config of a ``kind`` of agent with the mean network that the team shares."""
    config = kind.Config()
    shared: dict[str, Any] = {"hidden": (400, 300), "activation": "relu", "norm": "none"}
    shared |= {"initializer": "uniform", "squash": True}
    known = {field.name for field in fields(config)}
    return replace(config, **{name: value for name, value in shared.items() if name in known})


@dataclass(frozen=True)
class Config:
    """The agents of the team, and the forms of their cooperation.

    The mean networks of all agents must be alike, so that one agent can take over another's.
    """

    off_policy: AnyConfig | None = field(default_factory=sac2018.Config)  # the global agent
    on_policy: AnyOnPolicyConfig | None = field(default_factory=partial(of_team, ppo))  # a local agent
    evolution: Evolution | None = field(default_factory=Evolution)  # another local agent
    copies: int = 0  # further local agents, of the global agent's kind

    first_phase: int = 50_000  # T_g, environment steps of the global agent before anything else
    phase: int = 10_000  # T, environment steps of each agent in an iteration
    fused: bool = False  # all agents play at once; else one after the other
    # order of phases: off-policy, on-policy, evolution; with "code" the reverse, and the others play for as
    # many environment steps as evolution did; copies come last
    schedule: Literal["paper", "code"] = "paper"

    # reward of off-policy agents, added to the task's: collab, rnd or none
    drive: drives.NoveltyConfig | None = None

    transfer: bool = True  # whether policies are handed over
    share: bool = True  # whether the global agent learns from all agents' transitions; else from its own
    capacity: int = 1_000_000  # M_g, transitions in the global memory
    local_capacity: int = 20_000  # M_l, transitions in the local memory
    local_least: int = 10_000  # transitions that the local memory must exceed before it is used

    batch: int = 100  # transitions per gradient step of off-policy agents
    # environment steps that the global agent plays uniformly at random first; so do its copies if policies
    # are not handed over
    warmup: int = 10_000
    update_after: int = 1_000  # transitions before the first gradient step; postponed steps are taken then
    burst: bool = False  # learn after whole episodes, as in the paper; else after every environment step

    lanes: int = 1  # environments of each off-policy agent
    on_policy_lanes: int = 1  # environments of the on-policy agent
    # environment steps that the on-policy agent learns from at a time; A2C's source uses 20
    on_policy_batch: int = 1_000
    # end the on-policy agent's episodes with each batch, which must hold a whole episode of every lane
    reset_at_batch: bool = True
    # when the on-policy agent learns: after a batch, or after every episode, another reading of Algorithm 2
    on_policy_update: Literal["batch", "episode"] = "batch"

    trials: int = 5  # test episodes of each agent in an iteration
    test: Literal["sample", "mean"] = "sample"  # actions in tests: sampled as in training, or the mean

    @property
    def agents(self) -> int:
        """The number of agents."""
        off_policy = 0 if self.off_policy is None else 1 + self.copies
        return off_policy + (self.on_policy is not None) + (self.evolution is not None)

    @property
    def individuals(self) -> int:
        """The number of individuals of a generation; 0 without evolution."""
        return 0 if self.evolution is None else self.evolution.cem.population

    def rollout(self, limit: int) -> int:
        """Return the rows of a lane that the on-policy agent keeps, given episodes of at most ``limit``
        environment steps."""
        by_episode = self.on_policy_update == "episode"
        return limit if by_episode else self.on_policy_batch // self.on_policy_lanes

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)
        whole = ("phase", "capacity", "local_capacity", "batch", "lanes", "on_policy_lanes", "trials")
        check_least(self, 1, *whole, "on_policy_batch")
        check_least(self, 0, "copies", "first_phase", "local_least", "warmup", "update_after")
        if not self.agents:
            raise ValueError("off_policy, on_policy and evolution are all none; give the team an agent")
        if self.individuals == 1:
            raise ValueError(
                "evolution takes over two policies and has 1 individual; raise evolution.cem.population to 2"
            )
        if self.on_policy_batch % self.on_policy_lanes:
            near = nearest_divisor(self.on_policy_batch, self.on_policy_lanes)
            raise ValueError(
                f"on_policy_batch {self.on_policy_batch} is not divisible by on_policy_lanes"
                f" {self.on_policy_lanes}; use {near} lanes"
            )
        if self.fused:
            _check_fused(self)
        if self.burst and self.lanes > 1:
            raise ValueError(f"burst plays one episode at a time, got lanes {self.lanes}; set lanes 1")
        if self.on_policy_update == "episode":
            _check_by_episode(self)
        _check_off_policy(self)
        if self.drive is not None:
            _check_drive(self)


def _check_off_policy(config: Config) -> None:
    if config.off_policy is None:
        if config.copies:
            raise ValueError(f"copies {config.copies} need an off_policy agent, which is none; set copies 0")
        return
    if config.copies and not config.share:
        raise ValueError(
            f"copies {config.copies} learn from the memory that all agents fill; set share, or copies 0"
        )
    if config.local_least >= config.local_capacity:
        raise ValueError(
            f"a local memory of {config.local_capacity} never holds more than {config.local_least};"
            " lower local_least"
        )
    for name in ("first_phase", "phase"):
        if getattr(config, name) % config.lanes:
            near = nearest_divisor(gcd(config.first_phase, config.phase), config.lanes)
            raise ValueError(
                f"{name} {getattr(config, name)} is not divisible by lanes {config.lanes}; use {near} lanes"
            )
    if config.update_after > config.capacity:
        raise ValueError(
            f"update_after {config.update_after} exceeds the memory's capacity {config.capacity}; lower it"
        )


def _check_drive(config: Config) -> None:
    drive = config.drive
    if config.off_policy is None:
        raise ValueError("a drive rewards off-policy agents, and off_policy is none; set drive none")
    drives.check_novelty(drive, "agents that hand policies over")
    if not isinstance(drive, contrastive.Config) and getattr(drive, "modules", "own") != "one":
        raise ValueError(
            "a team's memory does not record which agent played a transition, so no agent can have a module"
            " of its own; set drive collab, or rnd with drive.modules one"
        )
    if isinstance(drive, contrastive.Config) and drive.horizon > 1:
        raise ValueError(
            f"a team's memory pairs a state with its successor only, got drive.horizon {drive.horizon};"
            " set drive.horizon 1"
        )


def _check_fused(config: Config) -> None:
    if config.burst:
        raise ValueError(
            "fused agents learn after every environment step; set burst to False (--config.no-burst)"
        )
    if config.schedule != "paper":
        raise ValueError(
            f"fused agents play at once, without an order of phases, got schedule {config.schedule}; set"
            " schedule paper"
        )
    if config.on_policy and config.reset_at_batch:
        raise ValueError(f"fused agents cannot reset at a batch; {_NO_RESET}")


def _check_by_episode(config: Config) -> None:
    if config.on_policy_lanes > 1:
        raise ValueError(
            f"on_policy_update episode learns from one episode at a time, got on_policy_lanes"
            f" {config.on_policy_lanes}; set on_policy_lanes 1"
        )
    if config.reset_at_batch:
        raise ValueError(f"on_policy_update episode has no batches to reset at; {_NO_RESET}")
    if config.fused:
        raise ValueError(
            "fused agents learn from batches, not from whole episodes; set on_policy_update batch"
        )


def check_on_policy(spec: Spec, config: Config) -> None:
    """Check that the on-policy agent of ``config`` can learn from its rollouts in ``spec``.

    Raises:
        ValueError: episodes are cut too short, or may be too short for the agent's minibatches.
    """
    lanes, limit = config.on_policy_lanes, spec.episode_length
    if config.reset_at_batch and config.rollout(limit) < limit:
        raise ValueError(
            f"with on_policy_batch {config.on_policy_batch} and on_policy_lanes {lanes} a reset at every"
            f" batch hides the steps after step {config.rollout(limit)} of an episode's {limit}; {_NO_RESET},"
            f" or on_policy_batch to at least {lanes * limit}"
        )
    parts = config.on_policy.minibatches if isinstance(config.on_policy, ppo.Config) else 1
    if config.on_policy_update == "episode" and parts > 1:
        raise ValueError(
            f"an episode may have fewer steps than {parts} minibatches; set on_policy.minibatches 1"
        )


def steps_bound(spec: Spec, config: Config) -> int:
    """Return the most environment steps of an iteration."""
    limit, longest = spec.episode_length, config.phase
    generation = config.individuals * limit
    if config.schedule == "code":
        longest += generation  # others play as long as evolution did

    def whole(length: int, part: int) -> int:
        return -(-length // part) * part

    def off_policy(length: int) -> int:
        return length - 1 + limit if config.burst else whole(length, config.lanes)

    everybody = (1 + config.copies) * off_policy(longest) if config.off_policy else 0
    if config.evolution is not None:
        everybody += whole(longest, config.individuals) if config.fused else longest - 1 + generation
    if config.on_policy is not None and config.on_policy_update == "episode":
        everybody += longest - 1 + limit
    elif config.on_policy is not None:
        everybody += whole(longest, config.on_policy_lanes if config.fused else config.on_policy_batch)
    return max(everybody, off_policy(config.first_phase)) if config.off_policy else everybody


@struct.dataclass
class Hyper:
    """Hyperparameters: those of the agents, and of their cooperation."""

    off_policy: Any  # hyperparameters of the global agent and its copies
    on_policy: Any  # hyperparameters of the on-policy agent
    cem: Any  # hyperparameters of the search
    gap: Number = number(100.0, high=math.inf)  # f, lead in score beyond which a policy is handed over
    local_share: Number = number(0.3, high=1.0)  # p, share of the batches that come from the local memory
    drive: Any = None  # hyperparameters of the drive


def default_hyper(config: Config) -> Hyper:
    """Return the default hyperparameters of the agents that are in the team."""
    return Hyper(
        off_policy=None if config.off_policy is None else agents.default_hyper(config.off_policy),
        on_policy=None if config.on_policy is None else agents.default_hyper(config.on_policy),
        cem=None if config.evolution is None else cem.Hyper(),
        drive=drives.default_hyper(config.drive),
    )
