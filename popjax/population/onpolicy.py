"""On-policy agents side by side in lanes of their own: the phases ``collect`` and ``learn`` of every method
with such a population.

The counterpart of ``offpolicy``, with the same names. Each rollout is learned from once, in the iteration
that played it. Episodes go on across rollouts, and a rollout may span several episodes. A ``drive`` first
learns from the rollout, about once from every step, and then adds its reward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import agents, counting, rollout, tree
from popjax.agents import a2c
from popjax.checks import check_least, check_types
from popjax.core import Env, Key, Params, PyTree, Trajectory, as_arrays, stacked
from popjax.population import drives, lanes, learning, parts, policy
from popjax.population.lanes import Lanes
from popjax.population.parts import Metrics, Parts
from popjax.replay import episodes
from popjax.replay.ring import full


@dataclass(frozen=True)
class Config:
    """Sizes of the population and its rollouts."""

    agent: agents.AnyOnPolicyConfig = field(default_factory=a2c.Config)  # the kind of agent, and its networks
    population: int = 1  # agents
    lanes: int = 4  # environments of each agent
    steps: int = 0  # environment steps of each lane in a rollout; 0: the default, 5 (a2c) or 1,000 (ppo)
    drive: drives.AnyConfig | None = None  # reward added to the task's: collab, rnd, diayn or none

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, 1, "population", "lanes")
        check_least(self, 0, "steps")


DRIVE_BATCH = 256
"""Steps of each agent's rollout from which a drive takes a gradient step."""


@struct.dataclass
class State(parts.State):
    """Everything that training carries; further fields in ``parts.State``."""

    trajectory: Trajectory = stacked()  # [P, T, N] of this iteration, rewarded by task and drive


S = TypeVar("S", bound=State)
AGENTS: dict[str, dict[str, Any]] = {
    "agent": {name: module.Config() for name, module in agents.ON_POLICY_AGENTS.items()},
    "drive": drives.KINDS,
}
"""The kinds that these fields of Config may be, for a Recipe."""


def build(
    env: Env, config: Config, agent_hyper: Callable[[Any], Any] = lambda hyper: hyper, recent: int = 0
) -> Parts:
    """Return the parts for ``config.population`` agents of the kind ``config.agent`` in ``env``.

    ``agent_hyper`` selects the agents' Hyper from a method's; the drive's is its field ``drive``.
    ``recent`` is the number of past episodes of each lane that ``lanes.Account`` keeps.
    """
    length = config.steps or agents.default_rollout(config.agent)
    population, shape = config.population, (config.population, config.lanes)
    drive = drives.build(env.spec, config.drive, *shape)
    lanes_env = drive.env(rollout.autoreset(env))
    agent = agents.build_on_policy(lanes_env.spec, config.agent, config.lanes * length)
    learn_all = learning.traced_once(learning.everyone(agent.learn))

    def fields(key: Key, hyper: PyTree) -> dict[str, Any]:
        hyper = as_arrays(hyper)
        own = agent_hyper(hyper)
        key, key_agents, key_lanes, key_drive = jax.random.split(key, 4)
        states = jax.vmap(agent.init, (0, tree.axes(own)))(jax.random.split(key_agents, population), own)
        start = lanes.start(lanes_env, key_lanes, shape, agent.memory, recent)
        trajectory = learning.zeros(jax.eval_shape(play, start, states, hyper, key)[1])
        held = drive.init(key_drive)
        bonus, told = learning.no_losses(pay, held, trajectory, hyper, key)
        losses = learning.no_losses(learn_all, states, trajectory, own, key)
        return {
            "key": key,
            "hyper": hyper,
            "env_steps": counting.none(),
            "generation": jnp.int32(0),
            "metrics": Metrics(jnp.zeros(population), jnp.zeros(population, jnp.int32), losses, bonus, told),
            "drive": held,
            "agents": states,
            "lanes": start,
            "trajectory": trajectory,
        }

    def play(played: Lanes, states: PyTree, hyper: PyTree, key: Key) -> tuple[Lanes, Trajectory]:
        """Play a rollout of every agent: lanes [P, N], trajectories [P, T, N]."""
        act = policy.everyone(agent.act, jax.vmap(agent.policy)(states), 1.0)
        keep = lanes.keep_trajectory(agent_hyper(hyper).discount)
        after, rows = lanes.play(lanes_env, act, played, key, length, keep, agent.memory)
        return after, lanes.trajectories(rows, played.memory)

    def collect(s: S) -> S:
        """Play a rollout of every agent in its lanes; with a drive, train it and add its reward."""
        key, key_play = jax.random.split(s.key)
        played, trajectory = play(s.lanes, s.agents, s.hyper, key_play)
        s = replace(
            s,
            key=key,
            env_steps=s.env_steps + population * config.lanes * length,
            generation=s.generation + 1,
            metrics=replace(s.metrics, fitness=played.fitness, episodes=played.episodes),
            lanes=played,
            trajectory=trajectory,
        )
        return s if config.drive is None else reward(s)

    @learning.traced_once
    def pay(
        held: PyTree, trajectory: Trajectory, hyper: PyTree, key: Key
    ) -> tuple[tuple[PyTree, Array], tuple[PyTree, PyTree]]:
        """Return the drive after a rollout and the rewards [P, T, N] with its bonus; then the mean bonus and
        the drive's losses."""
        episode = jnp.cumsum(trajectory.done, 1) - trajectory.done
        numbered = episodes.numbered(trajectory, episode.astype(jnp.int32))
        # Rows of an agent that has diverged must not corrupt a shared drive: they do not count, and each is
        # an episode by itself, so that none has a neighbour.
        sound = tree.finite(numbered, 3)  # [P, T, N]
        alone = jnp.broadcast_to(-1 - jnp.arange(length)[:, None], sound.shape)
        nothing = replace(jax.tree.map(jnp.zeros_like, numbered), episode=alone)
        numbered = tree.where(sound, numbered, nothing)
        by_time, done, valid = jax.tree.map(
            lambda x: jnp.moveaxis(x, 1, 0), (numbered, trajectory.done, sound)
        )
        held = drive.observe(held, by_time, done, valid, hyper)
        rows, store = jax.vmap(tree.flatten)(numbered), full(tree.flatten(by_time, 3))
        counted = sound.reshape(population, -1)
        size, steps = min(DRIVE_BATCH, config.lanes * length), -(-config.lanes * length // DRIVE_BATCH)

        def near(key: Key) -> tuple[Array, Array, Array]:
            return episodes.pairs(store, key, DRIVE_BATCH, population * config.lanes, drive.horizon)

        def update(held: PyTree, key: Key) -> tuple[PyTree, PyTree]:
            key_rows, key_learn = jax.random.split(key)
            index = jax.random.randint(key_rows, (population, size), 0, config.lanes * length)
            batch, counts = jax.vmap(tree.take)((rows, counted), index)
            return drive.learn(held, batch, counts, near, hyper, key_learn)

        told = learning.no_losses(update, held, key)
        held, told = learning.steps(update, held, steps, key, told)
        paid, bonus = drive.pay(held, rows, hyper)
        return (held, paid.reward.reshape(trajectory.reward.shape)), (bonus, told)

    def reward(s: S) -> S:
        """Train the drive on the rollout and add its reward."""
        key, key_drive = jax.random.split(s.key)
        (held, rewards), (bonus, told) = pay(s.drive, s.trajectory, s.hyper, key_drive)
        metrics = replace(s.metrics, bonus=bonus, drive=told)
        trajectory = replace(s.trajectory, reward=rewards)
        return replace(s, key=key, drive=held, metrics=metrics, trajectory=trajectory)

    def learn(s: S) -> S:
        """Train every agent on its trajectory."""
        key, key_learn = jax.random.split(s.key)
        states, losses = learn_all(s.agents, s.trajectory, agent_hyper(s.hyper), key_learn)
        return replace(s, key=key, agents=states, metrics=replace(s.metrics, losses=losses))

    def deploy(s: State, policies: Params) -> Params:
        return drive.deploy(s.drive, policies)

    def individuals(s: State) -> Params:
        return deploy(s, jax.vmap(agent.policy)(s.agents))

    return Parts(
        fields=fields,
        collect=collect,
        learn=learn,
        individuals=individuals,
        deploy=deploy,
        hand_over=drive.hand_over,
        act=drive.act(agent.act),
        agent=agent,
        steps=population * config.lanes * length,
        unroll=agent.unroll if env.spec.discrete else None,
    )
