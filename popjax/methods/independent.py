"""Agents of one kind side by side: the baseline of every population method.

Each agent acts in its own environment lanes and learns by itself, from its own replay or from one replay
that all fill and all sample. With one agent this is the plain single-agent algorithm.

An iteration: collect -> learn.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import agents, counting, rollout, tree
from popjax.agents import sac
from popjax.checks import check_least
from popjax.core import Env, Key, Method, Params, PyTree, as_arrays, chain, example_transition, stacked
from popjax.population import lanes, learning, policy
from popjax.population.lanes import Lanes
from popjax.recipe import Recipe, recorded
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

    def __post_init__(self) -> None:
        check_least(self, 1, "population", "lanes", "steps", "updates", "batch", "capacity")
        check_least(self, 0, "warmup")
        if self.batch > self.capacity:
            raise ValueError(f"batch {self.batch} exceeds the replay's capacity {self.capacity}")


Hyper = Any
"""The ``Hyper`` of the agent; a leaf is [] for all agents or [P] for one number each."""


@struct.dataclass
class Metrics:
    """What an iteration shows.

    fitness:  float32 [P] return of the last finished episode, mean over lanes.
    episodes: int32 [P]   finished episodes.
    losses:   [P] each    the agent's losses in the last gradient step of the iteration, 0 before the first.
    """

    fitness: Array
    episodes: Array
    losses: PyTree


@struct.dataclass
class State:
    """Everything that training carries. ``replay`` leads with P unless it is shared."""

    key: Key
    hyper: PyTree
    env_steps: counting.Count  # [] summed over agents and lanes
    generation: Array  # int32 [] iterations
    metrics: Metrics
    replay: Ring
    agents: PyTree = stacked()
    lanes: Lanes = stacked()  # [P, N]


def default_hyper(config: Config) -> PyTree:
    """Return the numbers of the kind of agent that there is."""
    return agents.default_hyper(config.agent)


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return ``config.population`` agents of the kind ``config.agent`` in ``env``."""
    agent = agents.build(env.spec, config.agent)
    lanes_env = rollout.autoreset(env)
    replay = ring(config.capacity)
    population, shape = config.population, (config.population, config.lanes)
    warmup, taken = config.warmup * population, population * config.lanes * config.steps
    learn_all = learning.everyone(agent.learn)

    def init(key: Key, hyper: PyTree) -> State:
        hyper = as_arrays(hyper)
        if config.shared_replay and hyper.discount.ndim:
            raise ValueError(
                "a shared replay stores the discount, which must then be one number for all agents"
            )
        key, key_agents, key_lanes = jax.random.split(key, 3)
        states = jax.vmap(agent.init, (0, tree.axes(hyper)))(jax.random.split(key_agents, population), hyper)
        store = replay.init(example_transition(env.spec))
        store = store if config.shared_replay else tree.repeat(store, population)
        return State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=jnp.int32(0),
            metrics=Metrics(
                fitness=jnp.zeros(population),
                episodes=jnp.zeros(population, jnp.int32),
                losses=learning.no_losses(update, states, store, hyper, key),
            ),
            replay=store,
            agents=states,
            lanes=lanes.start(lanes_env, key_lanes, shape),
        )

    def collect(s: State) -> State:
        """Every agent plays in its lanes, uniformly at random during the warm-up."""
        key, key_play = jax.random.split(s.key)
        scale = agent.exploration(s.hyper, s.env_steps / population)
        act = policy.everyone(agent.act, jax.vmap(agent.policy)(s.agents), scale)
        act = policy.randomly(act, env.spec, s.env_steps < warmup)
        keep = lanes.keep_transitions(s.hyper.discount)
        played, rows = lanes.play(lanes_env, act, s.lanes, key_play, config.steps, keep)
        rows = lanes.in_order(rows)  # [P, T * N]
        valid = jnp.ones(rows.reward.shape, jnp.bool_)
        if config.shared_replay:
            store = replay.add(s.replay, tree.flatten(rows), valid.reshape(-1))
        else:
            store = jax.vmap(replay.add)(s.replay, rows, valid)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + taken,
            generation=s.generation + 1,
            metrics=replace(s.metrics, fitness=played.fitness, episodes=played.episodes),
            replay=store,
            agents=jax.vmap(agent.observe)(s.agents, rows.obs, valid),
            lanes=played,
        )

    def update(states: PyTree, store: Ring, hyper: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        """One gradient step of every agent on a batch of its own."""
        key_sample, key_learn = jax.random.split(key)
        sample = jax.vmap(replay.sample, (None if config.shared_replay else 0, 0, None))
        rows = sample(store, jax.random.split(key_sample, population), config.batch)  # [P, B]
        return learn_all(states, rows, hyper, key_learn)

    def learn(s: State) -> State:
        """Every agent takes its gradient steps, once the warm-up is over."""
        key, key_learn = jax.random.split(s.key)
        count = learning.due(s.env_steps >= warmup, config.updates)
        states, losses = learning.steps(
            lambda states, key: update(states, s.replay, s.hyper, key),
            s.agents,
            count,
            key_learn,
            s.metrics.losses,
        )
        return replace(s, key=key, agents=states, metrics=replace(s.metrics, losses=losses))

    def individuals(s: State) -> Params:
        return jax.vmap(agent.policy)(s.agents)

    return Method(
        init=init,
        step=chain(collect, learn),
        policy=lambda s: tree.take(individuals(s), jnp.argmax(s.metrics.fitness)),  # the last episode's best
        act=agent.act,
        hyper=default_hyper(config),
        steps_bound=taken,
        individuals=individuals,
        exploration=lambda s: jnp.mean(agent.exploration(s.hyper, s.env_steps / population)),
    )


METHOD = Recipe(
    build,
    Config,
    default_hyper,
    agents={"agent": {name: module.Config() for name, module in agents.AGENTS.items()}},
)
