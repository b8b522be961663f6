"""The choices and numbers of a cooperating team."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import partial
from math import gcd
from typing import Any, Literal

from flax import struct

from popjax.agents import AnyConfig, AnyOnPolicyConfig, ppo, sac2018
from popjax.checks import check_choices, check_least, check_widths, nearest_divisor
from popjax.core import Number, number
from popjax.evolution import cem


@dataclass(frozen=True)
class Evolution:
    """The gradient-free agent: a search over the parameters of one deterministic policy."""

    hidden: tuple[int, ...] = (400, 300)  # hidden layers of the policy, units
    activation: Literal["relu", "tanh"] = "relu"  # between them
    cem: cem.Config = field(default_factory=cem.Config)  # population and parents
    score: Literal["best", "mean"] = (
        "best"  # who is tested: the best individual of the last generation or the mean
    )
    inject: Literal["sticky", "once"] = "sticky"  # a policy handed over enters every later phase, or one
    carry: bool = True  # steps beyond a phase's length are taken off the next; not in the code's schedule
    reset_mean: bool = False  # a policy handed over becomes the mean, too; of two the on-policy agent's

    def __post_init__(self) -> None:
        check_choices(self)
        check_widths(self)


def of_team(kind: Any) -> Any:
    """The default Config of a ``kind`` of agent, a module, with the mean network that the team shares."""
    config = kind.Config()
    shared: dict[str, Any] = {"hidden": (400, 300), "activation": "relu", "norm": "none"}
    shared |= {"initializer": "uniform", "squash": True}
    known = {field.name for field in fields(config)}
    return replace(config, **{name: value for name, value in shared.items() if name in known})


@dataclass(frozen=True)
class Config:
    """Who is in the team and what they do for each other.

    The mean networks of all agents must be the same, so that one can take another's.
    """

    off_policy: AnyConfig | None = field(default_factory=sac2018.Config)  # the global agent
    on_policy: AnyOnPolicyConfig | None = field(default_factory=partial(of_team, ppo))  # a local agent
    evolution: Evolution | None = field(default_factory=Evolution)  # another
    copies: int = 0  # further local agents of the global one's kind

    first_phase: int = 50_000  # T_g, environment steps of the global agent before anything else
    phase: int = 10_000  # T, environment steps of each agent in an iteration
    first_phase_always: bool = False  # the first phase comes in every iteration, as Algorithm 1 is printed
    fused: bool = False  # all agents play at once, see ``fused``; else one after the other
    schedule: Literal["paper", "code"] = (
        "paper"  # off-policy, on-policy, evolution; or the reverse, with lengths that follow evolution's
    )

    transfer: bool = True  # policies are handed over
    transfer_first: bool = True  # also after the first phase
    values: bool = True  # with its policy the global agent hands over its state value, where both have one
    reset_optimizers: bool = False  # who takes over a policy forgets Adam's moments
    source: Literal["before", "after"] = (
        "before"  # evolution takes the on-policy agent's policy as it was before or after transfers
    )
    copy: Literal["all", "policy"] = "all"  # copies take over all networks, or policy and state value

    capacity: int = 1_000_000  # transitions in the global memory
    local_capacity: int = 20_000  # and in the local one
    local_least: int = 10_000  # the local memory is used once it holds more
    strict: bool = True  # an episode must do better than the worst score, not as well
    labels: Literal["own", "any"] = "own"  # whose label lets an agent's episodes into the local memory
    reset_labels: bool = False  # labels last one iteration
    share: bool = True  # the global agent learns from what all have seen, else from its own steps alone

    batch: int = 100  # transitions per gradient step of off-policy agents
    warmup: int = 10_000  # environment steps that the global agent plays uniformly at random first
    update_after: int = 1_000  # transitions before the first gradient step; those put off are made up for
    burst: bool = False  # whole episodes, then as many gradient steps, as the paper has it; else in turn
    store_first: bool = True  # experience is stored before it is learned from

    lanes: int = 1  # environments of each off-policy agent
    on_policy_lanes: int = 1  # environments of the on-policy agent
    on_policy_batch: int = 1_000  # environment steps that it learns from at a time; A2C's source has 20
    reset_at_batch: bool = True  # its episodes end with the batch, in which a lane has room for a whole one
    on_policy_update: Literal["batch", "episode"] = (
        "batch"  # learn from batches; or after every episode, as Algorithm 2 could be read: no batches then
    )

    trials: int = 5  # test episodes of each agent in an iteration
    test: Literal["sample", "mean"] = "sample"  # agents act in tests as in training, or by their mean

    @property
    def members(self) -> int:
        """How many agents there are."""
        off_policy = 0 if self.off_policy is None else 1 + self.copies
        return off_policy + (self.on_policy is not None) + (self.evolution is not None)

    def __post_init__(self) -> None:
        check_choices(self)
        check_widths(self)
        whole = ("phase", "capacity", "local_capacity", "batch", "lanes", "on_policy_lanes", "trials")
        check_least(self, 1, *whole, "on_policy_batch")
        check_least(self, 0, "copies", "first_phase", "local_least", "warmup", "update_after")
        if not self.members:
            raise ValueError("a team needs an agent: off_policy, on_policy and evolution are all none")
        if self.off_policy is None and self.copies:
            raise ValueError(f"copies {self.copies} of an off_policy agent that is none")
        if self.copies and not self.share:
            raise ValueError(
                f"copies {self.copies} have no memory but the one that all fill; say share, or copies 0"
            )
        self._check_lengths()

    def _check_lengths(self) -> None:
        if self.on_policy_batch % self.on_policy_lanes:
            near = nearest_divisor(self.on_policy_batch, self.on_policy_lanes)
            raise ValueError(
                f"on_policy_batch {self.on_policy_batch} is not divided by on_policy_lanes"
                f" {self.on_policy_lanes}; {near} lanes would do"
            )
        if self.fused:
            self._check_fused()
        if self.burst and self.lanes > 1:
            raise ValueError(f"burst plays one episode after the other; lanes is {self.lanes}")
        if self.on_policy_update == "episode":
            self._check_by_episode()
        if self.evolution is not None and self.evolution.cem.population < 2:
            raise ValueError("evolution needs a population of 2 at least, to take over two policies")
        if self.off_policy is not None:
            if self.local_least >= self.local_capacity:
                raise ValueError(
                    f"a local memory of {self.local_capacity} never holds more than {self.local_least};"
                    " lower local_least"
                )
            for name in ("first_phase", "phase"):
                if getattr(self, name) % self.lanes:
                    near = nearest_divisor(gcd(self.first_phase, self.phase), self.lanes)
                    raise ValueError(
                        f"{name} {getattr(self, name)} is not divided by lanes {self.lanes};"
                        f" {near} lanes would do"
                    )
            if self.update_after > self.capacity:
                raise ValueError(
                    f"update_after {self.update_after} transitions never fit into capacity {self.capacity}"
                )

    def _check_by_episode(self) -> None:
        if self.on_policy_lanes > 1:
            raise ValueError(
                f"on_policy_update episode learns from one episode after the other; on_policy_lanes is"
                f" {self.on_policy_lanes}"
            )
        if self.reset_at_batch:
            raise ValueError("on_policy_update episode has no batches; say no-reset-at-batch")
        if self.fused:
            raise ValueError(
                "fused agents may lose a batch underway, not an episode; say on_policy_update batch"
            )

    def _check_fused(self) -> None:
        sizes = {"lanes": self.lanes}
        if self.on_policy is not None:
            sizes["on_policy_lanes"] = self.on_policy_lanes
        if self.evolution is not None:
            sizes["evolution.cem.population"] = self.evolution.cem.population
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(f"fused agents play in as many environments each, got {told}")
        if self.phase % self.lanes:
            # Lanes are as many as the individuals, which are not any number.
            longer = self.phase + -self.phase % self.lanes
            raise ValueError(f"phase {self.phase} is not divided by lanes {self.lanes}; {longer} would do")
        if self.burst or self.schedule != "paper" or (self.on_policy is not None and self.reset_at_batch):
            raise ValueError(
                "fused agents play on and on: burst, schedule code and reset_at_batch have no meaning; "
                "say no-reset-at-batch"
            )
        if not self.store_first:
            raise ValueError("fused agents learn from what they have just stored; say store-first")
        if self.evolution is not None and self.evolution.reset_mean:
            raise ValueError(
                "evolution.reset_mean moves the generation under way: say no-fused or no-reset-mean"
            )


@struct.dataclass
class Hyper:
    """Numbers: those of the agents, and of their cooperation."""

    off_policy: Any  # of the global agent and its copies
    on_policy: Any  # of the on-policy agent
    cem: Any  # of the search
    gap: Number = number(100.0)  # f, by how much a score must exceed another for a policy to be handed over
    local_share: Number = number(0.3, high=1.0)  # p, share of the batches that come from the local memory
