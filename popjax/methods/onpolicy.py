"""On-policy agents side by side, each with its own environment lanes; one is the plain algorithm.

What ``independent`` is to agents with a replay. A rollout is learned from once, in the iteration that played
it; episodes go on from one rollout to the next, and both may end anywhere in the other.

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
from popjax.agents import a2c
from popjax.checks import check_least
from popjax.core import Env, Key, Method, Params, PyTree, Trajectory, as_arrays, chain, stacked
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
    env_steps: Array  # int32 [] summed over agents and lanes
    generation: Array  # int32 [] iterations
    metrics: Metrics
    agents: PyTree = stacked()
    lanes: rollout.Lane = stacked()  # [P, N]
    returns: rollout.Returns = stacked()  # [P, N]
    trajectory: Trajectory = stacked()  # [P, T, N] of this iteration


def default_hyper(config: Config) -> PyTree:
    """The numbers of the kind of agent that there is."""
    return agents.default_hyper(config.agent)


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """``config.population`` agents of the kind ``config.agent`` in ``env``."""
    length = config.steps or agents.default_rollout(config.agent)
    population, lanes = config.population, config.lanes
    agent = agents.build_on_policy(env.spec, config.agent, lanes * length)
    lanes_env = rollout.autoreset(env)

    def init(key: Key, hyper: PyTree) -> State:
        hyper = as_arrays(hyper)
        key, key_agents, key_lanes = jax.random.split(key, 3)
        states = jax.vmap(agent.init, (0, tree.axes(hyper)))(jax.random.split(key_agents, population), hyper)
        start = jax.vmap(jax.vmap(partial(rollout.start, lanes_env, agent.memory)))
        played = start(jax.random.split(key_lanes, (population, lanes)))
        trajectory = jax.eval_shape(collect_all, played, agent.params(states), hyper, key)[1]
        losses = jax.eval_shape(learn_all, states, trajectory, hyper, key)[1]
        return State(
            key=key,
            hyper=hyper,
            env_steps=jnp.int32(0),
            generation=jnp.int32(0),
            metrics=Metrics(
                fitness=jnp.zeros(population),
                episodes=jnp.zeros(population, jnp.int32),
                losses=_zeros(losses),
            ),
            agents=states,
            lanes=played,
            returns=tree.repeat(tree.repeat(rollout.no_returns(), lanes), population),
            trajectory=_zeros(trajectory),
        )

    def collect_one(lane: rollout.Lane, params: Params, hyper: PyTree, key: Key) -> Any:
        """One lane of one agent plays a rollout: the lane, trajectory [T]."""
        lane, (rows, _, _) = rollout.trajectory(
            lanes_env, agent, params, lane, key, length, discount=hyper.discount
        )
        return lane, rows

    def collect_all(played: rollout.Lane, params: Params, hyper: PyTree, key: Key) -> Any:
        """All lanes [P, N] and trajectories [P, T, N]."""
        over_lanes = jax.vmap(collect_one, (0, None, None, 0), (0, 1))
        over_agents = jax.vmap(over_lanes, (0, 0, tree.axes(hyper), 0))
        return over_agents(played, params, hyper, jax.random.split(key, (population, lanes)))

    def collect(s: State) -> State:
        """Every agent plays in its lanes."""
        key, key_play = jax.random.split(s.key)
        played, rows = collect_all(s.lanes, agent.params(s.agents), s.hyper, key_play)
        track = jax.vmap(jax.vmap(rollout.track, (0, 1, 1)))
        returns = track(s.returns, rows.reward, rows.done)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + population * lanes * length,
            generation=s.generation + 1,
            metrics=replace(s.metrics, fitness=returns.latest.mean(1), episodes=returns.episodes.sum(1)),
            lanes=played,
            returns=returns,
            trajectory=rows,
        )

    def learn_all(states: PyTree, trajectory: Trajectory, hyper: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        learn_one = jax.vmap(agent.learn, (0, 0, tree.axes(hyper), 0))
        return learn_one(states, trajectory, hyper, jax.random.split(key, population))

    def learn(s: State) -> State:
        """Every agent learns from its trajectory."""
        key, key_learn = jax.random.split(s.key)
        states, losses = learn_all(s.agents, s.trajectory, s.hyper, key_learn)
        return replace(s, key=key, agents=states, metrics=replace(s.metrics, losses=losses))

    def policy(s: State) -> Params:
        """The agent whose last episode returned most."""
        return tree.take(agent.params(s.agents), jnp.argmax(s.metrics.fitness))

    def act(params: Params, memory: PyTree, obs: Array, key: Key) -> tuple[PyTree, Array]:
        return agent.act(key, params, memory, obs, 0.0)[:2]

    return Method(
        init=init,
        step=chain(collect, learn),
        policy=policy,
        act=act,
        hyper=default_hyper(config),
        steps_bound=population * lanes * length,
        memory=agent.memory,
        individuals=lambda s: agent.params(s.agents),
    )


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


METHOD = Recipe(
    build,
    Config,
    default_hyper,
    agents={"agent": {name: module.Config() for name, module in agents.ON_POLICY_AGENTS.items()}},
)
