"""Distillation of any finished run, whatever its population and networks, into one policy to deploy.

A step: collect -> learn. A student plays, a teacher labels every state with the action that it would take
itself, and the student learns from the newest ``capacity`` rollouts: DAgger (Ross, Gordon & Bagnell, 2011).
At first the teacher plays the lanes and later the student, so that it learns in the states that it reaches.

The teacher is the individual with the highest mean return in episodes played before the run or, if a method
deploys all individuals together, all of them. Of several runs, the one with the highest return is distilled.
A student with a memory learns from whole rollouts, each begun with the memory that the student had when the
rollout was played.

Continuous actions are imitated in the mean square, discrete ones by the cross-entropy of the teacher's action
or, from a teacher with logits, by the KL from its softened policy (CDRL, equation 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import counting, numerics, rollout, tree
from popjax.arguments import typed
from popjax.checks import check_least, check_types
from popjax.core import (
    Env,
    Ingredient,
    Key,
    Method,
    Number,
    Params,
    Pretrained,
    PyTree,
    Timestep,
    as_arrays,
    chain,
    number,
    stacked,
)
from popjax.distillation import softened_kl
from popjax.evolution.ranking import best_first
from popjax.nets import recurrent
from popjax.optimize import adam
from popjax.population import imitation, lanes, policy, scoring
from popjax.population.imitation import Learner, Told
from popjax.population.lanes import Lanes
from popjax.recipe import Recipe, recorded
from popjax.replay.ring import Ring, ring


class Graded(NamedTuple):
    """A finished run, its individual with the highest mean return in episodes played before this run (-1: the
    policy that the run would deploy), and that mean."""

    policy: Pretrained
    individual: int
    mean_return: float

    @property
    def teacher(self) -> Pretrained:
        """The policy of that individual."""
        if self.individual < 0:
            return self.policy
        return self.policy._replace(params=tree.take(self.policy.individuals, self.individual))


@dataclass(frozen=True)
class Config:
    """The student's network, and the amount of its experience."""

    # network of the student
    network: recurrent.Config = field(default_factory=partial(recurrent.Config, recurrent=False))
    lanes: int = 32  # environments
    steps: int = 20  # environment steps of each lane in a rollout
    capacity: int = 5_000  # rollouts of a lane that are kept; the oldest are overwritten
    batch: int = 32  # rollouts of a lane in a gradient step, of ``steps`` observations each
    updates: int = 32  # gradient steps after each rollout of all lanes
    # targets of the student if actions are discrete: the teacher's actions or its logits
    labels: Literal["actions", "logits"] = "actions"

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, 1, "lanes", "steps", "capacity", "batch", "updates")


@struct.dataclass
class Hyper:
    """Hyperparameters of the student's learning."""

    lr: Number = number(1e-3)  # Adam's rate
    max_grad_norm: Number = number(10.0, high=math.inf)  # global norm to which the gradient is clipped
    # divides a teacher's logits; no effect with labels "actions" or continuous actions
    temperature: Number = number(1.0, low=1e-6)
    # DAgger's beta, the probability with which the teacher plays a lane's rollout, at the start
    teacher_share: Number = number(1.0, high=1.0)
    teacher_steps: Number = number(20_000.0, high=math.inf)  # environment steps of its linear fall to 0


@struct.dataclass
class Metrics:
    """Metrics of an iteration.

    fitness:     float32 [1] return of the last finished episode, mean over lanes, played by student or
                 teacher.
    fresh_loss:  []          distance of the student from the teacher on this iteration's states, before it
                             learns from them.
    distil_loss: []          that distance on the batch of the last gradient step, before the step.
    """

    fitness: Array
    fresh_loss: Array
    distil_loss: Array


@struct.dataclass
class Seen:
    """Rollouts [T, N]: observations, the teacher's answers, and the ends of episodes; the student's memory
    [1, N] before them. A lane's rollout is stored without the axis N."""

    memory: PyTree
    obs: Array
    label: Array
    done: Array


@struct.dataclass
class State:
    """Everything that training carries; the lanes [1, N] carry the memories of student and teacher."""

    key: Key
    hyper: Hyper
    env_steps: counting.Count  # []
    generation: Array  # int32 []
    metrics: Metrics
    learner: Learner
    frozen: Params  # parameters of the teacher
    seen: Ring  # rows of Seen
    lanes: Lanes = stacked()


@typed()
@numerics.standardized
def grade(env: Env, policies: Sequence[Pretrained], episodes: int = 20) -> tuple[Graded, ...]:
    """Return finished runs with the best individual of each, by ``episodes`` greedy episodes; all individuals
    start from the same initial states.

    Raises:
        ValueError: a policy was trained on another task.
    """
    graded, keys = [], jax.random.split(jax.random.key(0), episodes)
    for run in policies:
        imitation.require_task(env.spec, run, "--teacher")
        act, everyone, alone = run.act, run.individuals, run.individuals is None
        if alone:  # its parameters may be an empty tree
            act, everyone = (lambda _, *seen, run=run: run.act(run.params, *seen)), jnp.zeros(1)
        measure = partial(scoring.returns, env, act, episodes=episodes, starts=keys)
        returns = jax.jit(measure)(everyone, run.memory, jax.random.key(0)).mean(1)
        best = int(best_first(returns)[0])
        graded.append(Graded(run, -1 if alone else best, float(returns[best])))
    return tuple(graded)


@recorded
def build(env: Env, config: Config = Config(), teachers: Sequence[Graded] = ()) -> Method:
    """Return a student of the best of ``teachers``, finished runs from ``grade``.

    Raises:
        ValueError: there is no teacher, it was trained on another task, or it has no logits although
            ``labels`` needs them.
    """
    if not teachers:
        raise ValueError("distil needs a finished run of the task to distil: --teacher RUN_DIR")
    spec = env.spec
    best = best_first(jnp.array([graded.mean_return for graded in teachers]))[0]
    teacher = teachers[int(best)].teacher
    imitation.require_task(spec, teacher, "--teacher")
    if config.labels == "logits" and not spec.discrete:
        raise ValueError(f"labels logits needs discrete actions, which {spec.name} does not have")
    tell = imitation.telling(teacher, config.labels)
    network = recurrent.recurrent_actor_critic(spec.obs_shape, spec.action_dim, config.network)
    student = imitation.of_network(spec, network).policy
    lanes_env, store, taken = rollout.autoreset(env), ring(config.capacity), config.lanes * config.steps
    memories = network.memory, teacher.memory

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key = imitation.own_key(key, [graded.policy for graded in teachers])
        key, key_network, key_lanes = jax.random.split(key, 3)
        params = network.init(key_network)
        start = lanes.start(lanes_env, key_lanes, (1, config.lanes), memories)
        frozen = jax.tree.map(jnp.asarray, teacher.params)
        seen = jax.eval_shape(play, params, frozen, start, jnp.zeros((1, config.lanes), jnp.bool_), key)[1]
        return State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=jnp.int32(0),
            metrics=Metrics(jnp.zeros(1), jnp.float32(0), jnp.float32(0)),
            learner=imitation.beginner(params, adam(hyper.lr, hyper.max_grad_norm)),
            frozen=frozen,
            seen=store.init(
                jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), x.dtype), seen)
            ),
            lanes=start,
        )

    def play(params: Params, frozen: Params, before: Lanes, guided: Array, key: Key) -> tuple[Lanes, Seen]:
        """Play a rollout: the teacher in the lanes that are ``guided`` bool [1, N], the student in the
        others."""

        def act(memory: PyTree, obs: Array, key: Key) -> Told:
            mine = policy.everyone(student.act, params, 0.0, shared=True)(memory[0], obs, key)
            told = policy.everyone(tell, frozen, 0.0, shared=True)(memory[1], obs, key)
            action = tree.where(guided, told.action, mine.action)
            return told._replace(memory=(mine.memory, told.memory), action=action)

        def record(now: Lanes, told: Told, timestep: Timestep) -> tuple[Array, Array, Array]:
            return now.obs, told.said, timestep.done

        after, rows = lanes.play(lanes_env, act, before, key, config.steps, record, memories)
        return after, Seen(before.memory[0], *jax.tree.map(lambda x: x[:, 0], rows))

    def distance(hyper: Hyper, params: Params, seen: Seen) -> Array:
        """Return the distance of the student from the teacher's answers in rollouts ``seen`` [T, B]."""
        heads = network.unroll(params, tree.take(seen.memory, 0), seen.obs, seen.done)[1]
        if spec.discrete:
            return softened_kl(seen.label, heads.policy, hyper.temperature)
        return jnp.square(jnp.tanh(heads.policy) - seen.label).mean()

    def collect(s: State) -> State:
        """Play student or teacher in each lane, and keep the teacher's answers."""
        key, key_who, key_play = jax.random.split(s.key, 3)
        left = 1 - s.env_steps / jnp.maximum(s.hyper.teacher_steps, 1)
        share = s.hyper.teacher_share * jnp.maximum(left, 0)
        guided = jax.random.bernoulli(key_who, share, (1, config.lanes))
        played, seen = play(s.learner.params, s.frozen, s.lanes, guided, key_play)
        fresh = distance(s.hyper, s.learner.params, seen)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + taken,
            generation=s.generation + 1,
            metrics=replace(s.metrics, fitness=played.fitness, fresh_loss=fresh),
            seen=store.add(s.seen, _lanes_first(seen), jnp.ones(config.lanes, jnp.bool_)),
            lanes=played,
        )

    def learn(s: State) -> State:
        """Take ``updates`` gradient steps of the student towards the teacher's answers."""
        key, key_learn = jax.random.split(s.key)
        learner, last = imitation.study(
            adam(s.hyper.lr, s.hyper.max_grad_norm),
            partial(distance, s.hyper),
            lambda key: _lanes_first(store.sample(s.seen, key, config.batch)),
            s.learner,
            config.updates,
            key_learn,
        )
        return replace(s, key=key, learner=learner, metrics=replace(s.metrics, distil_loss=last))

    return Method(
        init=init,
        step=chain(collect, learn),
        policy=lambda s: s.learner.params,
        act=student.act,
        hyper=Hyper(),
        steps_bound=taken,
        memory=network.memory,
        unroll=student.unroll,
    )


def _lanes_first(seen: Seen) -> Seen:
    """Return [T, N] as [N, T], and back."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), seen)


METHOD = Recipe(
    build,
    Config,
    lambda config: Hyper(),
    runs={
        "teacher": Ingredient(
            "teachers",
            grade,
            Graded,
            "A finished run of this task, RUN_DIR or RUN_DIR:SEED, to be distilled; the best of several."
            " May be repeated.",
        )
    },
)
