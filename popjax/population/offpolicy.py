"""Agents with replays, side by side in lanes of their own: the phases ``collect`` and ``learn`` of every
method that has such a population.

A method's Config, Metrics and State extend the ones here, so that its own phases stand beside these two in
one chain::

    base = offpolicy.build(env, config, lambda hyper: hyper.agent)
    init = lambda key, hyper: State(**base.fields(key, hyper), mine=...)
    step = chain(base.collect, base.learn, mate)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import agents, counting, rollout, tree
from popjax.agents import sac
from popjax.checks import check_least
from popjax.core import Env, Key, Params, PyTree, as_arrays, example_transition, stacked
from popjax.population import drives, lanes, learning, policy
from popjax.population.lanes import Lanes
from popjax.population.parts import Parts
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


@struct.dataclass
class Metrics:
    """Metrics of an iteration.

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


S = TypeVar("S", bound=State)
AGENTS: dict[str, dict[str, Any]] = {
    "agent": {name: module.Config() for name, module in agents.AGENTS.items()},
    "drive": drives.KINDS,
}
"""The kinds that the fields of Config may be, for a Recipe."""


def build(
    env: Env, config: Config, numbers: Callable[[Any], Any] = lambda hyper: hyper, recent: int = 0
) -> Parts:
    """Return the parts for ``config.population`` agents of the kind ``config.agent`` in ``env``.

    ``numbers`` finds the agents' own in a method's Hyper; the drive's are its field ``drive``. ``recent`` is
    how many episodes of each lane ``lanes.Account`` remembers. A row's discount is that of the agent which
    learns from it now, whatever it was when the row was written.
    """
    population, shape = config.population, (config.population, config.lanes)
    drive = drives.build(env.spec, config.drive, *shape)
    lanes_env = drive.env(rollout.autoreset(env))
    agent = agents.build(lanes_env.spec, config.agent)
    stride = config.lanes * (population if config.shared_replay else 1)
    replay = ring(config.capacity // stride * stride if drive.horizon else config.capacity)
    warmup, taken = config.warmup * population, population * config.lanes * config.steps
    learn_all = learning.everyone(agent.learn)

    def fields(key: Key, hyper: PyTree) -> dict[str, Any]:
        hyper = as_arrays(hyper)
        own = numbers(hyper)
        if config.shared_replay and own.discount.ndim:
            raise ValueError(
                "a shared replay stores the discount, which must then be one number for all agents"
            )
        key, key_agents, key_lanes, key_drive = jax.random.split(key, 4)
        states = jax.vmap(agent.init, (0, tree.axes(own)))(jax.random.split(key_agents, population), own)
        row = example_transition(lanes_env.spec)
        store = replay.init(episodes.numbered(row, jnp.int32(0)) if drive.horizon else row)
        store = store if config.shared_replay else tree.repeat(store, population)
        held = drive.init(key_drive)
        told = learning.no_losses(update, (states, held), store, hyper, key)
        return {
            "key": key,
            "hyper": hyper,
            "env_steps": counting.none(),
            "generation": jnp.int32(0),
            "metrics": Metrics(jnp.zeros(population), jnp.zeros(population, jnp.int32), *told),
            "replay": store,
            "drive": held,
            "agents": states,
            "lanes": lanes.start(lanes_env, key_lanes, shape, recent=recent),
        }

    def collect(s: S) -> S:
        """Play every agent in its lanes, uniformly at random during the warm-up."""
        key, key_play = jax.random.split(s.key)
        scale = agent.exploration(numbers(s.hyper), s.env_steps / population)
        act = policy.everyone(agent.act, jax.vmap(agent.policy)(s.agents), scale)
        act = policy.randomly(act, env.spec, s.env_steps < warmup)
        keep = lanes.numbered(lanes.keep_transitions(numbers(s.hyper).discount))
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
        """Take one gradient step of every agent on a batch of its own, then one of the drive."""
        states, held = learners
        key_sample, key_learn, key_drive = jax.random.split(key, 3)
        sample = jax.vmap(replay.sample, (None if config.shared_replay else 0, 0, None))
        rows = sample(store, jax.random.split(key_sample, population), config.batch)  # [P, B]
        paid, bonus = drive.pay(held, rows, hyper)
        gamma = tree.align(numbers(hyper).discount, paid.discount)
        paid = replace(paid, discount=jnp.where(paid.discount > 0, gamma, 0.0))
        states, losses = learn_all(states, paid, numbers(hyper), key_learn)
        held, told = drive.learn(held, rows, None, partial(near, store), hyper, key_drive)
        return (states, held), (losses, bonus, told)

    def near(store: Ring, key: Key) -> tuple[Array, Array, Array]:
        """Draw about a batch of pairs of states for the drive, evenly from all replays."""
        read = partial(episodes.pairs, stride=stride, horizon=drive.horizon)
        if config.shared_replay:
            return read(store, key, config.batch)
        keys = jax.random.split(key, population)
        share = -(-config.batch // population)
        return tree.flatten(jax.vmap(lambda one, key: read(one, key, share))(store, keys))

    def learn(s: S) -> S:
        """Take the gradient steps of every agent, once the warm-up is over."""
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

    def deploy(s: S, policies: Params) -> Params:
        return drive.deploy(s.drive, policies)

    def individuals(s: S) -> Params:
        return deploy(s, jax.vmap(agent.policy)(s.agents))

    def exploration(s: S) -> Array:
        return jnp.mean(agent.exploration(numbers(s.hyper), s.env_steps / population))

    return Parts(
        fields=fields,
        collect=collect,
        learn=learn,
        individuals=individuals,
        deploy=deploy,
        act=drive.act(agent.act),
        agent=agent,
        steps=taken,
        exploration=exploration,
        learning_starts=warmup,
    )
