"""Agents of one kind side by side: the baseline of every population method.

Each agent acts in its own environment lanes and learns by itself, from its own replay or from one replay
that all fill and all sample. With one agent this is the plain single-agent algorithm. A ``drive`` may add a
reward for novelty or for skills to the task's.

An iteration: collect -> learn.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import agents, counting, rollout, tree
from popjax.agents import sac
from popjax.checks import check_least
from popjax.core import Env, Key, Method, Params, PyTree, as_arrays, chain, example_transition, stacked
from popjax.population import drives, lanes, learning, policy
from popjax.population.lanes import Lanes
from popjax.recipe import Recipe, recorded
from popjax.replay import episodes
from popjax.replay.ring import Ring, ring


@dataclass(frozen=True)
class Config:
    """Sizes of the population, its experience and its updates."""

    agent: agents.AnyConfig = field(default_factory=sac.Config)  # the kind of agent, and its networks
    population: int = 1  # agents
    lanes: int = 1  # environments of each agent
    steps: int = 1  # environment steps of each lane per iteration
    updates: int = 1  # gradient steps of each agent per iteration
    batch: int = 256  # transitions per gradient step
    capacity: int = 1_000_000  # transitions that a replay holds
    warmup: int = 1_000  # environment steps of each agent that are uniformly random and before any update
    shared_replay: bool = False  # one replay for all agents instead of one each
    drive: drives.AnyConfig | None = None  # reward beside the task's: collab, rnd, diayn or none

    def __post_init__(self) -> None:
        check_least(self, 1, "population", "lanes", "steps", "updates", "batch", "capacity")
        check_least(self, 0, "warmup")
        if self.batch > self.capacity:
            raise ValueError(f"batch {self.batch} exceeds the replay's capacity {self.capacity}")


Hyper = Any
"""The ``Hyper`` of the agent, and the drive's in its field ``drive``; a leaf is [] for all agents or, of the
agent, [P] for one number each."""


@struct.dataclass
class Metrics:
    """What an iteration shows.

    fitness:  float32 [P] return of the last finished episode, mean over lanes.
    episodes: int32 [P]   finished episodes.
    losses:   [P] each    the agent's losses in the last gradient step of the iteration, 0 before the first.
    bonus:    float32 [P] mean of what the drive added to the rewards of its batch; () without a drive.
    drive:    [] each     the drive's losses behind it; () without a drive.
    """

    fitness: Array
    episodes: Array
    losses: PyTree
    bonus: PyTree
    drive: PyTree


@struct.dataclass
class State:
    """Everything that training carries. ``replay`` leads with P unless it is shared; ``drive`` is () without
    one."""

    key: Key
    hyper: PyTree
    env_steps: counting.Count  # [] summed over agents and lanes
    generation: Array  # int32 [] iterations
    metrics: Metrics
    replay: Ring
    drive: PyTree
    agents: PyTree = stacked()
    lanes: Lanes = stacked()  # [P, N]


def default_hyper(config: Config) -> PyTree:
    """Return the numbers of the kinds of agent and drive that there are."""
    return drives.with_numbers(agents.default_hyper(config.agent), config.drive)


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return ``config.population`` agents of the kind ``config.agent`` in ``env``."""
    population, shape = config.population, (config.population, config.lanes)
    drive = drives.build(env.spec, config.drive, *shape)
    lanes_env = drive.env(rollout.autoreset(env))
    agent = agents.build(lanes_env.spec, config.agent)
    stride = config.lanes * (population if config.shared_replay else 1)
    replay = ring(config.capacity // stride * stride if drive.horizon else config.capacity)
    warmup, taken = config.warmup * population, population * config.lanes * config.steps
    learn_all = learning.everyone(agent.learn)

    def init(key: Key, hyper: PyTree) -> State:
        hyper = as_arrays(hyper)
        if config.shared_replay and hyper.discount.ndim:
            raise ValueError(
                "a shared replay stores the discount, which must then be one number for all agents"
            )
        key, key_agents, key_lanes, key_drive = jax.random.split(key, 4)
        states = jax.vmap(agent.init, (0, tree.axes(hyper)))(jax.random.split(key_agents, population), hyper)
        row = example_transition(lanes_env.spec)
        store = replay.init(episodes.numbered(row, jnp.int32(0)) if drive.horizon else row)
        store = store if config.shared_replay else tree.repeat(store, population)
        held = drive.init(key_drive)
        losses, bonus, told = learning.no_losses(update, (states, held), store, hyper, key)
        return State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=jnp.int32(0),
            metrics=Metrics(
                fitness=jnp.zeros(population),
                episodes=jnp.zeros(population, jnp.int32),
                losses=losses,
                bonus=bonus,
                drive=told,
            ),
            replay=store,
            drive=held,
            agents=states,
            lanes=lanes.start(lanes_env, key_lanes, shape),
        )

    def collect(s: State) -> State:
        """Every agent plays in its lanes, uniformly at random during the warm-up."""
        key, key_play = jax.random.split(s.key)
        scale = agent.exploration(s.hyper, s.env_steps / population)
        act = policy.everyone(agent.act, jax.vmap(agent.policy)(s.agents), scale)
        act = policy.randomly(act, env.spec, s.env_steps < warmup)
        keep = lanes.numbered(lanes.keep_transitions(s.hyper.discount))
        played, (rows, done) = lanes.play(lanes_env, act, s.lanes, key_play, config.steps, keep)
        valid = jnp.ones(done.shape, jnp.bool_)  # [T, P, N]
        held = drive.observe(s.drive, rows, done, valid, s.hyper)
        rows = rows if drive.horizon else rows.plain
        seen, by_agent = lanes.in_order(rows.obs), lanes.in_order(valid)  # [P, T * N]
        if config.shared_replay:
            store = replay.add(s.replay, tree.flatten(rows, 3), valid.ravel())
        else:
            store = jax.vmap(replay.add)(s.replay, lanes.in_order(rows), by_agent)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + taken,
            generation=s.generation + 1,
            metrics=replace(s.metrics, fitness=played.fitness, episodes=played.episodes),
            replay=store,
            drive=held,
            agents=jax.vmap(agent.observe)(s.agents, seen, by_agent),
            lanes=played,
        )

    def update(
        learners: tuple[PyTree, PyTree], store: Ring, hyper: PyTree, key: Key
    ) -> tuple[tuple[PyTree, PyTree], tuple[PyTree, PyTree, PyTree]]:
        """One gradient step of every agent on a batch of its own, and of the drive behind it."""
        states, held = learners
        key_sample, key_learn, key_drive = jax.random.split(key, 3)
        sample = jax.vmap(replay.sample, (None if config.shared_replay else 0, 0, None))
        rows = sample(store, jax.random.split(key_sample, population), config.batch)  # [P, B]
        paid, bonus = drive.pay(held, rows, hyper)
        states, losses = learn_all(states, paid, hyper, key_learn)
        held, told = drive.learn(held, rows, None, partial(near, store), hyper, key_drive)
        return (states, held), (losses, bonus, told)

    def near(store: Ring, key: Key) -> tuple[Array, Array, Array]:
        """Pairs of states for the drive, about a batch of them, from all replays alike."""
        read = partial(episodes.pairs, stride=stride, horizon=drive.horizon)
        if config.shared_replay:
            return read(store, key, config.batch)
        keys = jax.random.split(key, population)
        share = -(-config.batch // population)
        return tree.flatten(jax.vmap(lambda one, key: read(one, key, share))(store, keys))

    def learn(s: State) -> State:
        """Every agent takes its gradient steps, once the warm-up is over."""
        key, key_learn = jax.random.split(s.key)
        before = s.metrics.losses, s.metrics.bonus, s.metrics.drive
        (states, held), (losses, bonus, told) = learning.steps(
            lambda learners, key: update(learners, s.replay, s.hyper, key),
            (s.agents, s.drive),
            learning.due(s.env_steps >= warmup, config.updates),
            key_learn,
            before,
        )
        metrics = replace(s.metrics, losses=losses, bonus=bonus, drive=told)
        return replace(s, key=key, agents=states, drive=held, metrics=metrics)

    def individuals(s: State) -> Params:
        return drive.deploy(s.drive, jax.vmap(agent.policy)(s.agents))

    return Method(
        init=init,
        step=chain(collect, learn),
        policy=lambda s: tree.take(individuals(s), jnp.argmax(s.metrics.fitness)),  # the last episode's best
        act=drive.act(agent.act),
        hyper=default_hyper(config),
        steps_bound=taken,
        learning_starts=warmup,
        individuals=individuals,
        exploration=lambda s: jnp.mean(agent.exploration(s.hyper, s.env_steps / population)),
    )


METHOD = Recipe(
    build,
    Config,
    default_hyper,
    agents={
        "agent": {name: module.Config() for name, module in agents.AGENTS.items()},
        "drive": drives.KINDS,
    },
)
