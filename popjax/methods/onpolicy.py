"""On-policy agents side by side, each with its own environment lanes; one is the plain algorithm.

What ``independent`` is to agents with a replay. A rollout is learned from once, in the iteration that played
it; episodes go on from one rollout to the next, and both may end anywhere in the other.

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
from popjax.agents import a2c
from popjax.checks import check_least
from popjax.core import Env, Key, Method, Params, PyTree, Trajectory, as_arrays, chain, stacked
from popjax.population import lanes, learning, policy
from popjax.population.lanes import Lanes
from popjax.recipe import Recipe, recorded


@dataclass(frozen=True)
class Config:
    """Sizes of the population and its rollouts."""

    agent: agents.AnyOnPolicyConfig = field(default_factory=a2c.Config)  # the kind of agent, and its networks
    population: int = 1  # agents
    lanes: int = 4  # environments of each agent
    steps: int = 0  # environment steps of each lane in a rollout; 0: the agent's own, 5 (a2c) or 1,000 (ppo)

    def __post_init__(self) -> None:
        check_least(self, 1, "population", "lanes")
        check_least(self, 0, "steps")


Hyper = Any
"""The ``Hyper`` of the agent; a leaf is [] for all agents or [P] for one number each."""


@struct.dataclass
class Metrics:
    """What an iteration shows.

    fitness:  float32 [P] return of the last finished episode, mean over lanes.
    episodes: int32 [P]   finished episodes.
    losses:   [P] each    the agent's losses in the last update.
    """

    fitness: Array
    episodes: Array
    losses: PyTree


@struct.dataclass
class State:
    """Everything that training carries."""

    key: Key
    hyper: PyTree
    env_steps: counting.Count  # [] summed over agents and lanes
    generation: Array  # int32 [] iterations
    metrics: Metrics
    agents: PyTree = stacked()
    lanes: Lanes = stacked()  # [P, N]
    trajectory: Trajectory = stacked()  # [P, T, N] of this iteration


def default_hyper(config: Config) -> PyTree:
    """Return the numbers of the kind of agent that there is."""
    return agents.default_hyper(config.agent)


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return ``config.population`` agents of the kind ``config.agent`` in ``env``."""
    length = config.steps or agents.default_rollout(config.agent)
    population, shape = config.population, (config.population, config.lanes)
    agent = agents.build_on_policy(env.spec, config.agent, config.lanes * length)
    lanes_env = rollout.autoreset(env)
    learn_all = learning.everyone(agent.learn)

    def init(key: Key, hyper: PyTree) -> State:
        hyper = as_arrays(hyper)
        key, key_agents, key_lanes = jax.random.split(key, 3)
        states = jax.vmap(agent.init, (0, tree.axes(hyper)))(jax.random.split(key_agents, population), hyper)
        start = lanes.start(lanes_env, key_lanes, shape, agent.memory)
        trajectory = learning.zeros(jax.eval_shape(play, start, states, hyper, key)[1])
        return State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=jnp.int32(0),
            metrics=Metrics(
                fitness=jnp.zeros(population),
                episodes=jnp.zeros(population, jnp.int32),
                losses=learning.no_losses(learn_all, states, trajectory, hyper, key),
            ),
            agents=states,
            lanes=start,
            trajectory=trajectory,
        )

    def play(played: Lanes, states: PyTree, hyper: PyTree, key: Key) -> tuple[Lanes, Trajectory]:
        """A rollout of every agent: lanes [P, N], trajectories [P, T, N]."""
        act = policy.everyone(agent.act, jax.vmap(agent.policy)(states), 1.0)
        keep = lanes.keep_trajectory(hyper.discount)
        after, rows = lanes.play(lanes_env, act, played, key, length, keep, agent.memory)
        return after, lanes.trajectories(rows, played.memory)

    def collect(s: State) -> State:
        """Every agent plays in its lanes."""
        key, key_play = jax.random.split(s.key)
        played, trajectory = play(s.lanes, s.agents, s.hyper, key_play)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + population * config.lanes * length,
            generation=s.generation + 1,
            metrics=replace(s.metrics, fitness=played.fitness, episodes=played.episodes),
            lanes=played,
            trajectory=trajectory,
        )

    def learn(s: State) -> State:
        """Every agent learns from its trajectory."""
        key, key_learn = jax.random.split(s.key)
        states, losses = learn_all(s.agents, s.trajectory, s.hyper, key_learn)
        return replace(s, key=key, agents=states, metrics=replace(s.metrics, losses=losses))

    def individuals(s: State) -> Params:
        return jax.vmap(agent.policy)(s.agents)

    return Method(
        init=init,
        step=chain(collect, learn),
        policy=lambda s: tree.take(individuals(s), jnp.argmax(s.metrics.fitness)),  # the last episode's best
        act=agent.act,
        hyper=default_hyper(config),
        steps_bound=population * config.lanes * length,
        memory=agent.memory,
        individuals=individuals,
        unroll=agent.unroll if env.spec.discrete else None,
    )


METHOD = Recipe(
    build,
    Config,
    default_hyper,
    agents={"agent": {name: module.Config() for name, module in agents.ON_POLICY_AGENTS.items()}},
)
