"""A method of your own in one file outside the package, mixed from parts of all five papers.

    python scripts/run.py examples.sixth_method --env gymnax/Pendulum-v1 --env-steps 30000

Agents of any kind are rewarded for what is new to all of them (Collaborative Exploration). From time to time,
agents far behind take over the best agent's policy (CSPC), and the worst agent is replaced by a child of the
two best, distilled with the best agent's critic (PDERL). A student imitates the best agent throughout and is
the policy that is deployed (CDRL). A step is collect -> learn -> transfer -> cross -> teach.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import agents, tree
from popjax.core import Env, Key, Method, Number, Params, chain, number
from popjax.evolution.crossover import Distillation, distil
from popjax.evolution.ranking import best_first
from popjax.intrinsic import contrastive
from popjax.optimize import adam
from popjax.population import drives, exchange, imitation, judging, offpolicy, parts, policy, scoring
from popjax.recipe import Recipe, recorded
from popjax.replay.ring import newest


@dataclass(frozen=True)
class Config(offpolicy.Config):
    """Sizes and parts; more in ``offpolicy.Config``."""

    population: int = 4  # agents
    shared_replay: bool = True  # one replay for all agents
    drive: drives.AnyConfig | None = field(default_factory=contrastive.Config)  # collab, rnd, diayn or none
    interval: int = 2_000  # environment steps of all agents between two exchanges
    memory: int = 2_000  # newest transitions from which a child learns
    distillation: Distillation = field(default_factory=Distillation)  # how children are distilled


@struct.dataclass
class Hyper:
    """Hyperparameters, all sweepable."""

    agent: Any  # hyperparameters of the agents
    drive: Any  # hyperparameters of the drive
    gap: Number = number(100.0)  # how far behind the best return an agent takes over its policy
    crossover_lr: Number = number(1e-3)  # Adam's learning rate for children
    student_lr: Number = number(1e-3)  # Adam's learning rate for the student


@struct.dataclass
class Metrics(offpolicy.Metrics):
    """Metrics of a step: transfers int32 [P, P], parents int32 [P, 2], student_loss [] of the last update."""

    transfers: Array
    parents: Array
    student_loss: Array


@struct.dataclass
class State(offpolicy.State):
    """``offpolicy.State``, and the student with its optimizer's moments."""

    student: imitation.Learner


def default_hyper(config: Config) -> Hyper:
    """Return the default hyperparameters of the agents and of the drive, if any."""
    return Hyper(agents.default_hyper(config.agent), drives.default_hyper(config.drive))


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return the mixed method in ``env``."""
    if not config.shared_replay:
        raise ValueError("children and student learn from what all have seen: leave shared_replay on")
    base = offpolicy.build(env, config, lambda hyper: hyper.agent)
    agent, population = base.agent, config.population
    policy.require_network(agent, default_hyper(config).agent)

    def init(key: Key, hyper: Hyper) -> State:
        key_base, key_student = jax.random.split(key)
        fields, own = base.fields(key_base, hyper), jnp.arange(population)
        told = exchange.transfers(own), exchange.parents(own), jnp.float32(0)
        metrics = Metrics(*vars(fields.pop("metrics")).values(), *told)
        student = imitation.beginner(agent.actor.init(key_student), adam(hyper.student_lr, jnp.inf))
        return State(**fields, metrics=metrics, student=student)

    def due(s: State) -> Array:
        """Return whether the step reached a multiple of ``interval`` environment steps."""
        reached = s.env_steps % config.interval < base.steps
        return reached & (s.env_steps >= config.warmup * population)

    def transfer(s: State) -> State:
        """Agents more than ``gap`` behind take over the best one's policy. CHDRL, algorithm 1."""
        fitness = judging.sound(s.metrics.fitness, s.agents)
        best = best_first(fitness)[0]
        behind = exchange.ahead(fitness, s.hyper.gap)[:, best] & due(s)
        source = jnp.where(behind, best, jnp.arange(population))
        metrics = replace(s.metrics, transfers=exchange.transfers(source), parents=exchange.parents(source))
        return replace(s, agents=exchange.take_over(agent, s.agents, source), metrics=metrics)

    def cross(s: State) -> State:
        """Replace the worst agent by a child of the two best. PDERL, algorithm 1."""
        (key, key_child), now = jax.random.split(s.key), due(s)
        best, second, worst = best_first(judging.sound(s.metrics.fitness, s.agents))[jnp.array([0, 1, -1])]
        x, y = (agent.policy(tree.take(s.agents, i)) for i in (best, second))

        def child() -> Params:
            judge, memory = tree.take(s.agents, best), newest(s.replay, config.memory)
            rows = memory.unpacked()
            seen = memory.holding(replace(rows, obs=base.look(s, rows.obs)))
            return distil(agent, judge, x, y, seen, key_child, config.distillation, s.hyper.crossover_lr, now)

        born = tree.repeat(scoring.when(now, child), population)
        which = (jnp.arange(population) == worst) & now
        stems = jnp.where(which[:, None], jnp.stack([best, second])[None], s.metrics.parents)
        crossed = exchange.adopt(agent, s.agents, born, which)
        return replace(s, key=key, agents=crossed, metrics=replace(s.metrics, parents=stems))

    def teach(s: State) -> State:
        """Let the student imitate the best agent in what all have seen. CDRL, section 4."""
        key, key_study = jax.random.split(s.key)
        best = agent.policy(tree.take(s.agents, best_first(judging.sound(s.metrics.fitness, s.agents))[0]))

        def loss(student: Params, obs: Array) -> Array:
            said, target = agent.outputs(student, obs), agent.outputs(best, obs)
            if env.spec.discrete:
                return -agent.actions.log_prob(said, agent.actions.mode(target)).mean()
            return jnp.square(agent.actions.vector(said) - agent.actions.vector(target)).mean()

        how = adam(s.hyper.student_lr, jnp.inf), loss, lambda key: base.sample(s, key).obs[0]
        student, told = imitation.study(*how, s.student, config.updates, key_study)
        return replace(s, key=key, student=student, metrics=replace(s.metrics, student_loss=told))

    def student(s: State) -> Params:  # with the best agent's skill, if the drive has skills
        students = base.deploy(s, tree.repeat(s.student.params, population))
        return tree.take(students, best_first(judging.sound(s.metrics.fitness, s.agents))[0])

    step = chain(base.collect, base.learn, transfer, cross, teach)
    return parts.whole(base, default_hyper(config), init, step)._replace(policy=student)


METHOD = Recipe(build, Config, default_hyper, agents=offpolicy.AGENTS)
