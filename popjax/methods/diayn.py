"""Diversity Is All You Need: an agent first learns skills that can be told apart, without the task's reward,
and then the task with the best of them. Eysenbach, Gupta, Ibarz & Levine, ICLR 2019.

An iteration: collect -> settle -> (relabel -> learn -> discriminate) x updates. In pretraining, every episode
has a skill, which the agent observes, and states are rewarded for revealing it. Then the agent learns the
task with the skill whose latest episode returned most, and is deployed with that skill. A budget includes the
pretraining.

Differs from the paper: a budget is divided into pretraining and task as in Collaborative Exploration's
comparison. That paper says neither how many skills it uses nor which of them continues; the number and the
rule above are ours. Other methods add DIAYN's reward to the task's with ``drive diayn``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax.agents import sac
from popjax.checks import check_least, check_shapes, check_types
from popjax.core import Env, Key, Method, Transition, chain, vector_size
from popjax.intrinsic import diayn
from popjax.population import drives, learning, offpolicy, parts
from popjax.population.drives import Drive
from popjax.population.offpolicy import State
from popjax.recipe import BUDGET, Recipe, recorded


@dataclass(frozen=True)
class Config:
    """Sizes of the agent, its skills, its experience and its updates."""

    sac: sac.Config = field(default_factory=sac.Config)  # actor and critics
    drive: diayn.Config = field(default_factory=diayn.Config)  # skills and discriminator
    lanes: int = 1  # environments
    pretraining: int = 1_000_000  # environment steps without the task's reward
    updates_per_step: float = 1.0  # gradient steps per environment step
    batch: int = 256  # transitions per gradient step
    capacity: int = 1_000_000  # transitions that the replay holds
    warmup: int = 10_000  # uniformly random environment steps before the first update

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, 0, "pretraining")
        self.sizes()

    def sizes(self) -> offpolicy.Config:
        """Return the Config of the agent that ``offpolicy.build`` reads."""
        check_least(self, 1, "lanes")
        updates = learning.whole_updates(self.updates_per_step, self.lanes)
        sizes = self.batch, self.capacity, self.warmup
        return offpolicy.Config(self.sac, 1, self.lanes, 1, updates, *sizes, shared_replay=True)


@struct.dataclass
class Hyper:
    """Hyperparameters of the method."""

    # hyperparameters of SAC; the temperature is constant
    sac: sac.Hyper = field(default_factory=lambda: sac.Hyper(init_temperature=0.1, temperature_lr=0.0))
    drive: diayn.Hyper = field(default_factory=lambda: diayn.Hyper(weight=1.0))


@struct.dataclass
class Skills:
    """The state of the drive for skills, and whether the pretraining is over, bool []."""

    drive: diayn.State  # [1]
    over: Array


def alone(drive: Drive) -> Drive:
    """Return ``drive`` as the only reward until the pretraining is over. Then the task's reward takes its
    place, and the returns of skills are no longer recorded."""

    def observe(held: Skills, rows: Transition, done: Array, valid: Array, hyper: Hyper) -> Skills:
        return replace(held, drive=drive.observe(held.drive, rows, done, valid & ~held.over, hyper))

    def pay(held: Skills, rows: Transition, hyper: Hyper) -> tuple[Transition, Array]:
        paid, bonus = drive.pay(held.drive, replace(rows, reward=jnp.zeros_like(rows.reward)), hyper)
        return replace(paid, reward=jnp.where(held.over, rows.reward, paid.reward)), bonus

    def learn(held: Skills, *how: Any) -> tuple[Skills, diayn.Losses]:
        state, losses = drive.learn(held.drive, *how)
        return replace(held, drive=state), losses

    return drive._replace(
        init=lambda key: Skills(drive.init(key), jnp.bool_(False)),
        observe=observe,
        pay=pay,
        learn=learn,
        deploy=lambda held, policies: drive.deploy(held.drive, policies),
    )


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return an agent that learns skills in ``env`` and then the task."""
    size, count = vector_size(env.spec, "diayn"), config.drive.skills
    drive = alone(drives.skills(env.spec, config.drive, 1, config.lanes))
    base = offpolicy.build(env, config.sizes(), lambda hyper: hyper.sac, drive=drive)

    def init(key: Key, hyper: Hyper) -> State:
        check_shapes(hyper, (), 1)
        return State(**base.fields(key, hyper))

    def settle(s: State) -> State:
        """Begin new episodes with the best skill, once the pretraining is over."""
        over = s.env_steps >= config.pretraining
        began = s.lanes.account.length == 0
        skill = jnp.where(over & began, s.drive.drive.best, s.lanes.env.skill)  # [1, N]
        obs = diayn.with_skill(s.lanes.obs[..., :size], skill, count)
        settled = replace(s.lanes, env=replace(s.lanes.env, skill=skill), obs=obs)
        return replace(s, drive=replace(s.drive, over=over), lanes=settled)

    return parts.whole(base, Hyper(), init, chain(base.collect, settle, base.learn))


METHOD = Recipe(build, Config, lambda config: Hyper(), budget=lambda config: config.pretraining + BUDGET)
