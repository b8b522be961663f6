"""Config, hyperparameters and metrics of CA2E, and the paper's constants for each of its two learners."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax.agents import ddpg, dqn
from popjax.checks import check_least, check_types
from popjax.core import Agent, Number, PyTree, number
from popjax.recipe import Preset

AgentConfig: TypeAlias = dqn.Config | ddpg.Config
PROBABILITIES = 1.0, 0.8, 0.6, 0.4, 0.2
"""Default exploration of DQN's nature actors: initial probabilities of a random action."""
DEVIATIONS = 0.1, 0.2, 0.3, 0.4, 0.5
"""Default exploration of DDPG's nature actors: standard deviations of the noise."""


@dataclass(frozen=True)
class Config:
    """Options of the actors, the replay and the learner; the defaults are for DQN."""

    agent: AgentConfig = field(default_factory=dqn.Config)  # the learner, and its networks
    nature_actors: int = 5  # actors that explore with a copy of the learner's policy
    prior_actors: int = 3  # actors that play prior policies, or explore if none are given
    lanes: int = 1  # environments of each actor
    n_step: int = 3  # n of the n-step returns that are stored
    batch: int = 32  # transitions per gradient step
    capacity: int = 1_000_000  # transitions that the replay holds; they set the size of checkpoints, too
    local_buffer: int = 50  # transitions that a lane gathers before they get priorities and are stored
    sync_every: int = 100  # environment steps of an actor between two copies of the learner's policy
    learning_starts: int = 50_000  # environment steps of all actors before the first gradient step
    env_steps_per_update: int = 4  # environment steps of all actors per gradient step from then on
    # initial exploration of each nature actor; actors beyond the last value use the agent's own, and fewer
    # than five actors use the first values of the default
    exploration: tuple[float, ...] = PROBABILITIES
    # change of exploration over time; "apex": constant at 0.4^(1 + 7i / (N - 1)) for actor i of N
    schedule: Literal["anneal", "constant", "apex"] = "anneal"
    clip_rewards: bool = False  # learn from rewards clipped to [-1, 1], as on Atari
    check_every: int = 10_000  # environment steps of all actors between comparisons with the prior policies
    checks: int = 3  # comparisons in a row that the learner must win
    return_window: int = 100  # latest finished episodes in the average return of nature actors
    # episodes whose mean return is compared with the prior policies': ten greedy ones of the learner, or the
    # latest ones of nature actors, which explore
    return_source: Literal["greedy", "nature"] = "greedy"
    prior_until: int = 0  # environment steps after which all prior actors retire; 0: no such limit
    target_every: int = 10_000  # environment steps of all actors between copies to DQN's target network

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, 0, "prior_actors", "prior_until")
        check_least(self, 1, "nature_actors", "lanes", "n_step", "batch", "capacity", "local_buffer")
        check_least(self, 1, "sync_every", "checks", "env_steps_per_update", "check_every", "target_every")
        check_least(self, 1, "return_window")
        _check_exploration(self)
        if self.batch > self.capacity:
            raise ValueError(
                f"batch {self.batch} exceeds the replay's capacity {self.capacity}; lower batch or raise"
                " capacity"
            )
        least = self.actors * self.lanes * (self.local_buffer + self.n_step - 2)
        if self.learning_starts < least:
            raise ValueError(
                f"learning_starts {self.learning_starts} is less than {least}: the local buffers of"
                f" {self.actors * self.lanes} lanes first fill in the environment step after that, and"
                f" there is nothing to learn from before; raise it to {least}"
            )

    @property
    def actors(self) -> int:
        """Return the number of actors of both kinds."""
        return self.nature_actors + self.prior_actors


def _check_exploration(config: Config) -> None:
    given, actors = config.exploration, config.nature_actors
    if not given or min(given) < 0:
        raise ValueError(
            f"exploration needs one or more numbers >= 0, got {given}; give one per nature actor"
        )
    if given == (PROBABILITIES if isinstance(config.agent, dqn.Config) else DEVIATIONS):
        return
    if config.schedule == "apex" and isinstance(config.agent, dqn.Config):
        raise ValueError(
            f"schedule apex sets the exploration itself, got {given}; leave out exploration, or choose"
            " schedule anneal or constant"
        )
    if len(given) > actors:
        raise ValueError(
            f"exploration has {len(given)} numbers for {actors} nature actors; leave out"
            f" {len(given) - actors} or raise nature_actors"
        )


@struct.dataclass
class Hyper:
    """Hyperparameters of CA2E and of its learner."""

    # hyperparameters of the learner; its exploration is also that of retired prior actors, except with apex
    agent: Any
    priority_exponent: Number = number(0.6)  # alpha of prioritized replay; 0 is uniform replay
    importance_exponent: Number = number(0.4, high=1.0)  # beta of the importance weights; 0 leaves them out
    priority_offset: Number = number(1e-6)  # added to every absolute TD error
    # a prior policy of mean return r is replaced once the learner returns r + (factor - 1) times the absolute
    # value of r; inf: never
    replacement_factor: Number = number(1.05, low=1.0, high=math.inf)


@struct.dataclass
class Metrics:
    """Metrics of a step.

    fitness:        float32 [P] return of each actor's last finished episode, mean over lanes.
    episodes:       int32 [P]   finished episodes.
    average_return: float32 []  mean of the last ``return_window`` episodes of nature actors; 0 before the
                    first.
    compared:       float32 []  the learner's return at the last comparison with active prior policies; 0
                    before the first.
    losses:         [] each     losses of the learner's last gradient step; 0 before the first.
    gradient_steps: int32 []    gradient steps taken in this step.
    exploration:    float32 [P] scale of each actor's exploration; prior actors use theirs once they are
                    retired.
    retired_at:     float32 [prior] environment steps when a prior actor retired; -1 until then.
    baseline:       float32 [prior] mean return of a prior actor's policy.
    stored:         int32 []    transitions in the replay.
    """

    fitness: Array
    episodes: Array
    average_return: Array
    compared: Array
    losses: PyTree
    gradient_steps: Array
    exploration: Array
    retired_at: Array
    baseline: Array
    stored: Array


def default_config(agent: AgentConfig = dqn.Config()) -> Config:
    """Return the paper's constants for a learner of this kind, and ours for those that it does not state."""
    if isinstance(agent, dqn.Config):
        return Config(agent=agent)
    return Config(
        agent=agent,
        batch=128,
        learning_starts=10_000,
        env_steps_per_update=1,
        exploration=DEVIATIONS,
        schedule="constant",
    )


def preset(task: str) -> Preset | None:
    """Return the paper's constants for a game such as "atari/breakout"; None for other tasks."""
    if not task.startswith("atari/"):
        return None
    config = replace(default_config(dqn.Config(eval_exploration=0.001)), clip_rewards=True)
    return Preset(config, default_hyper(config), 10_000_000)


def default_hyper(config: Config) -> Hyper:
    """Return the default hyperparameters for ``config``. DQN's own target period is infinite, since
    ``target_every`` counts environment steps instead."""
    if isinstance(config.agent, dqn.Config):
        return Hyper(agent=dqn.Hyper(target_period=math.inf))
    return Hyper(agent=replace(ddpg.baselines_hyper(), exploration=0.2))


def scales(agent: Agent, config: Config, hyper: Hyper, env_steps: Array) -> Array:
    """Return float32 [P], the scale of each actor's exploration after ``env_steps`` of all actors.

    With schedule "apex" both kinds of actors follow ``ladder``. Otherwise prior actors, and nature actors
    beyond ``config.exploration``, use the agent's own exploration: annealed, or constant at its initial
    value, as the schedule says.
    """
    count, annealing = config.nature_actors, config.schedule == "anneal"
    retired = agent.exploration(hyper.agent, env_steps if annealing else jnp.int32(0))
    if config.schedule == "apex":
        places = jnp.concatenate([jnp.arange(count), jnp.arange(config.prior_actors)])
        return ladder(places, count)
    given = jnp.array(config.exploration[:count], jnp.float32)
    if annealing:
        at = jax.vmap(
            lambda start: agent.exploration(replace(hyper.agent, exploration_start=start), env_steps)
        )
        given = at(given)
    rest = jnp.broadcast_to(retired, (config.actors - given.shape[0],))
    return jnp.concatenate([given, rest])


def ladder(place: Array, count: int) -> Array:
    """Return Ape-X's constant probabilities of a random action, ``0.4^(1 + 7 i / (N - 1))`` for i =
    ``place`` and N = ``count``."""
    return jnp.asarray(0.4 ** (1 + 7 * place / max(count - 1, 1)), jnp.float32)


def check_learner(config: Config) -> None:
    """Check that CA2E supports the learner, and that the schedule is one for this learner.

    Raises:
        ValueError: the learner is neither DQN nor DDPG, or it is DDPG and the schedule is for DQN only.
    """
    if not isinstance(config.agent, dqn.Config | ddpg.Config):
        raise ValueError(f"the learner of CA2E must be dqn or ddpg, not {type(config.agent).__module__}")
    if config.schedule != "constant" and not isinstance(config.agent, dqn.Config):
        raise ValueError(f"schedule {config.schedule} is for dqn's probabilities; ddpg's noise is constant")
