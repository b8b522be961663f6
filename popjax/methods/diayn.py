"""Diversity Is All You Need. Eysenbach, Gupta, Ibarz & Levine, ICLR 2019.

An agent learns skills without the task's reward: every episode has a skill, which the agent sees and is paid
for making its states tell. After the pretraining it goes on in the task, with the skill whose latest episode
returned most, and that is deployed.

An iteration: act -> (relabel -> learn -> discriminate) x updates. A budget counts the pretraining.

Differs from the paper: the number of skills and the rule for the best of them are those of Collaborative
Exploration's comparison, the latter chosen here. As one drive beside a task's reward it is ``drive diayn`` of
other methods.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import counting, rollout, tree
from popjax.agents import sac
from popjax.checks import check_least, check_shapes
from popjax.core import (
    Env,
    Key,
    Method,
    Params,
    PyTree,
    as_arrays,
    chain,
    example_transition,
    stacked,
    vector_size,
)
from popjax.intrinsic import diayn
from popjax.population import lanes, learning, policy
from popjax.population.drives import skill_act
from popjax.population.lanes import Lanes
from popjax.recipe import Recipe, recorded
from popjax.replay.ring import Ring, ring


@dataclass(frozen=True)
class Config:
    """Sizes of the agent, its skills, its experience and its updates."""

    sac: sac.Config = field(default_factory=sac.Config)  # actor and critics
    diayn: diayn.Config = field(default_factory=diayn.Config)  # skills and discriminator
    lanes: int = 1  # environments
    pretraining: int = 1_000_000  # environment steps without the task's reward
    updates_per_step: float = 1.0  # gradient steps per environment step
    batch: int = 256  # transitions per gradient step
    capacity: int = 1_000_000  # transitions that the replay holds
    warmup: int = 10_000  # environment steps that are uniformly random and before any update

    def __post_init__(self) -> None:
        check_least(self, 1, "lanes", "batch", "capacity")
        check_least(self, 0, "warmup", "pretraining")
        learning.whole_updates(self.updates_per_step, self.lanes)
        if self.batch > self.capacity:
            raise ValueError(f"batch {self.batch} exceeds the replay's capacity {self.capacity}; raise it")


@struct.dataclass
class Hyper:
    """Numbers of the method."""

    # The temperature stays.
    sac: sac.Hyper = field(default_factory=lambda: sac.Hyper(init_temperature=0.1, temperature_lr=0.0))
    diayn: diayn.Hyper = field(default_factory=lambda: diayn.Hyper(weight=1.0))


@struct.dataclass
class Metrics:
    """Metrics of an iteration.

    fitness:  float32 [1] return of the last finished episode in the task, mean over lanes.
    episodes: int32 []    finished episodes.
    losses:   [1] each    SAC's losses in the last update.
    bonus:    float32 []  mean reward for the skill in the last batch.
    drive:    [] each     the discriminator's losses in the last update.
    """

    fitness: Array
    episodes: Array
    losses: sac.Losses
    bonus: Array
    drive: diayn.Losses


@struct.dataclass
class State:
    """Everything that training carries."""

    key: Key
    hyper: Hyper
    env_steps: counting.Count  # [] summed over lanes
    generation: Array  # int32 [] iterations
    metrics: Metrics
    replay: Ring
    drive: diayn.State
    agents: PyTree = stacked()  # [1]
    lanes: Lanes = stacked()  # [1, N], of a skilled environment


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return an agent that learns skills in ``env`` and then the task."""
    size, count = vector_size(env.spec, "diayn"), config.diayn.skills
    lanes_env = diayn.skilled(rollout.autoreset(env), count)
    agent = sac.build(lanes_env.spec, config.sac)
    drive = diayn.build(env.spec, config.diayn, (1, config.lanes))
    learn_all = learning.everyone(agent.learn)
    replay, updates = ring(config.capacity), learning.whole_updates(config.updates_per_step, config.lanes)

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        check_shapes(hyper, (), 1)
        key, key_agent, key_lanes, key_drive = jax.random.split(key, 4)
        states, held = tree.repeat(agent.init(key_agent, hyper.sac), 1), drive.init(key_drive)
        store = replay.init(example_transition(lanes_env.spec))
        losses, bonus, told = learning.no_losses(
            partial(update, store, hyper, jnp.bool_(True)), (states, held), key
        )
        return State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=jnp.int32(0),
            metrics=Metrics(jnp.zeros(1), jnp.int32(0), losses, bonus, told),
            replay=store,
            drive=held,
            agents=states,
            lanes=lanes.start(lanes_env, key_lanes, (1, config.lanes)),
        )

    def act(s: State) -> State:
        """Play each lane by its skill, uniformly at random during the warm-up. A new episode has a random
        skill and, after the pretraining, the best."""
        key, key_play = jax.random.split(s.key)
        known = s.env_steps >= config.pretraining
        chosen = policy.everyone(agent.act, jax.vmap(agent.policy)(s.agents), s.hyper.sac.exploration)
        chosen = policy.randomly(chosen, env.spec, s.env_steps < config.warmup)
        keep = lanes.numbered(lanes.keep_transitions(s.hyper.sac.discount))
        played, (rows, done) = lanes.play(lanes_env, chosen, s.lanes, key_play, 1, keep)
        seen = drive.observe(s.drive, rows, done, ~known & jnp.ones_like(done), s.hyper.diayn)
        skill = jnp.where(known & done[0], seen.best, played.env.skill)  # [1, N]
        obs = diayn.with_skill(played.obs[..., :size], skill, count)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + config.lanes,
            generation=s.generation + 1,
            metrics=replace(s.metrics, fitness=played.fitness, episodes=played.episodes.sum()),
            replay=replay.add(s.replay, tree.flatten(rows.plain, 3), jnp.ones(config.lanes, jnp.bool_)),
            drive=seen,
            agents=jax.vmap(agent.observe)(s.agents, rows.obs[0], done[0] | True),
            lanes=replace(played, env=replace(played.env, skill=skill), obs=obs),
        )

    def update(
        store: Ring, hyper: Hyper, known: Array, learned: tuple[PyTree, diayn.State], key: Key
    ) -> tuple[tuple[PyTree, diayn.State], tuple[sac.Losses, Array, diayn.Losses]]:
        """Take a gradient step of the agent, by the reward for its skill or, if ``known``, the task's; then
        one of the discriminator."""
        states, held = learned
        key_batch, key_learn, key_drive = jax.random.split(key, 3)
        batch = replay.sample(store, key_batch, config.batch)
        bonus = hyper.diayn.weight * drive.reward(held, batch)
        rows = replace(batch, reward=jnp.where(known, batch.reward, bonus))
        states, losses = learn_all(states, tree.repeat(rows, 1), hyper.sac, key_learn)
        held, told = drive.learn(held, batch, jnp.ones(config.batch), hyper.diayn, key_drive)
        return (states, held), (losses, bonus.mean(), told)

    def learn(s: State) -> State:
        """Take the gradient steps that the step owes, once the warm-up is over."""
        key, key_learn = jax.random.split(s.key)
        known = s.env_steps >= config.pretraining
        learned, told = learning.steps(
            partial(update, s.replay, s.hyper, known),
            (s.agents, s.drive),
            learning.due(s.env_steps >= config.warmup, updates),
            key_learn,
            (s.metrics.losses, s.metrics.bonus, s.metrics.drive),
        )
        metrics = Metrics(s.metrics.fitness, s.metrics.episodes, *told)
        return replace(s, key=key, agents=learned[0], drive=learned[1], metrics=metrics)

    def deployed(s: State) -> tuple[Params, Array]:
        return agent.policy(tree.take(s.agents, 0)), s.drive.best

    return Method(
        init=init,
        step=chain(act, learn),
        policy=deployed,
        act=skill_act(agent.act, count),
        hyper=Hyper(),
        steps_bound=config.lanes,
        learning_starts=config.warmup,
        individuals=lambda s: tree.repeat(deployed(s), 1),
        exploration=lambda s: s.hyper.sac.exploration,
    )


METHOD = Recipe(build, Config, lambda config: Hyper())
