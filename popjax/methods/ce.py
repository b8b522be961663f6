"""Collaborative Exploration. ICLR 2024 submission, "A Collaborative Perspective on Exploration".

Agents of any kind that learns from a replay act in environments of their own, fill one replay and learn from
the same batches, each with its own reward: the task's plus a novelty that counts what all of them have
visited lately.

An iteration: act -> (relabel -> learn -> contrast) x updates. The agents may collaborate in the reward
(``drive``), in acting (``col_unroll``) and in evaluation (``col_eval``); the paper's headline is the first
alone, its "All" is all three. Another ``drive`` is a rival: none is Replica, and SAC with ``population=1``;
``rnd`` has a module for each agent (RND + Replica) or one for all (RND + CE).

Several lanes per agent: a vector step adds ``population * lanes`` transitions and owes as many updates, so
replay and learner see the same ratio. A bank then receives every fifth state of each lane and covers
``1500 / lanes`` steps of a lane: it is fresher and wider, and results with different ``lanes`` are not equal.

Differs from the paper: a replay row does not store agent and place in the episode, which follow from its slot
and the rows beside it. Alone, an agent is rewarded for its own novelty, whatever ``ego_weight``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import agents, counting, rollout, tree
from popjax.agents import sac
from popjax.checks import check_choices, check_least, check_shapes
from popjax.core import (
    Choice,
    Env,
    Key,
    Method,
    Number,
    Params,
    PyTree,
    as_arrays,
    chain,
    example_transition,
    number,
    stacked,
)
from popjax.intrinsic import contrastive, diayn
from popjax.population import acting, classifier, drives, lanes, learners, learning, policy
from popjax.population.lanes import Lanes
from popjax.population.learners import Multihead
from popjax.recipe import Recipe, recorded
from popjax.replay import episodes
from popjax.replay.ring import Ring, ring


@dataclass(frozen=True)
class Config:
    """The agents, their experience, and the places in which they collaborate."""

    learner: agents.AnyConfig = field(default_factory=sac.Config)  # the kind of agents, and their networks
    drive: drives.AnyConfig | None = field(default_factory=contrastive.Config)  # reward beside the task's
    population: int = 4  # agents
    lanes: int = 1  # environments of each agent
    steps: int = 1  # environment steps of each lane per iteration
    updates_per_step: float = 1.0  # gradient steps of each agent per environment step of any agent
    batch: int = 256  # transitions per gradient step, common to all agents
    capacity: int = 1_000_000  # transitions that the replay holds, rounded down to whole vector steps
    warmup: int = 10_000  # environment steps of all agents that are uniformly random and before any update

    col_unroll: acting.Mode | None = None  # agents choose actions with an eye on each other
    candidates: int = 10  # M, actions sampled from each policy by eps_collab
    col_eval: Literal["softmax", "q"] | None = None  # evaluation uses all agents; else agent eval_agent
    eval_agent: int = 0  # who is evaluated without col_eval
    q_horizon: int = 100  # environment steps that the Q-classifier looks ahead and sticks to its choice

    def __post_init__(self) -> None:
        check_choices(self)
        whole = ("population", "lanes", "steps", "batch", "capacity", "candidates", "q_horizon")
        check_least(self, 1, *whole)
        check_least(self, 0, "warmup")
        if not 0 <= self.eval_agent < self.population:
            raise ValueError(f"eval_agent {self.eval_agent} is none of {self.population} agents")
        learning.whole_updates(self.updates_per_step, self.population * self.lanes * self.steps)
        if self.capacity < max(self.batch, self.window):
            raise ValueError(
                f"capacity {self.capacity} is less than a batch of {self.batch} or the {self.window}"
                " transitions in which positives and returns are looked for; raise it"
            )
        if self.col_unroll == "eps_collab" and self.population == 1:
            raise ValueError("eps_collab has nobody to differ from: population is 1")
        if isinstance(self.drive, diayn.Config) and (self.col_eval or self.col_unroll):
            raise ValueError("agents of diayn have skills of their own; unset col_unroll and col_eval")

    @property
    def updates(self) -> int:
        """Gradient steps of each agent in an iteration."""
        taken = self.population * self.lanes * self.steps
        return learning.whole_updates(self.updates_per_step, taken)

    @property
    def window(self) -> int:
        """Transitions between the ends of what is looked up around a row."""
        horizon = self.drive.horizon if isinstance(self.drive, contrastive.Config) else 0
        classified = self.q_horizon if self.col_eval == "q" else 1
        return max(2 * horizon + 1, classified) * self.population * self.lanes


@struct.dataclass
class Hyper:
    """Numbers of the method."""

    learner: Any = field(default_factory=sac.Hyper)  # of every agent, or [P] for one number each
    drive: Any = field(default_factory=contrastive.Hyper)  # its weight and ego_weight may be [P], too
    acting: acting.Hyper = field(default_factory=acting.Hyper)  # of col_unroll, and of col_eval softmax
    classifier_lr: Number = number(3e-4)  # Adam's rate for the Q-classifier


def default_hyper(config: Config) -> Hyper:
    """Return the numbers of the kinds of agents and drive that there are."""
    return Hyper(agents.default_hyper(config.learner), drives.default_numbers(config.drive))


@struct.dataclass
class Metrics:
    """Metrics of an iteration.

    fitness:        float32 [P] return of the last finished episode of the agent's lanes, the mean.
    episodes:       int32 []    finished episodes.
    gradient_steps: int32 []    of each agent, so far.
    losses:         [P] each    the agents' losses in the last update.
    bonus:          float32 [P] mean of what the drive added to the rewards of the last batch; () without one.
    drive:          [] each     the drive's losses in the last update; () without one.
    """

    fitness: Array
    episodes: Array
    gradient_steps: Array
    losses: PyTree
    bonus: PyTree
    drive: PyTree


@struct.dataclass
class State:
    """Everything that training carries; one replay whatever the population."""

    key: Key
    hyper: Hyper
    env_steps: counting.Count  # [] summed over lanes
    generation: Array  # int32 [] iterations
    metrics: Metrics
    replay: Ring
    drive: PyTree
    classifier: classifier.State | None  # None without a Q-classifier
    agents: PyTree = stacked()  # [P], or [1] where they are heads of one network
    lanes: Lanes = stacked()  # [P, N]


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return agents that explore ``env`` together."""
    population, shape = config.population, (config.population, config.lanes)
    stride, taken = population * config.lanes, population * config.lanes * config.steps
    drive = drives.build(env.spec, config.drive, *shape)
    lanes_env = drive.env(rollout.autoreset(env))
    crew = learners.build(lanes_env.spec, config.learner, population)
    if config.col_unroll == "eps_collab" and env.spec.discrete:
        raise ValueError("eps_collab measures distances of continuous actions; set col_unroll to eps_greedy")
    judge = classifier.build(env.spec, shape, config.q_horizon) if config.col_eval == "q" else None
    replay = ring(config.capacity // stride * stride)
    each = {"drive.weight", "drive.ego_weight"}  # numbers that may differ from agent to agent
    if not isinstance(config.learner, Multihead):
        own = fields(agents.default_hyper(config.learner))
        each |= {f"learner.{f.name}" for f in own if f.name != "discount"}  # which the replay stores

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        check_shapes(hyper, each, population)
        key, key_agents, key_lanes, key_drive, key_classifier = jax.random.split(key, 5)
        state = State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=jnp.int32(0),
            metrics=Metrics(jnp.zeros(population), jnp.int32(0), jnp.int32(0), (), (), ()),
            replay=replay.init(episodes.numbered(example_transition(lanes_env.spec), jnp.int32(0))),
            drive=drive.init(key_drive),
            classifier=judge and judge.init(key_classifier),
            agents=crew.init(key_agents, hyper.learner),
            lanes=lanes.start(lanes_env, key_lanes, shape),
        )
        learning_ones = state.agents, state.drive, state.classifier
        losses, bonus, told = learning.no_losses(partial(update, state), learning_ones, key)
        return replace(state, metrics=replace(state.metrics, losses=losses, bonus=bonus, drive=told))

    def act(s: State) -> State:
        """Play every agent in each of its lanes, uniformly at random during the warm-up."""
        key, key_play = jax.random.split(s.key)
        scale = crew.exploration(s.hyper.learner, s.env_steps / population)
        how = config.candidates, s.hyper.acting
        chosen = acting.together(config.col_unroll, crew, s.agents, env.spec, scale, *how)
        chosen = policy.randomly(chosen, env.spec, s.env_steps < config.warmup)
        keep = lanes.numbered(lanes.keep_transitions(s.hyper.learner.discount))
        played, (rows, done) = lanes.play(lanes_env, chosen, s.lanes, key_play, config.steps, keep)
        valid, in_time = jnp.ones(done.shape, jnp.bool_), tree.flatten(rows, 3)  # [T, P, N], [T * P * N]
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + taken,
            generation=s.generation + 1,
            metrics=replace(s.metrics, fitness=played.fitness, episodes=played.episodes.sum()),
            replay=replay.add(s.replay, in_time, valid.ravel()),
            drive=drive.observe(s.drive, rows, done, valid, s.hyper),
            agents=crew.observe(s.agents, in_time.obs, valid.ravel()),
            lanes=played,
        )

    def update(s: State, learned: tuple[PyTree, PyTree, Any], key: Key) -> tuple[Any, tuple[Any, ...]]:
        """Take one gradient step of every agent on a common batch, relabelled for each; then one of the
        drive."""
        held_agents, held, opinion = learned
        key_batch, key_learn, key_drive, key_classifier = jax.random.split(key, 4)
        slots = episodes.slots(s.replay, key_batch, config.batch)
        batch = tree.take(s.replay.rows, slots).plain
        rows, bonus = drive.pay(held, batch, s.hyper)  # [P, B]
        held_agents, losses = crew.learn(held_agents, rows, s.hyper.learner, key_learn)
        own = lanes.owner(slots, shape) == jnp.arange(population)[:, None]  # [P, B]
        held, told = drive.learn(held, batch, own, partial(near, s.replay), s.hyper, key_drive)
        if judge is not None:
            opinion = judge.learn(opinion, s.replay, config.batch, s.hyper.classifier_lr, key_classifier)
        return (held_agents, held, opinion), (losses, bonus, told)

    def near(store: Ring, key: Key) -> tuple[Array, Array, Array]:
        return episodes.pairs(store, key, config.batch, stride, drive.horizon)

    def learn(s: State) -> State:
        """Take the gradient steps that the iteration owes, once the warm-up is over."""
        key, key_learn = jax.random.split(s.key)
        count = learning.due(s.env_steps >= config.warmup, config.updates)
        before = s.metrics.losses, s.metrics.bonus, s.metrics.drive
        learned = s.agents, s.drive, s.classifier
        learned, told = learning.steps(partial(update, s), learned, count, key_learn, before)
        trained, held, opinion = learned
        steps = s.metrics.gradient_steps + count
        metrics = Metrics(s.metrics.fitness, s.metrics.episodes, steps, *told)
        return replace(s, key=key, agents=trained, drive=held, classifier=opinion, metrics=metrics)

    def individuals(s: State) -> Params:
        return drive.deploy(s.drive, crew.policies(s.agents))

    def deployed(s: State) -> Params:
        """Return one agent, or all with the function that chooses among them."""
        if s.classifier is not None:
            return individuals(s), s.classifier.params
        if config.col_eval == "softmax":
            return individuals(s), (s.agents, s.hyper.acting)
        return tree.take(individuals(s), config.eval_agent)

    def elect(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        """Act as the agent whom the Q-classifier, or the softmax over Q of equation 6, chooses."""
        policies, chooser = params
        key_choice, key_act = jax.random.split(key)
        if judge is not None:
            chosen, memory = judge.choose(chooser, memory, obs)
        else:
            states, softmax = chooser
            chosen = acting.boltzmann(key_choice, acting.greedy_values(crew, states, obs), softmax)
        choice = crew.act(tree.take(policies, chosen), (), obs, key_act, scale)
        return choice._replace(memory=memory)

    return Method(
        init=init,
        step=chain(act, learn),
        policy=deployed,
        act=elect if config.col_eval else drive.act(crew.act),
        hyper=default_hyper(config),
        steps_bound=taken,
        learning_starts=config.warmup,
        memory=() if judge is None else judge.memory,
        individuals=None if config.col_eval else individuals,
        exploration=lambda s: jnp.mean(crew.exploration(s.hyper.learner, s.env_steps / population)),
    )


METHOD = Recipe(
    build,
    Config,
    default_hyper,
    agents={
        "learner": {name: module.Config() for name, module in agents.AGENTS.items()}
        | {"multihead": Multihead()},
        "drive": drives.KINDS,
    },
)
