"""Agents of one kind side by side: the baseline of every population method.

Each agent acts in its own environment lanes and learns by itself, from its own replay or from one replay
that all fill and all sample. With one agent this is the plain single-agent algorithm.

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

from popjax import agents, rollout, tree
from popjax.agents import sac
from popjax.checks import check_least
from popjax.core import Env, Key, Method, Params, PyTree, as_arrays, chain, example_transition, stacked
from popjax.recipe import Recipe, recorded
from popjax.replay.ring import ring


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
    env_steps: Array  # int32 [] summed over agents and lanes
    generation: Array  # int32 [] iterations
    metrics: Metrics
    replay: PyTree
    agents: PyTree = stacked()
    lanes: rollout.Lane = stacked()  # [P, N]
    returns: rollout.Returns = stacked()  # [P, N]


def default_hyper(config: Config) -> PyTree:
    """The numbers of the kind of agent that there is."""
    return agents.default_hyper(config.agent)


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """``config.population`` agents of the kind ``config.agent`` in ``env``."""
    agent = agents.build(env.spec, config.agent)
    lanes_env = rollout.autoreset(env)
    replay = ring(config.capacity)
    population, lanes, warmup = config.population, config.lanes, config.warmup * config.population

    def init(key: Key, hyper: PyTree) -> State:
        hyper = as_arrays(hyper)
        if config.shared_replay and hyper.discount.ndim:
            raise ValueError(
                "a shared replay stores the discount, which must then be one number for all agents"
            )
        key, key_agents, key_lanes = jax.random.split(key, 3)
        states = jax.vmap(agent.init, (0, tree.axes(hyper)))(jax.random.split(key_agents, population), hyper)
        start = partial(rollout.start, lanes_env, ())
        store = replay.init(example_transition(env.spec))
        if not config.shared_replay:
            store = tree.repeat(store, population)
        losses = jax.eval_shape(learn_all, states, store, hyper, key)[1]
        return State(
            key=key,
            hyper=hyper,
            env_steps=jnp.int32(0),
            generation=jnp.int32(0),
            metrics=Metrics(
                fitness=jnp.zeros(population),
                episodes=jnp.zeros(population, jnp.int32),
                losses=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), losses),
            ),
            agents=states,
            lanes=jax.vmap(jax.vmap(start))(jax.random.split(key_lanes, (population, lanes))),
            returns=tree.repeat(tree.repeat(rollout.no_returns(), lanes), population),
            replay=store,
        )

    def collect_one(lane: rollout.Lane, params: Params, hyper: PyTree, env_steps: Array, key: Key) -> Any:
        """One lane of one agent plays ``steps`` steps: the lane, transitions [T], done [T]."""
        exploration = agent.exploration(hyper, env_steps // population)
        noise = {"random": env_steps < warmup, "exploration": exploration}
        lane, (rows, done) = rollout.experience(
            lanes_env, agent, params, lane, key, config.steps, **noise, discount=hyper.discount
        )
        return lane, rows, done

    def collect(s: State) -> State:
        """Every agent plays in its lanes, uniformly at random during the warm-up."""
        key, key_play = jax.random.split(s.key)
        keys = jax.random.split(key_play, (population, lanes))
        over_lanes = jax.vmap(collect_one, (0, None, None, None, 0))
        over_agents = jax.vmap(over_lanes, (0, 0, tree.axes(s.hyper), None, 0))
        played, rows, done = over_agents(
            s.lanes, agent.params(s.agents), s.hyper, s.env_steps, keys
        )  # rows [P, N, T]
        returns = jax.vmap(jax.vmap(rollout.track))(s.returns, rows.reward, done)
        rows = jax.vmap(tree.flatten)(rows)  # [P, N * T]
        valid = jnp.ones(rows.reward.shape, jnp.bool_)
        observed = jax.vmap(agent.observe)(s.agents, rows.obs, valid)
        if config.shared_replay:
            store = replay.add(s.replay, tree.flatten(rows), valid.reshape(-1))
        else:
            store = jax.vmap(replay.add)(s.replay, rows, valid)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + population * lanes * config.steps,
            generation=s.generation + 1,
            metrics=replace(s.metrics, fitness=returns.latest.mean(1), episodes=returns.episodes.sum(1)),
            agents=observed,
            lanes=played,
            returns=returns,
            replay=store,
        )

    def learn_one(state: PyTree, store: PyTree, hyper: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        """``updates`` gradient steps of one agent; the losses of the last."""

        def update(state: PyTree, key: Key) -> tuple[PyTree, PyTree]:
            key_sample, key_learn = jax.random.split(key)
            return agent.learn(state, replay.sample(store, key_sample, config.batch), hyper, key_learn)

        state, losses = jax.lax.scan(update, state, jax.random.split(key, config.updates))
        return state, tree.take(losses, -1)

    def learn_all(states: PyTree, store: PyTree, hyper: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        in_axes = (0, None if config.shared_replay else 0, tree.axes(hyper), 0)
        return jax.vmap(learn_one, in_axes)(states, store, hyper, jax.random.split(key, population))

    def learn(s: State) -> State:
        """Every agent takes its gradient steps, once the warm-up is over."""
        key, key_learn = jax.random.split(s.key)
        # The warm-up ends for all agents and seeds in the same iteration, so this stays one branch.
        states, losses = jax.lax.cond(
            tree.any_lane(s.env_steps >= warmup),
            lambda: learn_all(s.agents, s.replay, s.hyper, key_learn),
            lambda: (s.agents, s.metrics.losses),
        )
        return replace(s, key=key, agents=states, metrics=replace(s.metrics, losses=losses))

    def policy(s: State) -> Params:
        """The agent whose last episode returned most."""
        return tree.take(agent.params(s.agents), jnp.argmax(s.metrics.fitness))

    def act(params: Params, memory: PyTree, obs: Array, key: Key) -> tuple[PyTree, Array]:
        return memory, agent.act(key, params, obs, 0.0)

    return Method(
        init=init,
        step=chain(collect, learn),
        policy=policy,
        act=act,
        hyper=default_hyper(config),
        steps_bound=population * lanes * config.steps,
        individuals=lambda s: agent.params(s.agents),
    )


METHOD = Recipe(
    build,
    Config,
    default_hyper,
    agents={"agent": {name: module.Config() for name, module in agents.AGENTS.items()}},
)
