"""On-policy agents side by side, each with its own environment lanes; one is the plain algorithm.

What ``independent`` is to agents with a replay. A rollout is learned from once, in the iteration that played
it; episodes go on from one rollout to the next, and both may end anywhere in the other. A ``drive`` may add a
reward for novelty or for skills to the task's: it learns from the rollout first, about once from every step,
and then pays.

An iteration: collect -> (reward ->) learn.
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
from popjax.population import drives, lanes, learning, policy
from popjax.population.lanes import Lanes
from popjax.recipe import Recipe, recorded
from popjax.replay import episodes
from popjax.replay.ring import full


@dataclass(frozen=True)
class Config:
    """Sizes of the population and its rollouts."""

    agent: agents.AnyOnPolicyConfig = field(default_factory=a2c.Config)  # the kind of agent, and its networks
    population: int = 1  # agents
    lanes: int = 4  # environments of each agent
    steps: int = 0  # environment steps of each lane in a rollout; 0: the agent's own, 5 (a2c) or 1,000 (ppo)
    drive: drives.AnyConfig | None = None  # reward beside the task's: collab, rnd, diayn or none

    def __post_init__(self) -> None:
        check_least(self, 1, "population", "lanes")
        check_least(self, 0, "steps")


Hyper = Any
"""The ``Hyper`` of the agent, and the drive's in its field ``drive``; a leaf is [] for all agents or, of the
agent, [P] for one number each."""
DRIVE_BATCH = 256
"""Steps of each agent's rollout from which a drive takes a gradient step."""


@struct.dataclass
class Metrics:
    """Metrics of an iteration.

    fitness:  float32 [P] return of the last finished episode, mean over lanes.
    episodes: int32 [P]   finished episodes.
    losses:   [P] each    the agent's losses in the last update.
    bonus:    float32 [P] mean of what the drive added to the rollout's rewards; () without a drive.
    drive:    [] each     the drive's losses before it; () without a drive.
    """

    fitness: Array
    episodes: Array
    losses: PyTree
    bonus: PyTree
    drive: PyTree


@struct.dataclass
class State:
    """Everything that training carries; ``drive`` is () without one."""

    key: Key
    hyper: PyTree
    env_steps: counting.Count  # [] summed over agents and lanes
    generation: Array  # int32 [] iterations
    metrics: Metrics
    drive: PyTree
    agents: PyTree = stacked()
    lanes: Lanes = stacked()  # [P, N]
    trajectory: Trajectory = stacked()  # [P, T, N] of this iteration, rewarded by task and drive


def default_hyper(config: Config) -> PyTree:
    """Return the numbers of the kinds of agent and drive that there are."""
    return drives.with_numbers(agents.default_hyper(config.agent), config.drive)


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return ``config.population`` agents of the kind ``config.agent`` in ``env``."""
    length = config.steps or agents.default_rollout(config.agent)
    population, shape = config.population, (config.population, config.lanes)
    drive = drives.build(env.spec, config.drive, *shape)
    lanes_env = drive.env(rollout.autoreset(env))
    agent = agents.build_on_policy(lanes_env.spec, config.agent, config.lanes * length)
    learn_all = learning.everyone(agent.learn)

    def init(key: Key, hyper: PyTree) -> State:
        hyper = as_arrays(hyper)
        key, key_agents, key_lanes, key_drive = jax.random.split(key, 4)
        states = jax.vmap(agent.init, (0, tree.axes(hyper)))(jax.random.split(key_agents, population), hyper)
        start = lanes.start(lanes_env, key_lanes, shape, agent.memory)
        trajectory = learning.zeros(jax.eval_shape(play, start, states, hyper, key)[1])
        held = drive.init(key_drive)
        bonus, told = learning.no_losses(pay, held, trajectory, hyper, key)
        return State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=jnp.int32(0),
            metrics=Metrics(
                fitness=jnp.zeros(population),
                episodes=jnp.zeros(population, jnp.int32),
                losses=learning.no_losses(learn_all, states, trajectory, hyper, key),
                bonus=bonus,
                drive=told,
            ),
            drive=held,
            agents=states,
            lanes=start,
            trajectory=trajectory,
        )

    def play(played: Lanes, states: PyTree, hyper: PyTree, key: Key) -> tuple[Lanes, Trajectory]:
        """Play a rollout of every agent: lanes [P, N], trajectories [P, T, N]."""
        act = policy.everyone(agent.act, jax.vmap(agent.policy)(states), 1.0)
        keep = lanes.keep_trajectory(hyper.discount)
        after, rows = lanes.play(lanes_env, act, played, key, length, keep, agent.memory)
        return after, lanes.trajectories(rows, played.memory)

    def collect(s: State) -> State:
        """Play a rollout of every agent in its lanes."""
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

    def pay(
        held: PyTree, trajectory: Trajectory, hyper: PyTree, key: Key
    ) -> tuple[tuple[PyTree, Array], tuple[PyTree, PyTree]]:
        """Return the drive after a rollout, the rewards [P, T, N] with its own; the mean bonus and its
        losses."""
        episode = jnp.cumsum(trajectory.done, 1) - trajectory.done
        numbered = episodes.numbered(trajectory, episode.astype(jnp.int32))
        by_time, done = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (numbered, trajectory.done))
        held = drive.observe(held, by_time, done, jnp.ones_like(done), hyper)
        rows, store = jax.vmap(tree.flatten)(numbered), full(tree.flatten(by_time, 3))
        size, steps = min(DRIVE_BATCH, config.lanes * length), -(-config.lanes * length // DRIVE_BATCH)

        def near(key: Key) -> tuple[Array, Array, Array]:
            return episodes.pairs(store, key, DRIVE_BATCH, population * config.lanes, drive.horizon)

        def update(held: PyTree, key: Key) -> tuple[PyTree, PyTree]:
            key_rows, key_learn = jax.random.split(key)
            index = jax.random.randint(key_rows, (population, size), 0, config.lanes * length)
            return drive.learn(held, jax.vmap(tree.take)(rows, index), None, near, hyper, key_learn)

        told = learning.no_losses(update, held, key)
        held, told = learning.steps(update, held, steps, key, told)
        paid, bonus = drive.pay(held, rows, hyper)
        return (held, paid.reward.reshape(trajectory.reward.shape)), (bonus, told)

    def reward(s: State) -> State:
        """Train the drive on the rollout and add its reward."""
        key, key_drive = jax.random.split(s.key)
        (held, rewards), (bonus, told) = pay(s.drive, s.trajectory, s.hyper, key_drive)
        metrics = replace(s.metrics, bonus=bonus, drive=told)
        trajectory = replace(s.trajectory, reward=rewards)
        return replace(s, key=key, drive=held, metrics=metrics, trajectory=trajectory)

    def learn(s: State) -> State:
        """Train every agent on its trajectory."""
        key, key_learn = jax.random.split(s.key)
        states, losses = learn_all(s.agents, s.trajectory, s.hyper, key_learn)
        return replace(s, key=key, agents=states, metrics=replace(s.metrics, losses=losses))

    def individuals(s: State) -> Params:
        return drive.deploy(s.drive, jax.vmap(agent.policy)(s.agents))

    phases = (collect, learn) if config.drive is None else (collect, reward, learn)
    return Method(
        init=init,
        step=chain(*phases),
        policy=lambda s: tree.take(individuals(s), jnp.argmax(s.metrics.fitness)),  # the last episode's best
        act=drive.act(agent.act),
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
    agents={
        "agent": {name: module.Config() for name, module in agents.ON_POLICY_AGENTS.items()},
        "drive": drives.KINDS,
    },
)
