"""Collaborative Exploration: agents that share a replay and are rewarded for states that are new to all of
them. ICLR 2024 submission, "A Collaborative Perspective on Exploration".

Off-policy agents of any kind act in environments of their own, fill one replay and learn from the same
batches, each from its own rewards: the task's plus a bonus for states unlike those that the agents visited
recently.

An iteration: collect -> (relabel -> learn -> contrast) x updates -> learn_to_judge. The agents may
collaborate in the reward (``drive``), in acting (``col_unroll``) and in evaluation (``col_eval``); the
paper's headline result uses the first alone, its variant "All" uses all three. Other drives make the paper's
baselines: none is Replica, or SAC with ``population=1``; ``rnd`` is RND + Replica with a module for each
agent, and RND + CE with one for all.

With several lanes per agent a vector step adds ``population * lanes`` transitions and takes as many updates,
so their ratio stays the same. But a bank remembers every fifth state of each lane and so covers only ``1500 /
lanes`` steps of a lane; its states are more recent and more diverse. Compare results with equal ``lanes``
only.

Differs from the paper: replay rows store neither the agent nor the place in the episode; both follow from a
row's slot and its neighbours. Without ``col_eval`` the first agent is evaluated, as in the paper. A single
agent is rewarded for novelty to itself alone, whatever ``ego_weight`` is. The paper does not say whether its
KNN cosine similarity is that of the K-th nearest neighbour or the mean of the K nearest; here it is that of
the K-th. It shows DQN with its reward alone; here DQN may also act by "ucb" or "softmax" and be evaluated by
the Q-classifier.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

import jax
from flax import struct
from jax import Array

from popjax import agents, tree
from popjax.agents import dqn, drq, sac
from popjax.checks import check_least, check_shapes, check_types
from popjax.core import Choice, Env, Key, Method, Number, Params, PyTree, chain, number
from popjax.intrinsic import contrastive, diayn
from popjax.population import acting, classifier, clocks, drives, learning, offpolicy, parts
from popjax.population.lanes import ActAll
from popjax.population.learners import Learners, Multihead
from popjax.recipe import Preset, Recipe, recorded
from popjax.replay import ring


@dataclass(frozen=True)
class Config(offpolicy.Common):
    """The agents, their experience and updates, and where they collaborate."""

    learner: agents.AnyConfig = field(default_factory=sac.Config)  # the kind of agents, and their networks
    drive: drives.AnyConfig | None = field(default_factory=contrastive.Config)  # reward added to the task's
    col_unroll: acting.Mode | None = None  # how agents choose actions jointly; None: each for itself
    col_eval: Literal["softmax", "q"] | None = None  # how evaluation chooses an agent; None: the first
    # environment steps over which the Q-classifier predicts returns and keeps its choice
    q_horizon: int = 100

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, 1, "q_horizon")
        super().__post_init__()
        if self.col_unroll == "eps_collab" and self.population == 1:
            raise ValueError(
                "eps_collab needs two or more agents, got population 1; raise population or unset col_unroll"
            )
        if isinstance(self.drive, diayn.Config) and (self.col_eval or self.col_unroll):
            raise ValueError("agents of diayn have skills of their own; unset col_unroll and col_eval")

    @property
    def window(self) -> int:
        """Transitions that are read around a row, from the first to the last."""
        horizon = self.drive.horizon if isinstance(self.drive, contrastive.Config) else 0
        classified = self.q_horizon if self.col_eval == "q" else 1
        return max(2 * horizon + 1, classified) * self.population * self.lanes


@struct.dataclass
class Hyper:
    """Hyperparameters of the method."""

    learner: Any = field(default_factory=sac.Hyper)  # hyperparameters of the agents; [P]: a value for each
    # hyperparameters of the drive; weight and ego_weight may be [P], one value for each agent
    drive: Any = field(default_factory=contrastive.Hyper)
    acting: acting.Hyper = field(default_factory=acting.Hyper)  # hyperparameters for col_unroll and col_eval
    classifier_lr: Number = number(3e-4)  # Adam's rate for the Q-classifier


DQN = dqn.Config(double=True, eval_exploration=0.001)
"""The kind of DQN that collaborates, on MinAtar as on Atari."""


def default_config(
    learner: agents.AnyConfig = sac.Config(), drive: drives.AnyConfig | None = contrastive.Config()
) -> Config:
    """Return the paper's constants for agents of a kind.

    The paper gives no constants for its agents on Atari (section D.7). Here there are two agents, as from
    pixels. The other constants are those of DQN alone, with one gradient step for every four environment
    steps of all agents, except for a shorter warm-up and, in ``default_hyper``, shorter exploration.
    """
    if isinstance(learner, drq.Config):
        return Config(learner=learner, drive=drive, **offpolicy.FROM_PIXELS)
    if not isinstance(learner, dqn.Config):
        return Config(learner=learner, drive=drive)
    sizes: dict[str, Any] = {"population": 2, "steps": 2, "batch": 32, "warmup": 20_000}
    return Config(learner=learner, drive=drive, updates_per_step=0.25, **sizes)


def default_hyper(config: Config) -> Hyper:
    """Return the hyperparameters of this kind of agents and drive. DQN explores for 500,000 environment steps
    of all ``config.population`` agents together; gradients of DrQ are clipped as SAC's are.

    The command line calls this before it reads ``--config.population``: with a number of agents other than
    two, also set ``--hyper.learner.exploration-steps``, which counts the steps of each agent.
    """
    learner = agents.default_hyper(config.learner)
    kind = agents.kind(config.learner)
    if kind == "drq":
        learner = drq.CLIPPED
    if kind == "dqn":
        learner = replace(learner, exploration=0.05, exploration_steps=500_000 / config.population)
    return Hyper(learner, drives.default_hyper(config.drive))


@struct.dataclass
class State(offpolicy.State):
    """``offpolicy.State`` with the Q-classifier. All agents share one replay. The leading axis of ``agents``
    is 1 if they are heads of one network."""

    classifier: classifier.State | None  # type: ignore[misc]  # None without one


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return agents that explore ``env`` together.

    Raises:
        ValueError: eps_collab with discrete actions.
    """
    if config.col_unroll == "eps_collab" and env.spec.discrete:
        raise ValueError(
            "eps_collab measures distances between continuous actions; set col_unroll to eps_greedy"
        )
    shape = config.population, config.lanes
    judge = classifier.build(env.spec, shape, config.q_horizon) if config.col_eval == "q" else None
    sizes = config.sizes(config.learner, config.drive)

    def together(crew: Learners) -> Learners:
        """Return the agents, exploring jointly and learning from common batches."""

        def play(states: PyTree, hyper: Hyper, scale: Array) -> ActAll:
            return acting.together(config.col_unroll, crew, states, env.spec, scale, hyper.acting)

        # The classifier reads the number of the episode in every row.
        keep = None if judge is None else lambda rows, hyper, key: rows
        return crew._replace(play=play, draw=ring.uniform, keep=keep)

    base = offpolicy.build(env, sizes, lambda hyper: hyper.learner, adapt=together)
    crew = base.crew
    assert crew is not None
    each = {"drive.weight", "drive.ego_weight"}  # hyperparameters that may have a value for each agent
    if not isinstance(config.learner, Multihead):
        each |= {f"learner.{f.name}" for f in fields(agents.default_hyper(config.learner))}

    def init(key: Key, hyper: Hyper) -> State:
        check_shapes(hyper, each, config.population)
        key_base, key_classifier = jax.random.split(key)
        return State(**base.fields(key_base, hyper), classifier=judge and judge.init(key_classifier))

    def learn_to_judge(s: State) -> State:
        """Train the Q-classifier for as many gradient steps as the agents."""
        if judge is None:
            return s
        key, key_learn = jax.random.split(s.key)

        def update(opinion: classifier.State, key: Key) -> tuple[classifier.State, tuple[()]]:
            how = partial(base.look, s), config.batch, s.hyper.classifier_lr
            return judge.learn(opinion, s.replay, *how, key), ()

        ready = s.env_steps >= config.warmup
        opinion, _ = learning.steps(update, s.classifier, sizes.updates, key_learn, (), ready=ready)
        return replace(s, key=key, classifier=opinion)

    def deployed(s: State) -> Params:
        """Return the parameters of the first agent, or those of all agents and of the choice among them."""
        if s.classifier is not None:
            return base.individuals(s), s.classifier.params
        if config.col_eval == "softmax":
            return base.individuals(s), (s.agents, s.hyper.acting)
        return tree.take(base.individuals(s), 0)

    def elect(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        """Act as the agent that the Q-classifier, or the softmax over Q of section 4.2, chooses."""
        policies, chooser = params
        key_choice, key_act = jax.random.split(key)
        if judge is not None:
            chosen, memory = judge.choose(chooser, memory, obs)
        else:
            states, softmax = chooser
            chosen = acting.boltzmann(key_choice, acting.greedy_values(crew, states, obs), softmax)
        choice = crew.act(tree.take(policies, chosen), (), obs, key_act, scale)
        return choice._replace(memory=memory)

    step = chain(base.collect, base.learn, learn_to_judge)
    return parts.whole(base, default_hyper(config), init, step)._replace(
        policy=deployed,
        act=elect if config.col_eval else base.act,
        memory=() if judge is None else judge.memory,
        individuals=None if config.col_eval else base.individuals,
    )


def preset(task: str) -> Preset | None:
    """Return the constants for a game such as "atari/asterix" or a task from pixels; None for others."""
    if not task.startswith("atari/"):
        return offpolicy.from_pixels(default_config, default_hyper, task)
    config = default_config(DQN)
    return Preset(config, default_hyper(config), 5_000_000, offpolicy.CLIPPED)


def remarks(env: Env, config: Config, hyper: Hyper, env_steps: int) -> list[str]:
    """Return a line if DQN's exploration does not end within the run."""
    if not isinstance(config.learner, dqn.Config):
        return []
    return clocks.exploration(hyper.learner, env_steps, config.population, "learner")


METHOD = Recipe(
    build,
    default_config,
    default_hyper,
    agents={
        "learner": {name: module.Config() for name, module in agents.AGENTS.items()}
        | {"multihead": Multihead(), "dqn": DQN},
        "drive": drives.KINDS,
    },
    preset=preset,
    remarks=remarks,
)
