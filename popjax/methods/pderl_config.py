"""Config, hyperparameters and metrics of PDERL, and the paper's constants by task."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from flax import struct
from jax import Array

from popjax import agents
from popjax.agents import ddpg
from popjax.checks import check_least, check_types
from popjax.core import Agent, Number, PyTree, number
from popjax.evolution.crossover import Distillation
from popjax.evolution.mating import Mating
from popjax.population import drives, policy
from popjax.recipe import Preset


@dataclass(frozen=True)
class Config:
    """Sizes and choices. Where the paper sets a constant for each task, the default is HalfCheetah's; see
    ``preset``."""

    agent: agents.AnyConfig = field(default_factory=ddpg.Config)  # the learner, and individuals' actors
    population: int = 10  # individuals
    elite_fraction: float = 0.1  # share of the population that is elite; at least one individual is
    trials: int = 1  # episodes whose mean return is an individual's fitness
    sync_period: int = 10  # generations between two entries of the learner's actor into the population
    tournament: int = 3  # individuals drawn for each tournament
    crossover: Literal["distil", "n_point"] = "distil"  # operator that makes children: PDERL's or ERL's
    mutation: Literal["proximal", "gaussian"] = "proximal"  # operator that mutates slots: PDERL's or ERL's
    distillation: Distillation = field(default_factory=Distillation)  # of crossover by distillation
    mating: Mating = field(default_factory=Mating)  # which pairs have children
    memory: int = 8_000  # newest states in an individual's genetic memory, which its children inherit
    mutation_batch: int = 256  # states of the memory on which sensitivities are measured
    capacity: int = 1_000_000  # transitions that the learner's replay holds
    batch: int = 128  # transitions per gradient step of the learner
    drive: drives.NoveltyConfig | None = None  # reward added to the learner's: collab, rnd or none

    @property
    def elites(self) -> int:
        """Return the number of elite individuals."""
        return max(1, int(self.elite_fraction * self.population + 1e-9))

    @property
    def learning_starts(self) -> int:
        """Return the transitions beyond which the learner takes gradient steps: five batches."""
        return 5 * self.batch

    def __post_init__(self) -> None:
        check_types(self)
        drives.check_novelty(self.drive, "a learner and individuals with one network")
        check_least(self, 1, "trials", "sync_period", "tournament", "mutation_batch", "batch")
        if self.population < 2 * self.elites:
            raise ValueError(
                f"elites {self.elites} exceed half of population {self.population}: "
                "each needs a slot of its own for its copy; lower elite_fraction"
            )
        if self.learning_starts >= self.capacity:
            raise ValueError(
                f"capacity {self.capacity} must exceed the {self.learning_starts} transitions after which the"
                " learner starts, five batches; raise capacity or lower batch"
            )
        if self.memory < 2:
            raise ValueError(f"memory must hold at least 2 states, one of each parent, got {self.memory}")


@struct.dataclass
class Hyper:
    """Hyperparameters, all sweepable."""

    agent: Any = field(default_factory=ddpg.Hyper)  # hyperparameters of the learner
    drive: Any = None  # hyperparameters of the drive
    updates_per_step: Number = number(1.0)  # gradient steps of the learner per environment step
    crossover_lr: Number = number(1e-3)  # Adam's rate for children
    mutation_probability: Number = number(0.9, high=1.0)  # for each individual except the elites' copies
    mutation_std: Number = number(0.1)  # standard deviation of proximal mutation, in units of the action
    sensitivity_floor: Number = number(0.01)  # least sensitivity that a proximal mutation divides by
    noise_theta: Number = number(0.15, high=2.0)  # DDPG, TD3: pull of the action noise to 0, per step
    noise_sigma: Number = number(0.2)  # standard deviation of the noise per step
    noise_scale: Number = number(0.3)  # multiplies the noise before it is added to the action


@struct.dataclass
class Metrics:
    """Metrics of a generation.

    fitness:         float32 [P] mean return of each individual's trials, as evaluated, before evolution; one
                     that has diverged gets the worst of the others.
    diverged:        int32 individuals whose return or parameters were not finite.
    learner_return:  return of the learner's exploring episode.
    losses:          the learner's, of its last gradient step; 0 before the first.
    bonus, drive:    [1] mean bonus that the drive added to the rewards of that step's batch, and the drive's
                     losses on that batch; None without a drive.
    steps:           int32 environment steps of the generation.
    gradient_steps:  int32 of the learner in the generation.
    children:        int32 slots filled by crossover.
    parents:         int32 [P, 2] slots from which each slot of the next generation stems; -1 for none; both
                     are -1 for the learner's actor.
    elite_rate, selected_rate, discarded_rate: shares of the learner's entries into the population so far that
                     became elite, were selected or were discarded in the next generation.
    """

    fitness: Array
    diverged: Array
    learner_return: Array
    losses: PyTree
    bonus: Array | None
    drive: PyTree
    steps: Array
    gradient_steps: Array
    children: Array
    parents: Array
    elite_rate: Array
    selected_rate: Array
    discarded_rate: Array


def default_hyper(config: Config) -> Hyper:
    """Return the hyperparameters that belong to ``config``: those of its kinds of agent and drive."""
    return Hyper(agents.default_hyper(config.agent), drives.default_hyper(config.drive))


def check(agent: Agent, config: Config) -> None:
    """Check that the learner's policy is a network like those of individuals, and can be distilled as
    ``config`` says.

    Raises:
        ValueError: the policy normalizes observations, or has no density for ``imitate="kl"``.
    """
    policy.require_network(agent, default_hyper(config).agent)
    if config.distillation.imitate == "kl" and agent.actions.kl is None:
        raise ValueError("distillation.imitate kl needs a stochastic policy such as SAC's; use mode")


# Elite fraction, trials, sync period, mutation std, env steps.
_TASKS = {
    "swimmer": (0.1, 1, 10, 0.1, 2_000_000),
    "halfcheetah": (0.1, 1, 10, 0.1, 6_000_000),
    "hopper": (0.2, 3, 1, 0.1, 4_000_000),
    "walker2d": (0.2, 5, 1, 0.1, 6_000_000),
    "ant": (0.2, 1, 1, 0.01, 6_000_000),
}


def preset(task: str) -> Preset | None:
    """Return the paper's constants for a task such as "brax/hopper" or "gym/Walker2d-v4"; None if it has
    none."""
    row = _TASKS.get(family(task))
    if row is None:
        return None
    elite_fraction, trials, sync_period, mutation_std, env_steps = row
    config = Config(elite_fraction=elite_fraction, trials=trials, sync_period=sync_period)
    return Preset(config, Hyper(mutation_std=mutation_std), env_steps)


def family(task: str) -> str:
    """Return the name that a task has in all suites and versions: "gym/Hopper-v4" -> "hopper"."""
    return re.sub(r"-v\d+$", "", task.rpartition("/")[2].lower())
