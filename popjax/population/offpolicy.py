"""Agents with replays, side by side in lanes of their own: the phases ``collect`` and ``learn`` of every
method with such a population.

A method extends the Config, Metrics and State of this module, and chains its own phases with these two::

    base = offpolicy.build(env, config, lambda hyper: hyper.agent)
    init = lambda key, hyper: State(**base.fields(key, hyper), mine=...)
    step = chain(base.collect, base.learn, mate)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import agents, counting, rollout, tree
from popjax.agents import drq, sac
from popjax.checks import check_least, check_types
from popjax.core import Env, Key, Params, PyTree, Replay, Transition, as_arrays, stacked
from popjax.envs import pixels
from popjax.population import drives, lanes, learners, learning, parts, policy
from popjax.population.drives import Drive
from popjax.population.learners import Learners
from popjax.population.parts import Metrics, Parts
from popjax.recipe import Preset
from popjax.replay import episodes, frames
from popjax.replay.frames import Frames, Sight
from popjax.replay.ring import Ring, ring, without_oldest


@dataclass(frozen=True)
class Config:
    """Sizes of the population, its experience and its updates."""

    agent: agents.AnyConfig = field(default_factory=sac.Config)  # the kind of agent, and its networks
    population: int = 1  # agents
    lanes: int = 1  # environments of each agent
    steps: int = 1  # environment steps of each lane per iteration
    updates: int = 1  # gradient steps of each agent per iteration
    batch: int = 256  # transitions per gradient step
    capacity: int = 1_000_000  # transitions that a replay holds at most; they set the size of checkpoints
    warmup: int = 1_000  # uniformly random environment steps of each agent before the first update
    shared_replay: bool = False  # one replay for all agents instead of one each
    drive: drives.AnyConfig | None = None  # reward added to the task's: collab, rnd, diayn or none

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, 1, "population", "lanes", "steps", "updates", "batch", "capacity")
        check_least(self, 0, "warmup")
        if self.batch > self.capacity:
            raise ValueError(
                f"batch {self.batch} exceeds the replay's capacity {self.capacity}; lower batch or raise"
                " capacity"
            )


def _own(s: Any) -> bool:
    """Return whether every agent has a replay of its own."""
    return bool(s.replay.size.ndim > s.generation.ndim)


def _apart(s: Any) -> bool:
    """Return whether every agent has networks of its own."""
    count = jax.tree.leaves(s.agents)[0].shape[s.generation.ndim]
    return bool(count == s.metrics.fitness.shape[-1])


@struct.dataclass
class State(parts.State):
    """Everything that training carries; further fields in ``parts.State``.

    replay: rows as they are kept, with discount 1 as long as the task goes on. Take batches from
            ``Parts.sample``, which puts in each agent's discount and looks up frames.
    frames: None if observations are not stacks of frames.
    """

    replay: Ring = stacked(when=_own)
    frames: Frames | None = stacked(when=_own)
    agents: PyTree = stacked(when=_apart)  # leading axis 1 for heads of one network


@dataclass(frozen=True)
class Common:
    """Sizes of agents that fill one replay and learn from the same batches."""

    population: int = 4  # agents
    lanes: int = 1  # environments of each agent
    steps: int = 1  # environment steps of each lane per iteration
    updates_per_step: float = 1.0  # gradient steps of each agent per environment step of any agent
    batch: int = 256  # transitions per gradient step, common to all agents
    # transitions that the replay holds, rounded down to whole vector steps; they set the size of checkpoints,
    # too
    capacity: int = 1_000_000
    warmup: int = 10_000  # uniformly random environment steps of all agents before the first update

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, 1, "population", "lanes", "steps", "batch", "capacity")
        check_least(self, 0, "warmup")
        learning.whole_updates(self.updates_per_step, self.taken)
        if self.capacity < max(self.batch, self.window):
            raise ValueError(
                f"capacity {self.capacity} is less than a batch of {self.batch} or the {self.window}"
                " transitions that are read around a row; raise it"
            )

    @property
    def players(self) -> int:
        """Agents with lanes of their own."""
        return self.population

    @property
    def taken(self) -> int:
        """Environment steps of an iteration, of all agents."""
        return self.players * self.lanes * self.steps

    @property
    def window(self) -> int:
        """Transitions that are read around a row, from the first to the last."""
        return self.players * self.lanes

    def sizes(self, agent: agents.AnyConfig, drive: drives.AnyConfig | None = None) -> Config:
        """Return the Config of such agents that ``build`` reads."""
        return Config(
            agent=agent,
            population=self.population,
            lanes=self.lanes,
            steps=self.steps,
            updates=learning.whole_updates(self.updates_per_step, self.taken),
            batch=self.batch,
            capacity=self.capacity,
            warmup=-(-self.warmup // self.players),  # of each agent
            shared_replay=True,
            drive=drive,
        )


FROM_PIXELS: dict[str, Any] = {"population": 2, "warmup": 1_000, "capacity": 500_000}
"""Sizes of Collaborative Exploration's experiments from pixels, for fields of ``Common``."""
CLIPPED = MappingProxyType({"reward_clip": 1})
"""Options of Atari games for DQN agents, which learn from rewards in [-1, 1]; evaluations report unclipped
returns."""


def from_pixels(
    default_config: Callable[[Any], Any], default_hyper: Callable[[Any], Any], task: str
) -> Preset | None:
    """Return the constants of DrQ agents for a task such as "pixels/walker-walk"; None for other tasks."""
    choices = pixels.choices(task)
    if choices is None:
        return None
    config = replace(default_config(drq.Config()), capacity=choices)
    return Preset(config, default_hyper(config), choices)


S = TypeVar("S", bound=State)
AGENTS: dict[str, dict[str, Any]] = {
    "agent": {name: module.Config() for name, module in agents.AGENTS.items()},
    "drive": drives.KINDS,
}
"""The kinds that these fields of Config may be, for a Recipe."""


def build(
    env: Env,
    config: Config,
    agent_hyper: Callable[[Any], Any] = lambda hyper: hyper,
    recent: int = 0,
    adapt: Callable[[Learners], Learners] = lambda crew: crew,
    drive: Drive | None = None,
) -> Parts:
    """Return the parts for ``config.population`` agents of the kind ``config.agent`` in ``env``.

    agent_hyper: selects the agents' Hyper from a method's; the drive's is its field ``drive``.
    recent:      past episodes of each lane that ``lanes.Account`` keeps.
    adapt:       changes how the agents act or learn; a ``draw`` for all agents needs a shared replay.
    drive:       used instead of that of ``config.drive``.

    A replay keeps whether the task went on, as a discount of 1 or 0; ``sample`` and ``learn`` put each
    agent's gamma in its place. So agents whose discounts differ or change can share a replay.

    Raises:
        ValueError: the replay cannot hold one environment step of all lanes that fill it.
    """
    population = config.population
    if drive is None:
        eyes = agents.build(env.spec, config.agent).eyes
        drive = drives.build(env.spec, config.drive, population, config.lanes, eyes)
    lanes_env = drive.env(rollout.autoreset(env))
    agent = agents.build(lanes_env.spec, config.agent)
    crew = adapt(learners.build(lanes_env.spec, config.agent, population, agent_hyper))
    keep = crew.keep or (lambda rows, hyper, key: rows if drive.horizon else rows.plain)
    shape = (1 if crew.as_one else population, config.lanes)
    stride = config.lanes * (shape[0] if config.shared_replay else 1)
    if config.capacity < stride:
        raise ValueError(
            f"capacity {config.capacity} holds less than one environment step of all {stride} lanes that fill"
            " a replay; raise it"
        )
    replay = ring(config.capacity // stride * stride if drive.horizon or crew.draw else config.capacity)
    sight = frames.sight(lanes_env.spec, config.capacity, stride, config.steps)
    each = (lambda f: f) if config.shared_replay else jax.vmap
    warmup, taken = config.warmup * shape[0], shape[0] * config.lanes * config.steps

    def fields(key: Key, hyper: PyTree) -> dict[str, Any]:
        hyper = as_arrays(hyper)
        key, key_agents, key_lanes, key_drive = jax.random.split(key, 4)
        states = crew.init(key_agents, hyper)
        row = episodes.numbered(sight.example, jnp.int32(0))
        store = replay.init(jax.eval_shape(keep, row, hyper, key))
        store = store if config.shared_replay else tree.repeat(store, population)
        start, held = lanes.start(lanes_env, key_lanes, shape, recent=recent), drive.init(key_drive)
        seen = each(sight.start)(tree.flatten(start.obs) if config.shared_replay else start.obs)
        told = learning.no_losses(update, (states, held), (store, seen), hyper, key)
        return {
            "key": key,
            "hyper": hyper,
            "env_steps": counting.none(),
            "generation": jnp.int32(0),
            "metrics": Metrics(jnp.zeros(population), jnp.zeros(population, jnp.int32), *told),
            "replay": store,
            "frames": seen,
            "drive": held,
            "agents": states,
            "lanes": start,
        }

    def scale(s: S) -> Array:
        return crew.exploration(s.hyper, s.env_steps / shape[0])

    def collect(s: S) -> S:
        """Play every agent in its lanes, uniformly at random during the warm-up."""
        key, key_play, key_keep = jax.random.split(s.key, 3)
        act = policy.randomly(crew.play(s.agents, s.hyper, scale(s)), env.spec, s.env_steps < warmup)
        record = lanes.numbered(lanes.keep_transitions(1.0))
        played, (rows, done, anew) = lanes.play(lanes_env, act, s.lanes, key_play, config.steps, record)
        valid = jnp.ones(done.shape, jnp.bool_)  # [T, P, N]
        held, kept = drive.observe(s.drive, rows, done, valid, s.hyper), keep(rows, s.hyper, key_keep)
        by_replay, after = (kept, anew, valid), played.obs
        if config.shared_replay:
            by_replay = jax.tree.map(lambda x: x.reshape(len(x), -1, *x.shape[3:]), by_replay)  # [T, P * N]
            after = tree.flatten(after)
        else:
            by_replay = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), by_replay)  # [P, T, N]
        store, seen = each(_stored(replay, sight))(s.replay, s.frames, *by_replay, after)
        observed, valid = each(tree.flatten)((by_replay[0].obs, by_replay[2]))
        fitness, finished = (jnp.broadcast_to(x, (population,)) for x in (played.fitness, played.episodes))
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + taken,
            generation=s.generation + 1,
            metrics=replace(s.metrics, fitness=fitness, episodes=finished),
            replay=store,
            frames=seen,
            drive=held,
            agents=crew.observe(s.agents, observed, valid),
            lanes=played,
        )

    @learning.traced_once
    def update(
        learned: tuple[PyTree, PyTree], stored: tuple[Ring, PyTree], hyper: PyTree, key: Key
    ) -> tuple[tuple[PyTree, PyTree], tuple[PyTree, PyTree, PyTree]]:
        """Take one gradient step of every agent, then one of the drive."""
        (states, held), (store, seen) = learned, stored
        key_draw, key_learn, key_drive = jax.random.split(key, 3)
        kept, own = draw(store, key_draw)
        rows, held = each(partial(frames.looked, sight))(seen, kept), seeing(held, states)
        paid, bonus = priced(held, rows, hyper)
        states, losses = crew.learn(states, paid, hyper, key_learn)
        held, told = drive.learn(held, rows, own, partial(near, store, seen), hyper, key_drive)
        return (states, held), (losses, bonus, told)

    def draw(store: Ring, key: Key) -> tuple[Transition, Array | None]:
        """Return rows [P, B] drawn for each agent; or common rows [B], and bool [P, B] that marks the rows
        that each agent played."""
        if crew.draw is None:
            sample = jax.vmap(replay.sample, (None if config.shared_replay else 0, 0, None))
            return sample(store, jax.random.split(key, population), config.batch), None
        slots = crew.draw(store, key, config.batch)
        return store.take(slots), lanes.owner(slots, shape) == jnp.arange(population)[:, None]

    def priced(held: PyTree, rows: Transition, hyper: PyTree) -> tuple[Transition, Array | None]:
        """Return rows [P, B] as each agent learns from them, rewarded by task and drive and with the agent's
        discount; and the mean bonus [P]."""
        paid, bonus = drive.pay(held, rows, hyper)
        gamma = tree.align(agent_hyper(hyper).discount, paid.discount)
        return replace(paid, discount=jnp.where(paid.discount > 0, gamma, 0.0)), bonus

    def sample(s: S, key: Key) -> Transition:
        kept, _ = draw(s.replay, key)
        rows = each(partial(frames.looked, sight))(s.frames, kept)
        return priced(seeing(s.drive, s.agents), rows, s.hyper)[0]

    def seeing(held: PyTree, states: PyTree) -> PyTree:
        """Return the drive with the first agent's convolutions, if the drive has none of its own."""
        return held if drive.see is None or crew.eyes is None else drive.see(held, crew.eyes(states))

    def near(store: Ring, seen: PyTree, key: Key) -> tuple[Array, Array, Array]:
        """Draw about a batch of pairs of states for the drive, evenly from all replays."""

        def read(store: Ring, seen: PyTree, key: Key, count: int) -> tuple[Array, Array, Array]:
            anchors, partners, valid = episodes.pairs(store, key, count, stride, drive.horizon)
            return sight.look(seen, anchors), sight.look(seen, partners), valid

        if config.shared_replay:
            return read(store, seen, key, config.batch)
        keys = jax.random.split(key, population)
        share = -(-config.batch // population)
        return tree.flatten(jax.vmap(partial(read, count=share))(store, seen, keys))

    def learn(s: S) -> S:
        """Take the gradient steps of every agent, once the warm-up is over."""
        key, key_learn = jax.random.split(s.key)
        before = s.metrics.losses, s.metrics.bonus, s.metrics.drive
        (states, held), (losses, bonus, told) = learning.steps(
            lambda learners, key: update(learners, (s.replay, s.frames), s.hyper, key),
            (s.agents, s.drive),
            config.updates,
            key_learn,
            before,
            ready=s.env_steps >= warmup,
        )
        metrics = replace(s.metrics, losses=losses, bonus=bonus, drive=told)
        return replace(s, key=key, agents=states, drive=held, metrics=metrics)

    def deploy(s: S, policies: Params) -> Params:
        return drive.deploy(s.drive, policies)

    def individuals(s: S) -> Params:
        return deploy(s, crew.policies(s.agents))

    def look(s: S, kept: Array) -> Array:
        return each(sight.look)(s.frames, kept)

    def exploration(s: S) -> Array:
        return jnp.mean(scale(s))

    return Parts(
        fields=fields,
        collect=collect,
        learn=learn,
        individuals=individuals,
        deploy=deploy,
        hand_over=drive.hand_over,
        act=drive.act(crew.act),
        agent=agent,
        steps=taken,
        look=look,
        sample=sample,
        exploration=exploration,
        learning_starts=warmup,
        crew=crew,
    )


def _stored(replay: Replay, sight: Sight) -> Callable[..., tuple[Ring, PyTree]]:
    """Return the function that stores the rows and frames that the lanes of one replay have played."""

    def stored(
        store: Ring, seen: PyTree, rows: PyTree, anew: Array, valid: Array, after: Array
    ) -> tuple[Ring, PyTree]:
        """Store rows, anew and valid [T, L], and drop those that have lost a frame; the lanes act on
        ``after`` [L, *obs] next."""
        seen, rows = frames.keep(sight, seen, rows, after, anew)
        store = replay.add(store, tree.flatten(rows), valid.ravel())
        return store if sight.lost is None else without_oldest(store, sight.lost(seen, store)), seen

    return stored
